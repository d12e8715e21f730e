package agent

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/lamina-vm/lamina/internal/guest/seed"
)

// guest is a scripted peer: it answers each script with what answer makes of it.
func guest(t *testing.T, answer func(script string) string) *Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		lines := newLineReader(theirs)
		var id string
		var script strings.Builder
		for line, ok := lines(); ok; line, ok = lines() {
			switch {
			case strings.HasPrefix(line, "@lamina "):
				id = line[8:]
				script.Reset()
			case strings.HasPrefix(line, "@end "):
				_, _ = fmt.Fprintf(theirs, "\n@lamina %s\n%s\n@end %s 0\n", id, answer(script.String()), id)
			case line != "":
				script.WriteString(line[1:] + "\n")
			}
		}
	}()
	t.Cleanup(func() { _ = ours.Close() })
	return NewConn(KindLamina, ours)
}

const testMAC = "52:54:00:12:34:56"

func testIdentity(t *testing.T) Identity {
	t.Helper()
	keys, err := NewHostKeys()
	if err != nil {
		t.Fatal(err)
	}
	return Identity{
		Seed:      seed.Config{InstanceID: "i-1", Hostname: "web.example.org", User: "bob", MACs: []string{testMAC}},
		MachineID: NewMachineID(),
		HostKeys:  keys,
	}
}

// good is what a guest says that has become who it should be.
func good(t *testing.T, id Identity) string {
	t.Helper()
	keys, err := id.HostKeys.Public()
	if err != nil {
		t.Fatal(err)
	}
	short, _, _ := strings.Cut(id.Seed.Hostname, ".")
	return "=network networkd\n=hostname " + short + "\n=machine-id " + id.MachineID + "\n=key " + keys[0] + "\n=key " + keys[1] + "\n=end\n"
}

const goodCards = "=card " + testMAC + " eth0\n=address " + testMAC + " inet6 fe80::1/64\n=address " + testMAC + " inet 10.0.2.15/24\n=end\n"

func TestRenew(t *testing.T) {
	id := testIdentity(t)
	plugged, asks := false, 0
	id.Plug = func(context.Context) error { plugged = true; return nil }
	c := guest(t, func(script string) string {
		if !strings.Contains(script, "renew_hostname") {
			if asks++; asks < 3 {
				return "=card " + testMAC + " eth0\n=address " + testMAC + " inet6 fec0::1/64\n=end\n"
			}
			return goodCards
		}
		if plugged {
			t.Error("the card was plugged in before the guest had its name")
		}
		return "some program talks\n=user admin\n" + good(t, id)
	})
	r, err := Renew(testContext(t), c, id)
	if err != nil {
		t.Fatal(err)
	}
	if !plugged || r.Hostname != "web" || r.MachineID != id.MachineID || !slices.Equal(r.Addresses, []string{"10.0.2.15"}) || len(r.HostKeys) != 2 || r.User != "admin" || time.Since(r.At) > time.Minute {
		t.Errorf("plugged %t, report %+v", plugged, r)
	}
}

// TestRenewChecks has guests that do not become who they should be.
func TestRenewChecks(t *testing.T) {
	id := testIdentity(t)
	id.NetworkTimeout = time.Millisecond
	other := testIdentity(t)
	otherKeys, _ := other.HostKeys.Public()
	says := good(t, id)
	for _, tc := range []struct{ name, says, cards, want string }{
		{"host name", strings.Replace(says, "=hostname web", "=hostname old", 1), goodCards, `the host name is "old", not "web"`},
		{"terminal", strings.Replace(says, "=hostname web", "=hostname \x1b[2J", 1), goodCards, `\x1b[2J`},
		{"two names", "=hostname web\n" + says, goodCards, "the host name: it does not say"},
		{"machine-id", strings.Replace(says, id.MachineID, other.MachineID, 1), goodCards, "the machine-id is"},
		{"no machine-id", strings.Replace(says, "=machine-id", "=x", 1), goodCards, "the machine-id: it does not say"},
		{"old key", strings.Replace(says, "=key ssh-ed25519", "=key "+otherKeys[0]+"\n=key ssh-ed25519", 1), goodCards, "beside"},
		{"no key", strings.Replace(says, "=key ssh-ed25519", "=x", 1), goodCards, "its ssh-ed25519 host key is not"},
		{"problem", "useradd: no space\n=problem user bob could not be made\n" + says, goodCards, `user bob could not be made; last it said "useradd: no space"`},
		{"cut", strings.TrimSuffix(says, "=end\n"), goodCards, "before it was done"},
		{"nothing", "", goodCards, "before it was done"},
		{"no card", says, "=end\n", "no card with the address " + testMAC},
		{"no address", says, "=card " + testMAC + " eth0\n=address " + testMAC + " inet6 fe80::1/64\n=address x\n=end\n", "no address for its card " + testMAC},
		{"odd card", says, "=card " + testMAC + " $(reboot)\n=end\n", "no card with the address"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := guest(t, func(script string) string {
				if strings.Contains(script, "renew_hostname") {
					return tc.says
				}
				return tc.cards
			})
			r, err := Renew(testContext(t), c, id)
			if err == nil {
				t.Fatalf("believed: %+v", r)
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %q does not say %q", err, tc.want)
			}
			if strings.Contains(err.Error(), "\x1b") {
				t.Error("the guest may write to the terminal")
			}
			if !strings.Contains(tc.want, "before it was done") && !errors.Is(err, ErrMismatch) {
				t.Errorf("%v is no ErrMismatch", err)
			}
		})
	}
	for name, change := range map[string]func(*Identity){
		"machine-id": func(id *Identity) { id.MachineID = "x" },
		"host name":  func(id *Identity) { id.Seed.Hostname = "" },
		"instance":   func(id *Identity) { id.Seed.InstanceID = "a/b" },
		"user":       func(id *Identity) { id.Seed.User = "$(reboot)" },
		"keys":       func(id *Identity) { id.HostKeys = HostKeys{} },
	} {
		bad := testIdentity(t)
		change(&bad)
		c := guest(t, func(string) string { t.Errorf("%s: the guest was asked", name); return "" })
		if _, err := Renew(testContext(t), c, bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestRenewUserData(t *testing.T) {
	id := testIdentity(t)
	id.Seed.UserData = []byte("#cloud-config\n")
	for _, tc := range []struct{ name, says, want string }{
		{"done", "=result {\n=result  \"v1\": {\"errors\": []}}\n", ""},
		{"error", "=result {\"v1\": {\"errors\": [\"('runcmd', KeyError())\"]}}\n", "runcmd"},
		{"no JSON", "=result {\n", "cannot be read"},
		{"problem", "=problem there is no drive with a seed\n", "no drive"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := guest(t, func(script string) string {
				switch {
				case strings.Contains(script, "renew_hostname\n") && !strings.Contains(script, "cloud_init\n"):
					if strings.Contains(script, "\nkeep_instance\n") {
						t.Error("the instance was kept")
					}
					return good(t, id)
				case strings.Contains(script, "\ncloud_init\n"):
					return tc.says + good(t, id)
				}
				return goodCards
			})
			r, err := Renew(testContext(t), c, id)
			if r.Hostname != "web" || len(r.Addresses) != 1 {
				t.Errorf("report %+v", r)
			}
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
			} else if !errors.Is(err, ErrUserData) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want an ErrUserData that says %q", err, tc.want)
			}
		})
	}
}

