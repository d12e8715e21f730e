package virtinstall

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
	"github.com/lamina-vm/lamina/internal/vm/libvirt"
)

// staged is a file that the first run of the machine needs: a kernel, an
// initrd, a seed. It has a name from the beginning, as the document names it,
// and content when the machine is made.
type staged struct {
	path  string
	title string // of the line that is shown while it is made, "" for none
	write func(ctx context.Context, w io.Writer) error
}

// stage plans a file. name is what it is called by.
func (in *installation) stage(name string, write func(context.Context, io.Writer) error) (*staged, error) {
	dir, err := in.scratchDir()
	if err != nil {
		return nil, err
	}
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	f := &staged{path: filepath.Join(dir, "virtinst-"+hex.EncodeToString(b[:])+"-"+name), write: write}
	in.staged = append(in.staged, f)
	return f, nil
}

// makeStaged makes the planned files. What it has made when it fails is in u.
func (in *installation) makeStaged(ctx context.Context, u *undo) error {
	for _, f := range in.staged {
		if f.title != "" {
			in.g.progress("Retrieving '%s'", f.title)
		}
		if err := in.makeFile(ctx, f, u); err != nil {
			return fmt.Errorf("%s: %w", f.path, err)
		}
	}
	return nil
}

func (in *installation) makeFile(ctx context.Context, f *staged, u *undo) error {
	conn := in.g.host.libvirtConn()
	if conn == nil || !conn.Remote() {
		dir := filepath.Dir(f.path)
		// A seed holds passwords. Only the QEMU of libvirt's system daemon, which
		// runs as another user, is let in.
		folder, file := os.FileMode(0o700), os.FileMode(0o600)
		if conn != nil && !conn.Session() {
			folder, file = 0o711, 0o644
		}
		err := os.MkdirAll(dir, folder)
		if err == nil && (conn == nil || writable(dir)) {
			return f.makeLocal(ctx, file, u)
		}
		if conn == nil {
			return err
		}
	}
	return in.upload(ctx, f, u)
}

// makeLocal makes the file here.
func (f *staged) makeLocal(ctx context.Context, mode os.FileMode, u *undo) error {
	w, err := os.OpenFile(f.path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	u.add(removeFile(f.path))
	err = f.write(ctx, w)
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	return err
}

// upload makes the file on another computer, as a volume of libvirt's.
func (in *installation) upload(ctx context.Context, f *staged, u *undo) error {
	tmp, err := os.CreateTemp("", "virtinst-")
	if err != nil {
		return err
	}
	defer func() {
		_ = tmp.Close()
		_ = os.Remove(tmp.Name())
	}()
	if err := f.write(ctx, tmp); err != nil {
		return err
	}
	size, err := tmp.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if _, err := tmp.Seek(0, io.SeekStart); err != nil {
		return err
	}
	pool, err := in.g.openPool(ctx, &disk{file: f.path}, u)
	if err != nil {
		return err
	}
	el := domxml.New("volume")
	el.AddText("name", filepath.Base(f.path))
	el.AddText("capacity", fmt.Sprint(size))
	el.Add(domxml.New("target")).Add(domxml.New("format", "type", "raw"))
	return createVolume(ctx, pool, el.String(), u, func(vol *libvirt.Volume) error { return vol.Upload(ctx, tmp, size) })
}

// paths are the planned files, for those who remove them.
func (in *installation) paths() []string {
	var out []string
	for _, f := range in.staged {
		out = append(out, f.path)
	}
	return out
}
