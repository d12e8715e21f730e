package seed

import (
	"bytes"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lamina-vm/lamina/internal/qemutest"
)

var update = flag.Bool("update", false, "write the golden files")

// rsaKey has blanks in its comment and a plus in it.
const rsaKey = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQCTEwHQ+4HpelZeJlkEyzyjxsv2IMyJ8kLzjcQLJfh1BFYKMHgge1eiSsTT3Q51Ex65iSzL8yxQEJJoVnP/F/NefHuqplTgv813G27pbhuH8Ajt/7iEoj4b+7fg8JqbqnLRvGdKGtoqot4t59x1phe4YiBtSGGPdzavnwzdtZ00gje/hl2oAJHDse1FcZ0YuecM2oJ2oiFrCbtLYq01eP2PqX0URtX/g/KzMFTJKjOxmimlLvk8AEDsGgAJ4EAo2WIs7QHMxfQAQOCsfdV9fzFHbMjgJ52kURcE0rD51iI1Z2W4GRbZ4kH1zWoZvAM4wasU0mvCtFglOOX5iGMHiheB bob at work"

var machine = Config{InstanceID: "3f1c", Hostname: "web", SSHKeys: []string{testKey}}

func with(change func(*Config)) Config {
	c := machine
	change(&c)
	return c
}

// seeds are the golden cases; each is a folder of testdata with the files of
// the seed. They were run through the handlers and the schema of cloud-init
// 22.4 (Debian 12), which merged the multi-parts as meant and took all of it
// but the empty list of "nousers", the user's own. cloud-init itself is no
// dependency of the tests: installed, it would configure the next boot of the
// machine that they run on. The boot of the Debian guest is the standing check.
var seeds = map[string]Config{
	"least":    {InstanceID: "iid-1"},
	"machine":  machine,
	"twocards": with(func(c *Config) { c.MACs = []string{"52:54:00:12:34:56", "52-54-00-12-34-57"} }),
	"user": with(func(c *Config) {
		c.Hostname, c.User, c.Password = "web.example.org", "ann", "s3cret"
		c.SSHKeys = []string{testKey, rsaKey}
	}),
	"root":     with(func(c *Config) { c.User = "root" }),
	"password": with(func(c *Config) { c.Password = "cirros: \"✓\"" }),
	"merged": with(func(c *Config) {
		c.User, c.Password = "ann", "x"
		c.UserData = []byte(`#cloud-config
# mine
hostname: mine        # wins
chpasswd: {expire: true}
ssh_authorized_keys:
  - ` + testKey + `
  - ` + rsaKey + `
users:
  - name: bob
    groups: [wheel]
runcmd:
  - [touch, /x]
`)
	}),
	"otherusers": with(func(c *Config) { c.UserData = []byte("#cloud-config\nusers:\n  - name: bob\n") }),
	"nousers":    with(func(c *Config) { c.UserData = []byte("#cloud-config\nusers: []\n") }),
	"script":     with(func(c *Config) { c.UserData = []byte("#!/bin/sh\necho hello\n") }),
	"scriptuser": with(func(c *Config) { c.User = "ann"; c.UserData = []byte("#!/bin/sh\necho \"grüß dich\"\r\n") }),
	"jinja": with(func(c *Config) {
		c.UserData = []byte("## template: jinja\n#cloud-config\nhostname: {{ v1.instance_id }}\n")
	}),
	"networkfile": with(func(c *Config) { c.NetworkConfig = []byte("network: {version: 2, ethernets: {eth0: {dhcp4: true}}}") }),
	"multipart": with(func(c *Config) {
		c.UserData = []byte(`MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="==lamina=="

--==lamina==
Content-Type: text/x-shellscript

#!/bin/sh
true
--==lamina==
Content-Type: text/cloud-config

#cloud-config
hostname: theirs
users: [{name: bob}]
--==lamina==--
`)
	}),
}

func TestGolden(t *testing.T) {
	for name, c := range seeds {
		t.Run(name, func(t *testing.T) {
			files, err := c.files()
			if err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join("testdata", name)
			if *update {
				if err := os.RemoveAll(dir); err != nil {
					t.Fatal(err)
				}
				if err := os.MkdirAll(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				for _, f := range files {
					if err := os.WriteFile(filepath.Join(dir, f.name), f.data, 0o644); err != nil {
						t.Fatal(err)
					}
				}
			}
			golden, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			if len(golden) != len(files) {
				t.Errorf("%d files, want %d", len(files), len(golden))
			}
			for _, f := range files {
				want, err := os.ReadFile(filepath.Join(dir, f.name))
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(f.data, want) {
					t.Errorf("%s:\n%s\nwant:\n%s", f.name, f.data, want)
				}
			}
		})
	}
}

func TestUserDataRefused(t *testing.T) {
	for _, tc := range []struct{ data, want string }{
		{"hello\nworld", `"hello"`},
		{"#cloud-config\n- a\n", "line 2"},
		{"#cloud-config\na: [", "not YAML"},
		{"#cloud-config\na: 1\n---\nb: 2\n", "more than one"},
		{"\x1f\x8bnot gzip", "gzip"},
		{"MIME-Version: 1.0\n\nx", "Content-Type"},
		{"Content-Type: multipart/mixed\n\nx", "boundary"},
		{"Content-Type: \n\nx", "Content-Type"},
		{"\x7fELF", "ignore"},
	} {
		c := machine
		c.UserData = []byte(tc.data)
		if _, err := Build(c); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: %v, want %q in it", tc.data, err, tc.want)
		}
	}
}

