package daemon

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/qemutest"
)

// tamper changes the state database behind the daemon's back.
func (x *tester) tamper(statement string) error {
	db, err := sql.Open("sqlite", x.home.Database())
	if err != nil {
		return err
	}
	_, err = db.Exec(statement)
	return errors.Join(err, db.Close())
}

// write writes to the disk of a fake machine.
func (x *tester) write(path string) {
	x.Helper()
	b, err := os.ReadFile(path)
	if err := errors.Join(err, os.WriteFile(path, append(b, "\nwritten"...), 0o600)); err != nil {
		x.Fatal(err)
	}
}

// edit changes a file in place: a byte in its middle is another one. With secret its
// times are what they were, as far as a program can put them back.
func edit(path string, secret bool) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	b := make([]byte, 1)
	_, err = f.ReadAt(b, st.Size()/2)
	b[0] ^= 1
	if err == nil {
		_, err = f.WriteAt(b, st.Size()/2)
	}
	err = errors.Join(err, f.Close(), os.Chmod(path, st.Mode().Perm()))
	when := st.ModTime()
	if !secret {
		when = when.Add(time.Second)
	}
	return errors.Join(err, os.Chtimes(path, when, when))
}

// copyOver puts a copy of a file in its place.
func copyOver(path string) error {
	st, err := os.Stat(path)
	b, err1 := os.ReadFile(path)
	if err := errors.Join(err, err1); err != nil {
		return err
	}
	return errors.Join(os.WriteFile(path+".x", b, st.Mode().Perm()), os.Chtimes(path+".x", st.ModTime(), st.ModTime()), os.Rename(path+".x", path))
}

// byLink puts a symbolic link in the place of a file.
func byLink(path string) error {
	return errors.Join(os.Rename(path, path+".away"), os.Symlink(path+".away", path))
}

// in is the tester in a subtest.
func (x *tester) in(t *testing.T) *tester {
	sub := *x
	sub.TB = t
	return &sub
}

// says fails the test unless an error has all the words.
func (x *tester) says(what string, e *api.Error, words ...string) {
	x.Helper()
	if e == nil {
		x.Errorf("%s: no error, want one with %q", what, words)
		return
	}
	for _, w := range words {
		if !strings.Contains(e.Message, w) {
			x.Errorf("%s: %v; %q is missing", what, e, w)
		}
	}
}

// remove removes a machine, also one that runs.
func (x *tester) remove(name string) {
	x.Helper()
	if _, e := x.call("DELETE", "/v1/machines/"+name+"?force=1", nil, nil); e != nil {
		x.Error(e)
	}
}

// fileTampering is what happens to files, and what is found of it: how a start says it,
// and what a look at the whole content (verify) comes to, "" if it takes the file back
// into use.
var fileTampering = []struct {
	name   string
	change func(path string) error
	start  string
	verify string
	back   func(path string) error // puts it back, where that can be done
}{
	{"a byte", func(p string) error { return edit(p, false) }, "was written", "has SHA-256", func(p string) error { return edit(p, false) }},
	{"a byte in secret", func(p string) error { return edit(p, true) }, "was changed, or given another mode", "has SHA-256", func(p string) error { return edit(p, true) }},
	{"another mode", func(p string) error { return os.Chmod(p, 0o640) }, "given another mode", "", nil},
	{"touched", func(p string) error { return os.Chtimes(p, time.Now(), time.Unix(1e9, 0)) }, "was written", "", nil},
	{"a copy in its place", copyOver, "is another file of the same size and time", "", nil},
	{"moved away", func(p string) error { return os.Rename(p, p+".away") }, "is gone", "no such file", func(p string) error { return os.Rename(p+".away", p) }},
	{"a link in its place", byLink, "is no regular file", "is no regular file", func(p string) error { return os.Rename(p+".away", p) }},
	{"a folder in its place", func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o700)) }, "is no regular file", "is no regular file", nil},
	{"cut", func(p string) error { return os.Truncate(p, 3) }, "has 3 bytes in place of", "has SHA-256", nil},
	{"zero length", func(p string) error { return os.Truncate(p, 0) }, "has 0 bytes in place of", "has SHA-256", nil},
	{"another file", func(p string) error { return errors.Join(os.Remove(p), os.WriteFile(p, []byte("other"), 0o444)) }, "has 5 bytes in place of", "has SHA-256", nil},
}

