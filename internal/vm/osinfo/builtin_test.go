package osinfo

import (
	"testing"
)

// The built-in table leads to the machines that the database leads to; only
// the sizes are its own.
func TestBuiltInAsDatabase(t *testing.T) {
	t.Parallel()
	db := Open(t.TempDir())
	if !db.BuiltIn() {
		t.Fatal("an empty folder is no database")
	}
	both := 0
	for _, ours := range db.List() {
		theirs, err := hostDB().Lookup(ours.ShortID)
		if err != nil {
			continue // newer than the database
		}
		both++
		if ours.ID != theirs.ID || ours.Family != theirs.Family || ours.Distro != theirs.Distro {
			t.Errorf("%s: %q of %s, %s; the database has %q of %s, %s", ours.ShortID, ours.ID, ours.Family, ours.Distro, theirs.ID, theirs.Family, theirs.Distro)
		}
		for _, want := range []Request{{Graphics: "spice"}, {Graphics: "vnc", Arch: "aarch64"}} {
			a, b := Defaults(ours, want), Defaults(theirs, want)
			if ours.ShortID != Generic && (a.Memory == 0 || a.MinimumMemory == 0 || a.Memory < a.MinimumMemory) {
				t.Errorf("%s: %d bytes of memory, at least %d", ours.ShortID, a.Memory, a.MinimumMemory)
			}
			a.CPUs, a.Memory = b.CPUs, b.Memory
			if got, want := a.comparable(), b.comparable(); got != want {
				t.Errorf("%s: %s", ours.ShortID, differing(got, want))
			}
		}
	}
	if both < 80 {
		t.Errorf("only %d of the table's systems are in the database", both)
	}
	if problems := db.Problems(); len(problems) > 0 {
		t.Error(problems)
	}
}

func TestBuiltInDetect(t *testing.T) {
	t.Parallel()
	db := Open(t.TempDir())
	for volume, want := range map[string]string{
		"Debian 12.5.0 amd64 n":            "debian12",
		"Debian 11.9.0 amd64 1":            "debian11",
		"Ubuntu-Server 24.04.1 LTS amd64":  "ubuntu24.04",
		"Ubuntu 22.04.4 LTS amd64":         "ubuntu22.04",
		"Fedora-S-dvd-x86_64-41":           "fedora41",
		"Fedora-WS-Live-40-1-14":           "fedora40",
		"CentOS 7 x86_64":                  "centos7.0",
		"CentOS-Stream-9-BaseOS-x86_64":    "centos-stream9",
		"Rocky-9-3-x86_64-dvd":             "rocky9",
		"AlmaLinux-10-0-x86_64-dvd":        "almalinux10",
		"ARCH_202409":                      "archlinux",
		"14_1_RELEASE_AMD64_CD":            "freebsd14.1",
		"alpine-std 3.20.3 x86_64":         "alpinelinux3.20",
		"openSUSE-Leap-15.6-DVD-x86_64-Bu": "opensuse15.6",
	} {
		if m, err := db.DetectDisc(Disc{VolumeID: volume}); err != nil || m.OS.ShortID != want {
			t.Errorf("%s: %s, %v; want %s", volume, m.OS.ShortID, err, want)
		}
	}
}