// Every stock reader finds the files under their real names, by Rock Ridge and
// by Joliet, with the bytes that went in.
func TestReadBack(t *testing.T) {
	c := seeds["user"]
	c.MACs = seeds["twocards"].MACs
	iso := filepath.Join(t.TempDir(), "seed.iso")
	if err := Write(iso, c); err != nil {
		t.Fatal(err)
	}
	files, err := c.files()
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != 3 {
		t.Fatalf("%d files", len(files))
	}
	out := filepath.Join(t.TempDir(), "out")
	run(t, "xorriso", "-report_about", "SORRY", "-osirrox", "on", "-indev", iso, "-extract", "/", out)
	for _, f := range files {
		for _, ext := range []string{"-R", "-J"} {
			if got := run(t, "isoinfo", ext, "-x", "/"+f.name, "-i", iso); got != string(f.data) {
				t.Errorf("isoinfo %s: %s: %q", ext, f.name, got)
			}
		}
		got, err := os.ReadFile(filepath.Join(out, f.name))
		if err != nil || !bytes.Equal(got, f.data) {
			t.Errorf("xorriso: %s: %q, %v", f.name, got, err)
		}
	}
	for _, ext := range []string{"-R", "-J"} {
		names := strings.Fields(run(t, "isoinfo", ext, "-f", "-i", iso))
		if want := []string{"/meta-data", "/network-config", "/user-data"}; strings.Join(names, " ") != strings.Join(want, " ") {
			t.Errorf("isoinfo %s: %q", ext, names)
		}
	}
	// -p reads the file's content, not the cache that a device would have.
	if got := run(t, "blkid", "-p", "-o", "export", iso); !strings.Contains(got, "LABEL=cidata\n") || !strings.Contains(got, "TYPE=iso9660\n") {
		t.Errorf("blkid: %s", got)
	}
}

func run(t *testing.T, tool string, args ...string) string {
	t.Helper()
	r := qemutest.Run(t, tool, args...)
	if r.Status != 0 {
		t.Fatalf("%s %q: status %d\n%s%s", tool, args, r.Status, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

func TestWriteIsSmallPrivateAndTheSame(t *testing.T) {
	dir := t.TempDir()
	c := seeds["user"]
	a, b := filepath.Join(dir, "a.iso"), filepath.Join(dir, "b.iso")
	for _, p := range []string{a, b} {
		if err := Write(p, c); err != nil {
			t.Fatal(err)
		}
	}
	one, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	two, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one, two) {
		t.Error("equal configs gave different files")
	}
	st, err := os.Stat(a)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	if st.Size() < minSectors*sectorSize || st.Size() > 400<<10 || st.Size()%sectorSize != 0 {
		t.Errorf("%d bytes", st.Size())
	}
	if used := st.Sys().(*syscall.Stat_t).Blocks * 512; used > 40<<10 {
		t.Errorf("takes %d bytes of disk", used)
	}
	c.InstanceID = "other"
	other, err := Build(c)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(other, one) {
		t.Error("the instance id changes nothing")
	}
}

// A seed that cannot be written leaves the old one, and no litter.
func TestWriteKeepsTheOldOne(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "seed.iso")
	if err := os.WriteFile(p, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Write(p, Config{}); err == nil {
		t.Fatal("no error")
	}
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Write(filepath.Join(dir, "folder"), machine); err == nil || !strings.Contains(err.Error(), "folder") {
		t.Errorf("over a folder: %v", err)
	}
	if err := Write(filepath.Join(dir, "none", "seed.iso"), machine); err == nil {
		t.Error("no folder, no error")
	}
	if b, err := os.ReadFile(p); err != nil || string(b) != "old" {
		t.Errorf("%q, %v", b, err)
	}
	var names []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		names = append(names, d.Name())
		return err
	})
	if err != nil || len(names) != 3 {
		t.Errorf("%q, %v", names, err)
	}
}

func TestTooManyNames(t *testing.T) {
	files := make([]file, 40)
	for i := range files {
		files[i].name = strings.Repeat(string(rune('a'+i%26)), 20)
	}
	if _, err := buildISO(volumeID, files); err == nil {
		t.Error("no error")
	}
}

// FuzzBuild: no user-data or network-config makes Build panic, and what it
// takes comes out as an image with three files at most.
func FuzzBuild(f *testing.F) {
	for _, c := range seeds {
		f.Add(c.UserData, c.NetworkConfig, c.User)
	}
	f.Add([]byte("#cloud-config\na: &a [*a]\nusers: *a\n"), []byte("<<: *x"), "")
	f.Fuzz(func(t *testing.T, user, network []byte, name string) {
		c := Config{InstanceID: "x", SSHKeys: []string{testKey}, UserData: user, NetworkConfig: network, User: name}
		b, err := Build(c)
		if err == nil && len(b)%sectorSize != 0 {
			t.Errorf("%d bytes", len(b))
		}
	})
}
