package virtinstall

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// The format of a disk whose file cannot be read is what the command line
// says, and never a guess.
func TestUnreadableDisk(t *testing.T) {
	for doc, want := range map[string]string{
		`<disk device="disk"/>`: "", `<disk device="cdrom"/>`: "raw",
		`<disk device="disk"><driver type="qcow2"/></disk>`: "qcow2",
	} {
		el, err := domxml.Parse([]byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		d := &disk{el: el, file: "/x.qcow2"}
		err = d.setUnreadable(newGuest(&arguments{}, nil, Streams{Out: io.Discard, Err: io.Discard}))
		if got := el.Get("driver/@type"); got != want || (err == nil) != (want != "") {
			t.Errorf("%s: format %q, %v", doc, got, err)
		}
		if err != nil && !strings.Contains(err.Error(), "driver.type=qcow2") {
			t.Errorf("no remedy: %v", err)
		}
	}
}

// On plain QEMU nobody else reads what is made for a machine: a seed holds
// passwords.
func TestPrivateFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data", "images")
	g := newGuest(&arguments{}, newPlainHost(), Streams{Out: io.Discard, Err: io.Discard})
	in := &installation{g: g, scratch: dir}
	f, err := in.stage("seed.iso", func(_ context.Context, w io.Writer) error { _, err := io.WriteString(w, "x"); return err })
	if err != nil {
		t.Fatal(err)
	}
	var u undo
	if err := in.makeStaged(t.Context(), &u); err != nil {
		t.Fatal(err)
	}
	d := &disk{file: filepath.Join(dir, "disks", "d.img"), format: "raw", size: 1 << 20}
	if err := d.create(t.Context(), &u); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Dir(dir), dir, filepath.Dir(d.file), f.path, d.file} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v", path, st.Mode(), err)
		}
	}
}
