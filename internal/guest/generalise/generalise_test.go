package generalise

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// shells are those that the script has to run in.
var shells = [][]string{{"dash"}, {"busybox", "sh"}, {"bash", "--posix"}}

// mess is a machine's folder tree: what is to go, and what is to stay.
var mess = map[string]string{
	"etc/machine-id":                           "0123456789abcdef0123456789abcdef\n",
	"var/lib/dbus/machine-id":                  "0123456789abcdef0123456789abcdef\n",
	"etc/ssh/ssh_host_ed25519_key":             "secret",
	"etc/ssh/ssh_host_ed25519_key.pub":         "public",
	"etc/ssh/ssh_host_rsa_key":                 "secret",
	"etc/ssh/sshd_config":                      "keep",
	"etc/dropbear/dropbear_ed25519_host_key":   "secret",
	"var/lib/cloud/instances/i-1/sem/x":        "",
	"var/lib/cloud/data/instance-id":           "i-1",
	"var/lib/cloud/seed/nocloud/meta-data":     "keep: the image's own seed",
	"etc/netplan/50-cloud-init.yaml":           "network",
	"etc/netplan/01-own.yaml":                  "keep",
	"etc/sysconfig/network-scripts/ifcfg-eth0": "# Created by cloud-init on instance boot\nHWADDR=1\n",
	"etc/sysconfig/network-scripts/ifcfg-eth1": "keep\n",
	"var/lib/dhcp/dhclient.eth0.leases":        "lease",
	"var/lib/NetworkManager/secret_key":        "k",
	"var/lib/systemd/random-seed":              "r",
	"var/lib/systemd/credential.secret":        "r",
	"etc/iscsi/initiatorname.iscsi":            "InitiatorName=iqn.1993-08.org.debian:01:old",
	"etc/nvme/hostid":                          "old",
	"etc/nvme/hostnqn":                         "old",
	"etc/udev/rules.d/70-persistent-net.rules": "rule",
	"etc/udev/rules.d/10-own.rules":            "keep",
	"root/.bash_history":                       "ls",
	"home/anna b/.ash_history":                 "ls",
	"home/anna b/.ssh/known_hosts":             "host",
	"home/anna b/.ssh/authorized_keys":         "keep",
	"home/anna b/letter":                       "keep",
	"var/tmp/.hidden":                          "x",
	"var/tmp/a b/c":                            "x",
	"tmp/..odd":                                "x",
	"var/log/journal/0123/system.journal":      "log",
	"var/log/syslog":                           "log",
	"var/log/syslog.1":                         "log",
	"var/log/a b.log":                          "log",
	"var/log/dpkg.log-20260101":                "log",
	"var/log/apt/term.log.2.gz":                "log",
	"var/cache/apt/archives/x.deb":             "cache",
	"usr/bin/ssh-keygen":                       "program",
	"usr/sbin/sshd":                            "program",
	"etc/passwd":                               "root:x:0:0::/root:/bin/sh\nanna:x:1000:1000::/home/anna b:/bin/sh\nnobody:x:9:9::/nonexistent:/bin/false\n",
}

// left is what must be there afterwards, with its content.
var left = map[string]string{
	"etc/machine-id":                           "",
	"etc/ssh/sshd_config":                      "keep",
	"var/lib/cloud/seed/nocloud/meta-data":     "keep: the image's own seed",
	"etc/netplan/01-own.yaml":                  "keep",
	"etc/sysconfig/network-scripts/ifcfg-eth1": "keep\n",
	"etc/udev/rules.d/10-own.rules":            "keep",
	"home/anna b/.ssh/authorized_keys":         "keep",
	"home/anna b/letter":                       "keep",
	"var/log/syslog":                           "",
	"var/log/a b.log":                          "",
	"usr/bin/ssh-keygen":                       "program",
	"usr/sbin/sshd":                            "program",
	"etc/passwd":                               mess["etc/passwd"],
}

func makeMess(t *testing.T) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "a root")
	for name, content := range mess {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "etc/systemd/system"), 0o755); err != nil {
		t.Fatal(err)
	}
	return root
}

