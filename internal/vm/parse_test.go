package vm

import (
	"strings"
	"testing"
)

func TestParseForward(t *testing.T) {
	for text, want := range map[string]Forward{
		"8080:80":               {"tcp", "127.0.0.1", 8080, 80},
		"80":                    {"tcp", "127.0.0.1", 0, 80},
		"0:80":                  {"tcp", "127.0.0.1", 0, 80},
		"53:5353/udp":           {"udp", "127.0.0.1", 53, 5353},
		"22/tcp":                {"tcp", "127.0.0.1", 0, 22},
		"127.0.0.1:8080:80/udp": {"udp", "127.0.0.1", 8080, 80},
		"0.0.0.0:0:65535":       {"tcp", "0.0.0.0", 0, 65535},
	} {
		got, err := ParseForward(text)
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
		if again, err := ParseForward(got.String()); err != nil || again != got {
			t.Errorf("%q as %q: %+v, %v", text, got, again, err)
		}
	}
	for _, text := range []string{"", ":", "x", "8080:", ":80", "8080:0", "80/sctp", "80/", "65536:1", "1:65536", "-1:80", "+1:80", "1:2:3", "a.b:1:2", "::1:8080:80", "[::1]:8080:80", "1:2:3:4", "1.2.3:1:2"} {
		if f, err := ParseForward(text); err == nil || !strings.Contains(err.Error(), "port forward") {
			t.Errorf("%q: %+v, %v", text, f, err)
		}
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "512": 512, "1k": 1 << 10, "1K": 1 << 10, "2M": 2 << 20, "1G": 1 << 30, "1g": 1 << 30, "1GiB": 1 << 30, "1GB": 1 << 30,
		"1.5G": 3 << 29, "3T": 3 << 40, "7E": 7 << 60, "10B": 10, "0.5k": 512,
	} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "G", "x", "-1", "1x", "1GiBs", "8E", "99999999999999999999", "1.2.3", ".5G", "1 G", "1e3", "0x10", "NaN"} {
		if n, err := ParseSize(text); err == nil {
			t.Errorf("%q: %d", text, n)
		}
	}
	for text, want := range map[string]int64{"512": 512 << 20, "1G": 1 << 30, "64M": 64 << 20, "1024B": 1024} {
		if got, err := ParseMemory(text); err != nil || got != want {
			t.Errorf("memory %q: %d, %v; want %d", text, got, err, want)
		}
	}
}

// FuzzParse: no text panics, and what is read is in range.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"127.0.0.1:1:2/udp", "1.5G", "8E", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if fw, err := ParseForward(s); err == nil {
			if fw.GuestPort < 1 || fw.GuestPort > 65535 || fw.HostPort < 0 || fw.HostPort > 65535 {
				t.Errorf("%q: %+v", s, fw)
			}
		}
		if n, err := ParseSize(s); err == nil && n < 0 {
			t.Errorf("%q: %d", s, n)
		}
	})
}