// TestTamperedBase: whatever happens to an image below a machine, at the bottom of the
// chain or in its middle, is found before there is a process, and the message names the
// file and the remedy.
func TestTamperedBase(t *testing.T) {
	d := &fakeDriver{}
	x := layered(t, d)
	for _, c := range fileTampering {
		for _, which := range []string{"bottom", "middle"} {
			t.Run(c.name+" "+which, func(t *testing.T) {
				x := x.in(t)
				name, tampered, path := x.tower(c.name, which == "middle")
				defer x.remove("m")
				if err := c.change(path); err != nil {
					t.Fatal(err)
				}
				_, before := d.count()
				for what, r := range map[string]struct {
					path string
					body any
				}{
					"start": {"machines/m/start", api.StartRequest{}}, "cold start": {"machines/m/start", api.StartRequest{Warm: api.WarmNever}},
					"clone":   {"clones", api.CloneRequest{Template: name, Names: []string{"n"}, Start: true}},
					"flatten": {"machines/m/flatten", api.FlattenRequest{}},
				} {
					e := second(x.stream("POST", "/v1/"+r.path, r.body, nil))
					x.says(what, e, path, c.start, "template was changed", ": "+tampered+":", "lamina template verify "+tampered)
				}
				if _, after := d.count(); after != before {
					t.Errorf("%d processes were started", after-before)
				}
				verify := func() *api.Error {
					return second(x.stream("POST", "/v1/templates/"+name+"/verify", nil, nil))
				}
				if c.verify != "" {
					x.says("verify", verify(), path, c.verify, tampered)
					if c.back == nil {
						return
					}
					if err := c.back(path); err != nil {
						t.Fatal(err)
					}
				}
				if e := verify(); e != nil {
					t.Fatalf("verify: %v", e)
				}
				x.must(x.stream("POST", "/v1/machines/m/start", api.StartRequest{}, nil))
			})
		}
	}
	// What moves no time (a disk that errs, a program that knows how) a start cannot find,
	// as it reads no content: verify does.
	name, _, path := x.tower("rot", true)
	if err := edit(path, true); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := errors.Join(unix.Stat(path, &st), x.tamper(fmt.Sprintf(`UPDATE templates SET file_ctime = %d WHERE digest = '%s'`,
		st.Ctim.Nano(), strings.TrimSuffix(filepath.Base(path), ".qcow2")))); err != nil {
		t.Fatal(err)
	}
	x.must(x.stream("POST", "/v1/machines/m/start", api.StartRequest{}, nil))
	x.says("verify", second(x.stream("POST", "/v1/templates/"+name+"/verify", nil, nil)), path, "has SHA-256")
}

// tower makes machine m over three layers that are nobody else's, the first of which is an
// imported image. It returns the name of the topmost, and name and path of the one to tamper with.
func (x *tester) tower(what string, middle bool) (top, tampered, path string) {
	x.Helper()
	name := fmt.Sprintf("%s-%v", strings.ReplaceAll(what, " ", "-"), middle)
	image := filepath.Join(x.TempDir(), "i.raw")
	if err := errors.Join(os.WriteFile(image, []byte(name), 0o600), os.Truncate(image, 1<<20)); err != nil {
		x.Fatal(err)
	}
	x.must(x.stream("POST", "/v1/templates", api.ImportRequest{Source: image, Format: "raw", Name: name}, nil))
	x.clone(name, "m")
	for i := range 2 {
		qemutest.IO(x, "qcow2", x.disk("m"), fmt.Sprintf("write -P %d %dk 64k", i+1, 64*i))
		x.must(x.stream("POST", "/v1/machines/m/commit", api.CommitRequest{Name: fmt.Sprintf("%s-%d", name, i)}, nil))
	}
	if middle {
		tampered = name + "-0"
		return name + "-1", tampered, x.home.LayerDisk(x.layerOf(tampered).Digest)
	}
	return name + "-1", name, x.home.TemplateDisk(x.layerOf(name).Digest)
}