func TestWaitReady(t *testing.T) {
	asks := 0
	c := guest(t, func(string) string {
		switch asks++; asks {
		case 1:
			return "=busy cloud-init has not finished\n=cpu 10 10\n=end\n"
		case 2:
			return "=cpu 100 20\n=end\n"
		}
		return "=cpu 110 120\n=end\n"
	})
	if err := WaitReady(testContext(t), c); err != nil || asks != 3 {
		t.Errorf("after %d questions: %v", asks, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	c = guest(t, func(string) string { return "=busy systemd says starting\n=cpu 1 1\n=end\n" })
	if err := WaitReady(ctx, c); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "systemd says starting") {
		t.Errorf("a boot that does not end: %v", err)
	}
}

func TestPrepare(t *testing.T) {
	c := guest(t, func(string) string { return "=end\n" })
	if err := Prepare(testContext(t), c); err != nil {
		t.Error(err)
	}
	c = guest(t, func(string) string { return "sh: no such thing\n" })
	if err := Prepare(testContext(t), c); err == nil || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("a script that did not end: %v", err)
	}
}

// TestWarmingSeed reads the seed as cloud-init would.
func TestWarmingSeed(t *testing.T) {
	s := WarmingSeed("i-warm")
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	if _, err := seed.Build(s); err != nil {
		t.Fatal(err)
	}
	var config struct {
		Users []any
		Files []struct {
			Path, Permissions, Encoding, Content string
		} `yaml:"write_files"`
		Runcmd [][]string
	}
	if err := yaml.Unmarshal(s.UserData, &config); err != nil {
		t.Fatal(err)
	}
	if config.Users == nil || len(config.Users) != 0 || len(config.Files) != 3 || len(config.Runcmd) != 1 {
		t.Fatalf("%+v", config)
	}
	data, err := base64.StdEncoding.DecodeString(config.Files[0].Content)
	if err != nil || string(data) != string(Script) || config.Files[0].Permissions != "0755" {
		t.Errorf("the agent's file: %v", err)
	}
	if config.Runcmd[0][1] != config.Files[2].Path {
		t.Errorf("runs %q, wrote %q", config.Runcmd[0], config.Files[2].Path)
	}
}

// The scripts must be syntax to all shells that a guest may have, also without
// their indentation.
func TestScriptsParse(t *testing.T) {
	for name, script := range map[string]string{
		"library": library(), "prepare": renewScript + networkScript + prepareScript,
		"cloud-init": renewScript + cloudInitScript + reportScript,
		"settled":    settledScript, "install": string(installScript), "agent": string(Script),
	} {
		for _, shell := range [][]string{{"dash", "-n"}, {"busybox", "ash", "-n"}, {"bash", "--posix", "-n"}} {
			for _, text := range []string{script, squeeze(script)} {
				cmd := exec.Command(shell[0], shell[1:]...)
				cmd.Stdin = strings.NewReader(text)
				if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
					t.Errorf("%s in %s: %v\n%s", name, shell[0], err, out)
				}
			}
		}
	}
}

func FuzzReport(f *testing.F) {
	f.Add([]byte("=hostname a\n=machine-id b\n=key ssh-ed25519 AAAA\n=card x y\n=address x inet 1.2.3.4/8\n=cpu 1 2\n=result {}\n=end\n"))
	f.Fuzz(func(t *testing.T, out []byte) {
		s := parseSaid(out)
		r := s.report(time.Time{})
		if len(r.HostKeys) > maxItems || strings.ContainsAny(r.Hostname+r.MachineID+strings.Join(r.HostKeys, ""), "\x1b\x00\r") {
			t.Errorf("%+v", r)
		}
		names, _ := s.cards()
		for _, n := range names {
			if strings.ContainsAny(n, " $'\"`;&|/\\") {
				t.Errorf("card %q", n)
			}
		}
		_ = s.cpu().idleShare(cpuTime{})
		_ = resultErrors(s.values["result"])
		_ = s.noiseText()
	})
}
