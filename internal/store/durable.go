package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// syncPath makes a file's content, or a folder's entries, survive power loss.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// syncFileSystem makes everything on the file system of path survive power
// loss. It reports an error of any write-back since the file system was last
// asked (Linux 5.8 and later), also of other programs' files: too many
// failures rather than too few.
func syncFileSystem(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	err = unix.Syncfs(int(f.Fd()))
	if err != nil {
		err = fmt.Errorf("syncfs %s: %w", path, err)
	}
	return errors.Join(err, f.Close())
}

// blockSize is what file systems allocate at the least.
const blockSize = 4096

// writeSparse makes a new file of mode 0600 with holes where content has
// blocks of zeros: more than half of a seed is.
func writeSparse(path string, content []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(int64(len(content))); err != nil {
		return err
	}
	var zeros [blockSize]byte
	for off := 0; off < len(content); {
		end := min(off+blockSize, len(content))
		if bytes.Equal(content[off:end], zeros[:end-off]) {
			off = end
			continue
		}
		// As much as there is up to the next hole in one write.
		begin := off
		for off < len(content) && !bytes.Equal(content[off:end], zeros[:end-off]) {
			off = end
			end = min(off+blockSize, len(content))
		}
		if _, err := f.WriteAt(content[begin:off], int64(begin)); err != nil {
			return err
		}
	}
	return nil
}

// copySparse copies a file, with its holes, to target, which is empty or not there. It
// shares the storage where the file system can.
func copySparse(ctx context.Context, source, target string) (err error) {
	in, err := os.Open(source)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }() // only read
	out, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil {
		return nil
	}
	if err := out.Truncate(st.Size()); err != nil {
		return err
	}
	for off := int64(0); off < st.Size(); {
		begin, err := unix.Seek(int(in.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // holes to the end
		}
		end := st.Size()
		if err == nil {
			end, err = unix.Seek(int(in.Fd()), begin, unix.SEEK_HOLE)
		}
		if err != nil {
			return fmt.Errorf("find the data of %s: %w", source, err)
		}
		if err := copyRange(ctx, in, out, begin, end-begin); err != nil {
			return fmt.Errorf("copy %s: %w", source, err)
		}
		off = end
	}
	return nil
}

// copyRange copies bytes to the same offset.
func copyRange(ctx context.Context, in, out *os.File, off, n int64) error {
	buf := make([]byte, min(n, 1<<20))
	for n > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		part := buf[:min(n, int64(len(buf)))]
		if _, err := in.ReadAt(part, off); err != nil {
			return err
		}
		if _, err := out.WriteAt(part, off); err != nil {
			return err
		}
		off, n = off+int64(len(part)), n-int64(len(part))
	}
	return nil
}
