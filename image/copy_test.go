package image

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/protocol/file"
)

func TestCopy(t *testing.T) {
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	qemutest.Img(t, "create", "-q", "-f", "raw", src, "1073742336")
	qemutest.IO(t, "raw", src, "write -P 1 3M 5M", "write -P 2 900M 64k", "write -P 3 1073741312 512")
	if err := os.Chmod(src, 0o440); err != nil {
		t.Fatal(err)
	}
	res, err := Copy(t.Context(), src, dst, CopyOptions{Format: "raw"})
	if err != nil || res.Target != dst || res.Data < 5<<20 || res.Data > 6<<20 {
		t.Fatalf("%+v, %v", res, err)
	}
	qemutest.RequireSame(t, "raw", src, "raw", dst)
	st, err := os.Stat(dst)
	if err != nil || st.Mode().Perm() != 0o640 || st.Size() != 1073742336 {
		t.Errorf("%v %v", st, err)
	}
	if n, err := diskSizeOf(dst); err != nil || n > 6<<20 {
		t.Errorf("the copy takes %d bytes, %v", n, err)
	}
	// Into a folder, over a file that is there, and onto itself.
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if res, err := Copy(t.Context(), dst, sub, CopyOptions{Format: "raw"}); err != nil || res.Target != filepath.Join(sub, "dst") {
		t.Errorf("%+v, %v", res, err)
	}
	if _, err := Copy(t.Context(), dst, sub, CopyOptions{Format: "raw", NoReplace: true}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("NoReplace: %v", err)
	}
	if _, err := Copy(t.Context(), dst, sub, CopyOptions{Format: "raw"}); err != nil {
		t.Error(err)
	}
	if _, err := Copy(t.Context(), dst, dst, CopyOptions{Format: "raw"}); !errors.Is(err, ErrSourceIsTarget) {
		t.Errorf("onto itself: %v", err)
	}
}

// requireOnly fails where a folder holds anything else.
func requireOnly(t *testing.T, dir string, names ...string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil || len(list) != len(names) {
		t.Errorf("left behind: %v, %v", list, err)
	}
}

// The old target stays where the copy fails.
func TestCopyFails(t *testing.T) {
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", src, "64M")
	qemutest.IO(t, "qcow2", src, "write -P 1 0 20M")
	if err := os.WriteFile(dst, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Copy(ctx, src, dst, CopyOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	held, err := file.Open(dst, file.Options{Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Copy(t.Context(), src, dst, CopyOptions{}); !errors.Is(err, block.ErrInUse) {
		t.Errorf("a target in use: %v", err)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(dst); string(b) != "old" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	writer, err := Open(t.Context(), src, Options{Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Copy(t.Context(), src, dst, CopyOptions{}); !errors.Is(err, block.ErrInUse) {
		t.Errorf("a source in use: %v", err)
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	requireOnly(t, dir, "src", "dst")
}

func TestCopyNames(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.Mkdir("sub", 0o755); err != nil {
		t.Fatal(err)
	}
	qemutest.Img(t, "create", "-q", "-f", "raw", "base", "1M")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", "relative")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", "-b", filepath.Join(dir, "base"), "-F", "raw", "absolute")
	if _, err := Copy(t.Context(), "relative", "sub", CopyOptions{}); !errors.Is(err, ErrNameElsewhere) {
		t.Errorf("another folder: %v", err)
	}
	requireOnly(t, "sub")
	for _, c := range []struct {
		from, to string
		opts     CopyOptions
	}{{"relative", "here", CopyOptions{}}, {"absolute", "sub", CopyOptions{}}, {"relative", "sub", CopyOptions{KeepNames: true}}} {
		if _, err := Copy(t.Context(), c.from, c.to, c.opts); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
	qemutest.RequireSame(t, "qcow2", "relative", "qcow2", "here")
	if _, err := Copy(t.Context(), "absolute", "x", CopyOptions{Untrusted: true}); !errors.Is(err, block.ErrUntrusted) {
		t.Errorf("untrusted: %v", err)
	}
}

// Images that share a data file would change each other.
func TestCopyDataFile(t *testing.T) {
	t.Chdir(t.TempDir())
	qemutest.Img(t, "create", "-q", "-f", "qcow2", "-o", "data_file=data", "src", "1M")
	if _, err := Copy(t.Context(), "src", "dst", CopyOptions{}); !errors.Is(err, ErrSharedData) {
		t.Errorf("%v", err)
	}
	requireOnly(t, ".", "src", "data")
	if _, err := Copy(t.Context(), "src", "dst", CopyOptions{KeepNames: true}); err != nil {
		t.Error(err)
	}
}

// A target that is a link stays one; nobody gets hold of the target while the
// copy is made, and a file that appears in its place meanwhile stays.
func TestCopyTarget(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	qemutest.Img(t, "create", "-q", "-f", "raw", "src", "1M")
	qemutest.IO(t, "raw", "src", "write -P 1 0 1M")
	for _, d := range []string{"a", "b"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.WriteFile("b/old", []byte("old"), 0o600), os.Symlink("../b/old", "a/old"), os.Symlink("../b/new", "a/new")); err != nil {
		t.Fatal(err)
	}
	tried := false
	res, err := Copy(t.Context(), "src", "a/old", CopyOptions{Format: "raw", Progress: func(int64, int64) {
		tried = true
		if f, err := file.Open("b/old", file.Options{Writable: true}); !errors.Is(err, block.ErrInUse) {
			t.Errorf("the target while it is copied to: %v", err)
			_ = f.Close()
		}
	}})
	if err != nil || !tried || res.Target != "a/old" {
		t.Errorf("%+v, %v", res, err)
	}
	if _, err := Copy(t.Context(), "src", "a/new", CopyOptions{Format: "raw"}); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"old", "new"} {
		if st, err := os.Lstat("a/" + name); err != nil || st.Mode()&fs.ModeSymlink == 0 {
			t.Errorf("a/%s is no link any more: %v", name, err)
		}
		qemutest.RequireSame(t, "raw", "src", "raw", "b/"+name)
	}
	_, err = Copy(t.Context(), "src", "late", CopyOptions{Format: "raw", Progress: func(int64, int64) {
		if err := os.WriteFile("late", []byte("mine"), 0o600); err != nil {
			t.Error(err)
		}
	}})
	if b, rerr := os.ReadFile("late"); !errors.Is(err, fs.ErrExist) || rerr != nil || string(b) != "mine" {
		t.Errorf("%q, %v, %v", b, err, rerr)
	}
	requireOnly(t, ".", "a", "b", "late", "src")
	requireOnly(t, "b", "old", "new")
}