// TestTamperedDisk: a machine's own disk that lies over something else than the store put
// it over is found before its start, and before anything is made of it.
func TestTamperedDisk(t *testing.T) {
	d := &fakeDriver{}
	x := layered(t, d)
	x.clone("base", "a")
	x.must(x.stream("POST", "/v1/machines/a/commit", api.CommitRequest{Name: "v2"}, nil))
	base, v2 := x.layerOf("base").Digest, x.layerOf("v2").Digest
	other := filepath.Join(t.TempDir(), "other.qcow2")
	qemutest.Img(t, "create", "-f", "qcow2", other, "8M")
	rebase := func(args ...string) func(string) error {
		return func(path string) error {
			qemutest.Img(t, append(append([]string{"rebase", "-u"}, args...), path)...)
			return nil
		}
	}
	for _, c := range []struct {
		name   string
		change func(path string) error
		says   string // "" is nothing wrong
		flat   bool   // of a machine that needs nothing below
	}{
		{name: "over another image", change: rebase("-b", other, "-F", "qcow2"), says: "names the backing file \"" + other},
		{name: "over a file of the host", change: rebase("-b", "/etc/passwd", "-F", "raw"), says: "names the backing file \"/etc/passwd\""},
		{name: "over the layer below its base", change: rebase("-b", "../../templates/"+base+".qcow2", "-F", "qcow2"), says: "and lay over v2"},
		{name: "over a name that QEMU reads otherwise", change: rebase("-b", `json:{"driver":"qcow2","file":{"driver":"file","filename":"`+other+`"}}`, "-F", "qcow2"), says: "names the backing file \"json:"},
		{name: "its base as raw", change: rebase("-b", "../../layers/disks/"+v2+".qcow2", "-F", "raw"), says: "read as \"raw\", which is qcow2"},
		{name: "over nothing", change: rebase("-b", ""), says: "names no backing file, and lay over v2"},
		{name: "its base by another name", change: rebase("-b", x.home.LayerDisk(v2), "-F", "qcow2")},
		{name: "a pipe", change: func(p string) error { return errors.Join(os.Remove(p), unix.Mkfifo(p, 0o600)) }, says: "put it back as it was"},
		{name: "a folder", change: func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o700)) }, says: "put it back as it was"},
		{name: "gone", change: os.Remove, says: "no such file"},
		{name: "zero length", change: func(p string) error { return os.Truncate(p, 0) }, says: "put it back as it was"},
		{name: "no image", change: func(p string) error { return os.WriteFile(p, []byte("text"), 0o600) }, says: "put it back as it was"},
		{name: "its data elsewhere", change: func(p string) error {
			qemutest.Img(t, "create", "-f", "qcow2", "-o", "data_file="+p+".data", p, "8M")
			return nil
		}, says: "keeps its data in another file"},
		{name: "flat over an image", change: rebase("-b", other, "-F", "qcow2"), says: "and had none", flat: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := x.in(t)
			x.clone("v2", "m")
			defer x.remove("m")
			if c.flat {
				x.must(x.stream("POST", "/v1/machines/m/flatten", api.FlattenRequest{}, nil))
			}
			path := x.disk("m")
			good, err := os.ReadFile(path)
			if err := errors.Join(err, c.change(path)); err != nil {
				t.Fatal(err)
			}
			_, before := d.count()
			for what, r := range map[string]struct {
				path string
				body any
			}{
				"start": {"machines/m/start", api.StartRequest{}}, "commit": {"machines/m/commit", api.CommitRequest{Name: "x"}},
				"rebase": {"machines/m/rebase", api.RebaseRequest{Template: "base"}}, "clone": {"machines/m/clone", api.CloneMachineRequest{Names: []string{"n"}}},
				"template": {"template-from", api.TemplateFromRequest{Machine: "m", Name: "x"}},
			} {
				if c.says == "" && what != "start" {
					continue
				}
				e := second(x.stream("POST", "/v1/"+r.path, r.body, nil))
				switch {
				case c.says == "" && e != nil:
					t.Errorf("%s: %v", what, e)
				case c.says != "":
					x.says(what, e, "machine m: its disk was changed", path, c.says)
				}
			}
			if c.says == "" {
				return
			}
			if _, after := d.count(); after != before {
				t.Errorf("%d processes were started", after-before)
			}
			if err := errors.Join(os.RemoveAll(path), os.WriteFile(path, good, 0o600)); err != nil {
				t.Fatal(err)
			}
			x.must(x.stream("POST", "/v1/machines/m/start", api.StartRequest{}, nil))
		})
	}
}
