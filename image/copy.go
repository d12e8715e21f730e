package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/internal/underlay"
	"github.com/lamina-vm/lamina/protocol/file"
)

// CopyOptions are the choices of [Copy].
type CopyOptions struct {
	Format    string         // of the source, as in Options
	Untrusted bool           // as in Options
	Secrets   format.Secrets // as in Options
	// KeepNames copies an image that names other files although its names
	// would mean other files, or none, from the copy's folder, or although
	// the copy shares its data file. DANGER: of images that share a data
	// file only one may be written from then on.
	KeepNames bool
	// NoReplace fails, with an error that matches fs.ErrExist, where the
	// target exists.
	NoReplace bool
	// Progress receives the bytes of the file that are done, of the total,
	// ascending. May be nil.
	Progress func(done, total int64)
}

// CopyResult says how the copy was made.
type CopyResult struct {
	Target string // the new file: the target, or a file in the folder that it is
	// Shared says that the copy shares its storage with the source (a
	// reflink), and takes space only as the two become different.
	Shared bool
	// Size is the length of the file and Data what of it is not holes, in bytes.
	Size, Data int64
}

// ErrSharedData is for a copy of an image whose content lies in an external
// data file: what is written to one of the two would change the other.
var ErrSharedData = errors.New("the copy would share its data file with the image")

// ErrNameElsewhere is for a copy whose backing or data file would be another
// one, as it is named relative to the image's folder.
var ErrNameElsewhere = errors.New("the name leads to another file from the copy's folder")

// Copy copies an image file as it is, with its holes, and by sharing the
// storage where the file system can. The backing file is not copied. The
// source must not be in use by a writer. The target appears complete or not at
// all, and takes the place of a file that nobody uses; a symbolic link stays
// one, to the copy.
func Copy(ctx context.Context, source, target string, opts CopyOptions) (res CopyResult, err error) {
	im, err := Open(ctx, source, Options{Format: opts.Format, NoBacking: true, Untrusted: opts.Untrusted, Secrets: opts.Secrets, use: useSource})
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, im.Close()) }()
	src := im.layers[0].file
	if st, err := os.Stat(target); err == nil && st.IsDir() {
		target = filepath.Join(target, filepath.Base(src.Name()))
	}
	res.Target = target
	if !opts.KeepNames {
		if err := checkNames(im, target); err != nil {
			return res, err
		}
	}
	if target, err = lastLink(target); err != nil {
		return res, err
	}
	mode, old, err := takeTarget(src, target, opts.NoReplace)
	if err != nil {
		return res, err
	}
	if old != nil { // locked until it is replaced
		defer func() { err = errors.Join(err, old.Close()) }()
	}
	tmp, err := os.CreateTemp(filepath.Dir(target), ".lamina-copy-*")
	if err != nil {
		return res, err
	}
	if old != nil {
		keepOwner(tmp, old)
	}
	err = errors.Join(tmp.Chmod(mode), tmp.Close())
	if err == nil {
		err = res.fill(ctx, src, tmp.Name(), opts.Progress)
	}
	if err == nil {
		err = rename(tmp.Name(), target, old == nil)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
		return res, fmt.Errorf("copy %s to %s: %w", source, target, err)
	}
	return res, syncFolder(filepath.Dir(target))
}

// checkNames makes sure that the names in the image mean the same from the
// copy's folder.
func checkNames(im *Image, target string) error {
	l := im.layers[0]
	if l.dataPath != "" {
		return fmt.Errorf("%s: its data file %s: %w: use convert, or copy it too and keep the name", l.Name, l.dataPath, ErrSharedData)
	}
	inf, ok := block.As[format.Informer](l.Node)
	if !ok {
		return nil
	}
	info, err := inf.ImageInfo()
	if err != nil || info.BackingFile == "" {
		return err
	}
	if from, to := combine(l.Name, info.BackingFile), combine(target, info.BackingFile); realPath(from) != realPath(to) {
		return fmt.Errorf("%s: its backing file %s: %w: use rebase -u to name it by its whole path first, or copy it too and keep the name", l.Name, info.BackingFile, ErrNameElsewhere)
	}
	return nil
}