// runIn runs the script over a root folder.
func runIn(t *testing.T, shell []string, root string, o Options) Report {
	t.Helper()
	s, err := Script(o)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(file, []byte(s), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(shell[0], append(shell[1:], file)...)
	cmd.Env = append(os.Environ(), "LAMINA_ROOT="+root)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil || errs.Len() > 0 {
		t.Fatalf("%v\n%s\n%s", err, out, errs.String())
	}
	r, err := Parse(out, o.Token)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return r
}

func TestScript(t *testing.T) {
	for _, shell := range shells {
		t.Run(shell[0], func(t *testing.T) {
			root := makeMess(t)
			r := runIn(t, shell, root, Options{Token: "t1", Caches: true})
			if len(r.Failed) > 0 || len(r.Added) != 1 || r.Added[0].Path != "/etc/systemd/system/lamina-ssh-keys.service" {
				t.Errorf("%+v", r)
			}
			want := map[string]int{"cloud-init": 4, "ssh-host-keys": 4, "dhcp-leases": 2, "random-seeds": 2, "storage-names": 3, "udev-rules": 1, "shell-histories": 2,
				"known-hosts": 1, "temporary-files": 3, "package-caches": 1, "logs": 6, "machine-id": 2}
			for _, s := range r.Steps {
				if s.Removed != want[s.Name] {
					t.Errorf("%s: %d removed, want %d", s.Name, s.Removed, want[s.Name])
				}
				delete(want, s.Name)
			}
			if len(want) > 0 {
				t.Errorf("no report of %v", want)
			}
			checkLeft(t, root)
			// A second time there is nothing to do.
			for _, s := range runIn(t, shell, root, Options{Token: "t2", Caches: true}).Steps {
				if s.Removed != 0 {
					t.Errorf("a second time: %+v", s)
				}
			}
		})
	}
}

func checkLeft(t *testing.T, root string) {
	t.Helper()
	found := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		name, _ := filepath.Rel(root, path)
		if err != nil || d.IsDir() || strings.HasPrefix(name, "etc/systemd/system/") {
			return err
		}
		if name == "var/lib/dbus/machine-id" {
			target, err := os.Readlink(path)
			if target != "/etc/machine-id" {
				t.Errorf("%s leads to %q", name, target)
			}
			return err
		}
		b, err := os.ReadFile(path)
		want, keep := left[name]
		if !keep || string(b) != want {
			t.Errorf("%s is left with %q", name, b)
		}
		found[name] = true
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name := range left {
		if !found[name] {
			t.Errorf("%s is gone", name)
		}
	}
}

// What cannot be removed is said, and the rest goes on.
func TestScriptSaysWhatFailed(t *testing.T) {
	root := makeMess(t)
	// A file where a folder should be made; what cannot be removed is not easy to
	// have everywhere.
	unit := filepath.Join(root, "etc/systemd/system/lamina-ssh-keys.service")
	wants := filepath.Join(root, "etc/systemd/system/multi-user.target.wants")
	if err := os.WriteFile(wants, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Script(Options{Token: "t1"})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("dash")
	cmd.Stdin = strings.NewReader(s)
	cmd.Env = append(os.Environ(), "LAMINA_ROOT="+root)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	r, err := Parse(out, "t1")
	if err != nil || len(r.Failed) != 1 || r.Failed[0].Path != "/etc/systemd/system/lamina-ssh-keys.service" {
		t.Errorf("%v, %+v", err, r)
	}
	if _, err := os.Stat(unit); err != nil {
		t.Error(err)
	}
	if len(r.Kept) != 1 || !strings.HasPrefix(r.Kept[0].Path, "/home/anna") {
		t.Errorf("kept: %v", r.Kept)
	}
}

func TestScriptRefusesTokens(t *testing.T) {
	for _, token := range []string{"", "a b", "$(reboot)", "x;", strings.Repeat("a", 65)} {
		if s, err := Script(Options{Token: token}); err == nil {
			t.Errorf("%q: %.60s", token, s)
		}
	}
}

func TestUserDataIsAScript(t *testing.T) {
	b, err := UserData("abc")
	if err != nil || !strings.HasPrefix(string(b), "#!/bin/sh\ntoken=abc poweroff=yes detach=no console=yes caches=no\n") {
		t.Errorf("%v: %.80s", err, b)
	}
	if len(b) > 16<<10 {
		t.Errorf("%d bytes: data sources with a limit of 16 KiB do not take it", len(b))
	}
}

func TestParse(t *testing.T) {
	const console = "[    1.0] noise\r\n" +
		"lamina-generalise[old]: begin\r\nlamina-generalise[old]: done\r\n" +
		"[    2.0] more nolamina-generalise[new]: begin\r\n" +
		"\x1b[0mlamina-generalise[new]: removed logs 3\r\n" +
		"lamina-generalise[new]: removed logs 3\r\n" +
		"lamina-generalise[new]: kept /root/.ssh/authorized_keys because\x1b[2J\r\n" +
		"lamina-generalise[new]: failed /x cannot\r\n"
	r, err := Parse([]byte(console), "new")
	if !errors.Is(err, ErrNotDone) || r.Done || len(r.Steps) != 1 || r.Steps[0] != (Step{"logs", 3}) || len(r.Failed) != 1 ||
		len(r.Kept) != 1 || r.Kept[0].String() != "/root/.ssh/authorized_keys: because[2J" {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err = Parse([]byte(console+"lamina-generalise[new]: done\r\n"), "new"); err != nil || !r.Done {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := Parse([]byte(console), "other"); !errors.Is(err, ErrNotRun) {
		t.Error(err)
	}
	if r, err := Parse([]byte(console), "old"); err != nil || !r.Done || len(r.Steps) > 0 {
		t.Errorf("%+v, %v", r, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("lamina-generalise[t]: begin\nlamina-generalise[t]: removed a 1\nlamina-generalise[t]: kept b c\nlamina-generalise[t]: done\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := Parse(b, "t")
		if (err == nil) != r.Done || len(r.Steps)+len(r.Kept)+len(r.Failed)+len(r.Added) > 4*maxRemarks {
			t.Fatalf("%+v, %v", r, err)
		}
		for _, k := range r.Kept {
			if strings.ContainsAny(k.String(), "\x1b\n\r\x00") {
				t.Fatalf("%q", k)
			}
		}
	})
}
