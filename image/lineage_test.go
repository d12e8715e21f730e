package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/internal/qemutest"
)

// sketch writes a forest in one line: name(overlays), with what is wrong.
func sketch(dir string, nodes []*LineageNode) string {
	var list []string
	for _, n := range nodes {
		rel, err := filepath.Rel(dir, n.Name)
		if err != nil {
			rel = n.Name
		}
		switch {
		case errors.Is(n.Err, ErrMissingImage):
			rel += "?"
		case errors.Is(n.Err, block.ErrBackingLoop):
			rel += "!"
		case errors.Is(n.Err, ErrNotFollowed):
			rel += "-"
		case n.Err != nil:
			rel += "#"
		}
		if len(n.Overlays) > 0 {
			rel += "(" + sketch(dir, n.Overlays) + ")"
		}
		list = append(list, rel)
	}
	return strings.Join(list, " ")
}

func TestLineage(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.Mkdir("sub", 0o755); err != nil {
		t.Fatal(err)
	}
	create := func(args ...string) { qemutest.Img(t, append([]string{"create", "-q"}, args...)...) }
	create("-f", "raw", "disk.img", "1M")
	create("-f", "raw", "notes", "1M")
	create("-f", "raw", "base", "1M")
	create("-f", "qcow2", "-b", "../base", "-F", "raw", "sub/a.qcow2")
	create("-f", "qcow2", "-b", filepath.Join(dir, "sub/a.qcow2"), "-F", "qcow2", "b.qcow2")
	create("-f", "qcow2", "-b", "sub/a.qcow2", "-F", "qcow2", "c.qcow2")
	create("-u", "-f", "qcow2", "-b", "gone", "-F", "raw", "m.qcow2", "1M")
	create("-u", "-f", "qcow2", "-b", "y", "-F", "qcow2", "x", "1M")
	create("-u", "-f", "qcow2", "-b", "x", "-F", "qcow2", "y", "1M")
	create("-u", "-f", "qcow2", "-b", "./z", "-F", "qcow2", "z", "1M")
	create("-u", "-f", "qcow2", "-b", "nbd:localhost:1", "-F", "raw", "remote.qcow2", "1M")
	if err := os.WriteFile("bad.qcow2", []byte("QFI\xfb\x00\x00\x00\x03"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		names     []string
		untrusted bool
		want      string
	}{
		{[]string{"."}, false, "bad.qcow2# disk.img gone?(m.qcow2) remote.qcow2- base(sub/a.qcow2(b.qcow2 c.qcow2)) y!(x) z!"},
		{[]string{"b.qcow2"}, false, "base(sub/a.qcow2(b.qcow2))"},
		{[]string{"b.qcow2", "c.qcow2", "base"}, false, "base(sub/a.qcow2(b.qcow2 c.qcow2))"},
		{[]string{"b.qcow2"}, true, "b.qcow2-"},
		{[]string{"sub", "b.qcow2"}, true, "sub/a.qcow2-(b.qcow2)"},
		{[]string{"notes"}, false, "notes"},
	} {
		roots, err := Lineage(t.Context(), c.names, LineageOptions{Untrusted: c.untrusted})
		for i, n := range roots { // names lead to absolute paths by themselves
			roots[i].Name = strings.TrimPrefix(n.Name, dir+"/")
		}
		got := strings.ReplaceAll(sketch(".", roots), "../", "")
		got = strings.ReplaceAll(strings.ReplaceAll(got, strings.TrimPrefix(dir, "/")+"/", ""), "(/", "(")
		if err != nil || got != c.want {
			t.Errorf("%v: %q, %v, want %q", c.names, got, err, c.want)
		}
	}
	if _, err := Lineage(t.Context(), []string{"nope"}, LineageOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

// A chain of any length is no recursion, and is quick.
func TestLineageDeep(t *testing.T) {
	dir := t.TempDir()
	below := ""
	for i := range 2000 {
		name := fmt.Sprintf("%04d.qcow2", i)
		err := Create(t.Context(), filepath.Join(dir, name), CreateOptions{Format: "qcow2", Size: 1 << 20, BackingFile: below, BackingFormat: map[bool]string{true: "qcow2"}[below != ""], Unchecked: true, NoFlush: true})
		if err != nil {
			t.Fatal(err)
		}
		below = name
	}
	roots, err := Lineage(t.Context(), []string{filepath.Join(dir, below)}, LineageOptions{})
	depth := 0
	for n := roots; err == nil && len(n) == 1; n = n[0].Overlays {
		depth++
	}
	if err != nil || depth != 2000 {
		t.Errorf("depth %d, %v", depth, err)
	}
}

// A folder that cannot be read, here as its path is too long, hides no other.
func TestLineageUnreadableFolder(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := Create(t.Context(), "a.qcow2", CreateOptions{Format: "qcow2", Size: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	for range 22 {
		d := strings.Repeat("d", 200)
		if err := errors.Join(os.Mkdir(d, 0o755), os.Chdir(d)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chdir(dir); err != nil {
		t.Fatal(err)
	}
	roots, err := Lineage(t.Context(), []string{"."}, LineageOptions{})
	if err != nil || len(roots) != 2 || roots[0].Name != "a.qcow2" || !errors.Is(roots[1].Err, syscall.ENAMETOOLONG) {
		t.Errorf("%+v, %v", roots, err)
	}
}