// lastLink returns the file that symbolic links lead to from name, whether it
// exists or not.
func lastLink(name string) (string, error) {
	for range 40 {
		to, err := os.Readlink(name)
		if err != nil {
			return name, nil // no link
		}
		if !filepath.IsAbs(to) {
			to = filepath.Dir(name) + "/" + to // Join would take ".." from it
		}
		name = to
	}
	return "", &os.PathError{Op: "copy", Path: name, Err: unix.ELOOP}
}

// keepOwner gives a new file the owner of the one that it replaces, where the
// system allows that.
func keepOwner(tmp *os.File, old *file.File) {
	st, err := old.Stat()
	if err != nil {
		return
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		_ = tmp.Chown(int(sys.Uid), int(sys.Gid))
	}
}

// rename gives a file its name, where it must not take another one's place
// if isNew.
func rename(from, to string, isNew bool) error {
	if isNew {
		err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
			if err != nil {
				err = &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
			}
			return err
		}
		// A file system that cannot tell.
	}
	return os.Rename(from, to)
}

// takeTarget makes sure that the target may be replaced. It returns the mode
// that the copy gets, and the file that it replaces, locked; nil for none.
func takeTarget(src *file.File, target string, noReplace bool) (os.FileMode, *file.File, error) {
	mode := os.FileMode(0o644)
	from, err := os.Stat(src.Name())
	if err != nil {
		return 0, nil, err
	}
	if from.Mode().IsRegular() {
		mode = from.Mode().Perm() | 0o200 // a copy of a protected template is to be written
	}
	st, err := os.Stat(target)
	if errors.Is(err, os.ErrNotExist) {
		return mode, nil, nil
	}
	switch {
	case err != nil:
		return 0, nil, err
	case os.SameFile(from, st):
		return 0, nil, fmt.Errorf("%s: %w", target, ErrSourceIsTarget)
	case noReplace:
		return 0, nil, &os.PathError{Op: "copy", Path: target, Err: os.ErrExist}
	case !st.Mode().IsRegular():
		return 0, nil, &file.NotRegularError{File: target}
	}
	locks := file.WriteLocks()
	old, err := file.Open(target, file.Options{Writable: true, Locks: &locks})
	if err != nil {
		return 0, nil, err // somebody uses it, or it may not be written
	}
	return st.Mode().Perm(), old, nil
}

// fill copies src into the empty file at path.
func (res *CopyResult) fill(ctx context.Context, src *file.File, path string, progress func(done, total int64)) (err error) {
	f, err := file.Create(path, file.Options{Growable: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	res.Size = src.Size()
	if err := f.Reflink(src); err == nil {
		res.Shared = true
	} else if !errors.Is(err, block.ErrUnsupported) {
		return err
	}
	dst := underlay.Node(ctx, path, f)
	w, ok := block.As[block.Writer](dst)
	if !ok {
		return block.ErrReadOnly
	}
	if r, ok := block.As[block.Resizer](dst); ok && !res.Shared {
		if err := r.Resize(ctx, res.Size, block.ResizeOptions{}); err != nil {
			return err
		}
	}
	for e, err := range src.Extents(0, res.Size) {
		switch {
		case err != nil:
			return err
		case e.IsZero():
		default:
			res.Data += e.Length
			if res.Shared {
				break
			}
			if err := copyRange(ctx, src, f, w, e, progress); err != nil {
				return err
			}
		}
		if progress != nil {
			progress(e.End(), res.Size)
		}
	}
	return w.Flush()
}

// copyRange copies the bytes of an extent, in the kernel if it can.
func copyRange(ctx context.Context, src, dst *file.File, w block.Writer, e block.Extent, progress func(done, total int64)) error {
	buf := make([]byte, min(chunkSize, e.Length))
	inKernel := block.Node(dst) == block.Node(w)
	for off := e.Start; off < e.End(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(int64(32*chunkSize), e.End()-off)
		err := error(block.ErrUnsupported)
		if inKernel {
			err = dst.CopyFrom(src, off, off, n)
		}
		if errors.Is(err, block.ErrUnsupported) {
			inKernel = false
			p := buf[:min(int64(len(buf)), n)]
			n = int64(len(p))
			if k, rerr := src.ReadAt(p, off); rerr != nil && !(errors.Is(rerr, io.EOF) && k == len(p)) {
				return rerr
			}
			_, err = w.WriteAt(p, off)
		}
		if err != nil {
			return err
		}
		off += n
		if progress != nil {
			progress(off, src.Size())
		}
	}
	return nil
}

// syncFolder makes a renamed file survive power loss.
func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
