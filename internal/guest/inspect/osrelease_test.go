package inspect

import (
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/vm/osinfo"
)

func TestParseRelease(t *testing.T) {
	r := parseRelease([]byte("# comment\n\nID=debian\r\nNAME='It is \"here\"'\nPRETTY_NAME=\"a \\\"b\\\" \\$c \\\\ d\"\nVERSION_ID=12\nbad line\nX Y=1\nEMPTY=\nLONG=" + strings.Repeat("é", 200)))
	for k, want := range map[string]string{"ID": "debian", "NAME": `It is "here"`, "PRETTY_NAME": `a "b" $c \ d`, "VERSION_ID": "12", "EMPTY": ""} {
		if got, ok := r[k]; !ok || got != want {
			t.Errorf("%s: %q, want %q", k, got, want)
		}
	}
	if len(r) != 6 || len(r["LONG"]) != maxText {
		t.Errorf("%d keys, a value of %d bytes", len(r), len(r["LONG"]))
	}
}

// What distributions' os-release files say, and osinfo-db's names for them. Those
// that this host's database has are looked up in it.
func TestOSNames(t *testing.T) {
	db := osinfo.Open(osinfo.Dirs()...)
	known := func(id string) bool {
		_, err := db.Lookup(id)
		return err == nil
	}
	found := 0
	for _, c := range []struct{ release, want string }{
		{"ID=debian\nVERSION_ID=\"12\"", "debian12"},
		{"ID=debian\nVERSION_ID=\"11\"", "debian11"},
		{"ID=debian\nPRETTY_NAME=\"Debian GNU/Linux trixie/sid\"", "debiantesting"},
		{"ID=ubuntu\nVERSION_ID=\"22.04\"", "ubuntu22.04"},
		{"ID=fedora\nVERSION_ID=37\nVARIANT_ID=cloud", "fedora37"},
		{"ID=fedora\nVERSION_ID=39", "fedora39"},
		{"ID=fedora\nVERSION_ID=37\nVARIANT_ID=silverblue", "silverblue37"},
		{"ID=fedora\nVERSION_ID=37\nVARIANT_ID=coreos", "fedora-coreos-stable"},
		{"ID=fedora\nVERSION_ID=41\nPRETTY_NAME=\"Fedora Linux 41 (Rawhide Prerelease)\"", "fedora-rawhide"},
		{"ID=\"centos\"\nNAME=\"CentOS Linux\"\nVERSION_ID=\"7\"", "centos7.0"},
		{"ID=\"centos\"\nNAME=\"CentOS Linux\"\nVERSION_ID=\"8\"", "centos8"},
		{"ID=\"centos\"\nNAME=\"CentOS Stream\"\nVERSION_ID=\"9\"", "centos-stream9"},
		{"ID=\"rhel\"\nVERSION_ID=\"9.1\"", "rhel9.1"},
		{"ID=\"almalinux\"\nVERSION_ID=\"9.3\"", "almalinux9"},
		{"ID=\"rocky\"\nVERSION_ID=\"9.3\"", "rocky9"},
		{"ID=\"ol\"\nVERSION_ID=\"8.5\"", "ol8.5"},
		{"ID=\"opensuse-leap\"\nVERSION_ID=\"15.4\"", "opensuse15.4"},
		{"ID=\"opensuse-leap\"\nVERSION_ID=\"15.5\"", "opensuse15.5"},
		{"ID=\"opensuse-tumbleweed\"\nVERSION_ID=\"20231010\"", "opensusetumbleweed"},
		{"ID=\"sles\"\nVERSION_ID=\"15.4\"", "sle15sp4"},
		{"ID=\"sles\"\nVERSION_ID=\"15\"", "sle15"},
		{"ID=\"sles\"\nVERSION_ID=\"12.5\"", "sles12sp5"},
		{"ID=\"sle-micro\"\nVERSION_ID=\"5.2\"", "slem5.2"},
		{"ID=alpine\nVERSION_ID=3.17.1", "alpinelinux3.17"},
		{"ID=alpine\nVERSION_ID=3.19.0", "alpinelinux3.19"},
		{"ID=arch", "archlinux"},
		{"ID=gentoo", "gentoo"},
		{"ID=void", "voidlinux"},
		{"ID=nixos\nVERSION_ID=\"22.05\"", "nixos-22.05"},
		{"ID=pop\nVERSION_ID=\"20.04\"", "popos20.04"},
		{"ID=cirros\nVERSION_ID=0.5.2", "cirros0.5.2"},
		{"ID=mageia\nVERSION_ID=8", "mageia8"}, // by the rule for all others
		{"ID=lamina-small\nVERSION_ID=1", ""},
		{"ID=linuxmint\nVERSION_ID=\"21\"", ""},
		{"NAME=x", ""},
		{"ID=debian\nVERSION_ID='12 or so'", ""},
	} {
		got := parseRelease([]byte(c.release)).id(known)
		if got != c.want {
			t.Errorf("%q: %q, want %q", c.release, got, c.want)
		}
		if known(got) {
			found++
		}
	}
	// The database of 2022 lacks five of them.
	if found < 25 {
		t.Errorf("the database knows %d of them", found)
	}
	for text, want := range map[string]string{
		"CentOS release 6.10 (Final)": "centos6.10", "Red Hat Enterprise Linux Server release 6.9 (Santiago)": "rhel6.9",
		"Scientific Linux release 6.4 (Carbon)": "scientificlinux6.4",
	} {
		if r := parseRedHat([]byte(text + "\n")); r.id(known) != want || r.name() != text {
			t.Errorf("%s: %q, %q", text, r.id(known), r.name())
		}
	}
}

// The newest known release before one that the database does not know yet.
func TestSpecOS(t *testing.T) {
	db := osinfo.Open(osinfo.Dirs()...)
	for _, c := range []struct {
		os, want string
		exact    bool
	}{
		{"debian11", "debian11", true}, {"", "", false}, {"nosuch7", "", false}, {"fedora9999", "", false}, {"ubuntu99.04", "", false},
		{"centos-stream9", "centos-stream9", true}, {"fedora0", "", false},
	} {
		got, exact := SpecOS(db, api.ImageInfo{OS: c.os})
		if exact != c.exact || c.want != "" && got != c.want {
			t.Errorf("%s: %q, %v", c.os, got, exact)
		}
		if strings.HasSuffix(c.os, "9999") || strings.HasSuffix(c.os, "99.04") {
			stem := strings.TrimRight(c.os, "0123456789.")
			if rest, ok := strings.CutPrefix(got, stem); !ok || strings.Trim(rest, "0123456789.") != "" || less(version(rest), version("22")) {
				t.Errorf("%s: %q", c.os, got)
			}
		} else if c.want == "" && got != "" {
			t.Errorf("%s: %q", c.os, got)
		}
	}
}
