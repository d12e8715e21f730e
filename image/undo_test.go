package image

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/internal/underlay"
	"github.com/lamina-vm/lamina/protocol/file"
)

// closing calls after when the file has been closed.
type closing struct {
	block.Writer
	after func()
}

func (c closing) Unwrap() block.Node { return c.Writer }

func (c closing) Close() error {
	err := c.Writer.Close()
	c.after()
	return err
}

// Another program takes the target between its making and its filling: the
// conversion fails and leaves alone what the other one makes there.
func TestConvertTargetTaken(t *testing.T) {
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	if err := os.WriteFile(src, bytes.Repeat([]byte("data"), 1<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	var other *file.File
	ctx := underlay.With(t.Context(), func(path string, n block.Node) block.Node {
		if path != dst || other != nil {
			return n
		}
		return closing{n.(block.Writer), func() {
			locks := file.WriteLocks()
			var err error
			if other, err = file.Open(dst, file.Options{Writable: true, Growable: true, Locks: &locks}); err == nil {
				_, err = other.WriteAt([]byte("theirs"), 0)
			}
			if err != nil {
				t.Error(err)
			}
		}}
	})
	err := Convert(ctx, []string{src}, dst, ConvertOptions{SourceFormat: "raw", Format: "qcow2"})
	if !errors.Is(err, block.ErrInUse) {
		t.Errorf("convert: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(dst); err != nil || !bytes.HasPrefix(b, []byte("theirs")) {
		t.Errorf("the other's file: %d bytes, %v", len(b), err)
	}
}

// A conversion that fails, or is cancelled, leaves no part of an image in a file
// that was there before: neither what it wrote nor what closing it writes.
func TestConvertFailedOntoFile(t *testing.T) {
	for _, format := range []string{"raw", "qcow2"} {
		dir := t.TempDir()
		src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
		for name, n := range map[string]int{src: 8 << 20, dst: 100} {
			if err := os.WriteFile(name, bytes.Repeat([]byte("d"), n), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		err := Convert(ctx, []string{src}, dst, ConvertOptions{SourceFormat: "raw", Format: format, Progress: func(done, _ int64) {
			if done > 0 {
				cancel()
			}
		}})
		cancel()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", format, err)
		}
		if st, err := os.Stat(dst); err != nil || st.Size() != 0 {
			t.Errorf("%s: %v, %v", format, st, err)
		}
	}
}

// The target gets another file's name while it is filled: a failure does not
// touch that one.
func TestConvertTargetReplaced(t *testing.T) {
	dir := t.TempDir()
	src, dst, other := filepath.Join(dir, "src"), filepath.Join(dir, "dst"), filepath.Join(dir, "other")
	for _, name := range []string{src, other} {
		if err := os.WriteFile(name, bytes.Repeat([]byte(name), 1<<10), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := Convert(ctx, []string{src}, dst, ConvertOptions{SourceFormat: "raw", Format: "qcow2", Progress: func(int64, int64) {
		if err := os.Rename(other, dst); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		cancel()
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("convert: %v", err)
	}
	if b, err := os.ReadFile(dst); err != nil || !bytes.HasPrefix(b, []byte(other)) {
		t.Errorf("the other file: %d bytes, %v", len(b), err)
	}
}

// Without locks too, no file that the copy is made from is written to.
func TestConvertOntoSourceData(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	const src, data = "src.qcow2", "src.data"
	qemutest.Img(t, "create", "-q", "-f", "qcow2", "-o", "data_file="+data, src, "1M")
	qemutest.IO(t, "qcow2", src, "write -P 7 0 1M")
	before, err := os.ReadFile(data)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		from, to string
		opts     ConvertOptions
	}{
		"target":          {src, data, ConvertOptions{SourceFormat: "qcow2"}},
		"part":            {src, data, ConvertOptions{SourceFormat: "qcow2", Part: &Part{0, 512}}},
		"new data file":   {src, "x", ConvertOptions{SourceFormat: "qcow2", Format: "qcow2", Values: map[string]string{"data_file": data}}},
		"old data file":   {data, src, ConvertOptions{SourceFormat: "raw", Format: "qcow2", NoCreate: true}},
		"data of backing": {data, "x", ConvertOptions{SourceFormat: "raw", Format: "qcow2", BackingFile: data, BackingFormat: "raw", Values: map[string]string{"data_file": data}}},
	} {
		c.opts.SourceNoLock = true
		if err := Convert(t.Context(), []string{c.from}, c.to, c.opts); !errors.Is(err, ErrSourceIsTarget) {
			t.Errorf("%s: %v", name, err)
		}
		if now, err := os.ReadFile(data); err != nil || !bytes.Equal(now, before) {
			t.Fatalf("%s: the data file changed: %v", name, err)
		}
	}
	// A backing file that is not opened is not made the data file either.
	err = Create(t.Context(), "y", CreateOptions{Format: "qcow2", Size: 1 << 20, Unchecked: true, BackingFile: data, BackingFormat: "raw", Values: map[string]string{"data_file": data}})
	if !errors.Is(err, block.ErrBackingLoop) {
		t.Errorf("create: %v", err)
	}
	if now, err := os.ReadFile(data); err != nil || !bytes.Equal(now, before) {
		t.Errorf("create: the data file changed: %v", err)
	}
}

// A target that somebody writes to, and shares, is refused before it is emptied.
func TestConvertTargetShared(t *testing.T) {
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	for _, name := range []string{src, dst} {
		if err := os.WriteFile(name, bytes.Repeat([]byte(name), 1<<10), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	locks := file.SharedWriteLocks()
	held, err := file.Open(dst, file.Options{Writable: true, Locks: &locks})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"raw", "qcow2"} {
		if err := Convert(t.Context(), []string{src}, dst, ConvertOptions{SourceFormat: "raw", Format: name}); !errors.Is(err, block.ErrInUse) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if b, err := os.ReadFile(dst); err != nil || !bytes.HasPrefix(b, []byte(dst)) {
		t.Errorf("the target: %d bytes, %v", len(b), err)
	}
	if err := held.Close(); err != nil {
		t.Fatal(err)
	}
}
