package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/internal/underlay"
)

// stopper makes the n-th change of a file, and all later ones, fail, as if the
// program had been killed there.
type stopper struct {
	block.Writer
	left *int
	stop func() // called at the first one
}

var errStopped = errors.New("stopped")

func (s stopper) Unwrap() block.Node { return s.Writer }

func (s stopper) spend() error {
	if *s.left--; *s.left >= 0 {
		return nil
	}
	if *s.left == -1 {
		s.stop()
	}
	return errStopped
}

func (s stopper) WriteAt(p []byte, off int64) (int, error) {
	if err := s.spend(); err != nil {
		return 0, err
	}
	return s.Writer.WriteAt(p, off)
}

func (s stopper) WriteZeroes(off, n int64, flags block.ZeroFlags) error {
	if err := s.spend(); err != nil {
		return err
	}
	return s.Writer.(block.Zeroer).WriteZeroes(off, n, flags)
}

func (s stopper) Resize(ctx context.Context, size int64, opts block.ResizeOptions) error {
	if err := s.spend(); err != nil {
		return err
	}
	return s.Writer.(block.Resizer).Resize(ctx, size, opts)
}

// TestUnfinished stops conversions at every change of the target: it is then
// as before, refused by name, or complete, for us and for the stock tool; the
// same conversion again completes it, and no trace of the mark remains.
func TestUnfinished(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	content := make([]byte, 300<<10)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range content[:200<<10] {
		content[i] = byte(r.Uint32())
	}
	if err := os.WriteFile(src, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		values map[string]string
		stock  string // says of a marked image
	}{
		{"raw", nil, ""},
		{"qcow2", nil, "Unsupported qcow2 feature(s): unfinished (its writer was interrupted)"},
		{"qcow2", map[string]string{"cluster_size": "512"}, "Unsupported qcow2 feature(s): Unknown incompatible feature: 4000000000000000"},
		{"qcow2", map[string]string{"compat": "0.10"}, "Unsupported qcow2 version 1818324274"},
	} {
		for _, into := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s %v into %v", c.name, c.values, into), func(t *testing.T) {
				testUnfinished(t, src, content, c.name, c.values, into, c.stock)
			})
		}
	}
}

func testUnfinished(t *testing.T, src string, content []byte, name string, values map[string]string, into bool, stock string) {
	dst := filepath.Join(t.TempDir(), "dst")
	old := bytes.Repeat([]byte("old"), 100<<10)
	oldFile := filepath.Join(t.TempDir(), "old")
	opts := image.ConvertOptions{SourceFormat: "raw", Format: name, Values: values, NoCreate: into, Cache: image.CacheWriteback, Workers: 1}
	if into {
		opts.Values = nil
		p := filepath.Join(t.TempDir(), "p")
		if err := os.WriteFile(p, old, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := image.Convert(t.Context(), []string{p}, oldFile, image.ConvertOptions{SourceFormat: "raw", Format: name, Values: values}); err != nil {
			t.Fatal(err)
		}
	}
	// What is made and fails is removed; the copy is what a kill leaves.
	killed := filepath.Join(t.TempDir(), "killed")
	marked := 0
	for n := 0; ; n++ {
		if into {
			copyFile(t, oldFile, dst)
		}
		left := n
		ctx := underlay.With(t.Context(), func(path string, node block.Node) block.Node {
			if w, ok := node.(block.Writer); ok && path == dst {
				return stopper{w, &left, func() { copyFile(t, dst, killed) }}
			}
			return node
		})
		err := image.Convert(ctx, []string{src}, dst, opts)
		if err == nil {
			break
		}
		if !errors.Is(err, errStopped) {
			t.Fatal(err)
		}
		if _, err := os.Stat(dst); !into && !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("stopped after %d changes: the target is still there: %v", n, err)
		}
		im, err := image.Open(t.Context(), killed, image.Options{Format: name})
		if err == nil {
			got := make([]byte, im.Node().Size())
			if _, err := im.Node().ReadAt(got, 0); err != nil || into && !bytes.Equal(got, old) || !into && len(got) > 0 {
				t.Fatalf("stopped after %d changes: neither as before nor marked: %v", n, err)
			}
			_ = im.Close()
			continue
		}
		if st, err := os.Stat(killed); err == nil && st.Size() == 0 && !into {
			continue // no image yet, nor anything else
		}
		marked++
		if !errors.Is(err, block.ErrUnfinished) {
			t.Fatalf("stopped after %d changes: %v", n, err)
		}
		if r := qemutest.Run(t, "qemu-img", "info", killed); stock != "" && !strings.Contains(r.Stderr, stock) {
			t.Fatalf("stock says %q", r.Stderr)
		}
		again := opts
		again.NoCreate = true
		if err := image.Convert(t.Context(), []string{src}, killed, again); err != nil && (into || !errors.Is(err, block.ErrCorrupt) && !errors.Is(err, image.ErrTargetTooSmall)) {
			t.Fatalf("stopped after %d changes, again: %v", n, err)
		} else if err == nil {
			requireWhole(t, killed, name, content)
		}
	}
	requireWhole(t, dst, name, content)
	if marked < 2 {
		t.Errorf("only %d marked states seen", marked)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func requireWhole(t *testing.T, dst, name string, content []byte) {
	t.Helper()
	im, err := image.Open(t.Context(), dst, image.Options{Format: name})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = im.Close() }()
	got := make([]byte, len(content))
	if _, err := im.Node().ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("content differs, %v", err)
	}
	if name == "qcow2" {
		if r := qemutest.Run(t, "qemu-img", "check", "-f", name, dst); r.Status != 0 && r.Status != 3 { // leaks are allowed
			t.Fatal(r.Stdout, r.Stderr)
		}
	}
}
