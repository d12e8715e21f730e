package catalog

import (
	"bufio"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// maxImage bounds what comes out of a compressed image, in bytes.
const maxImage = 1 << 40

// compression is the ending of a name that says how the file is compressed, ""
// for one that is not.
func compression(name string) string {
	for _, s := range []string{".xz", ".gz", ".zst"} {
		if strings.HasSuffix(strings.ToLower(name), s) && len(name) > len(s) {
			return name[len(name)-len(s):]
		}
	}
	return ""
}

// decompress writes what the file at from holds to the new file at to, zeros
// as holes, and returns its size. limit bounds it.
func decompress(ctx context.Context, from, to, ending string, limit int64, report func(done int64)) (size int64, err error) {
	in, err := os.Open(from)
	if err != nil {
		return 0, err
	}
	defer func() { _ = in.Close() }()
	r, err := decompressor(bufio.NewReaderSize(in, 1<<20), strings.ToLower(ending))
	if err != nil {
		return 0, err
	}
	defer func() { _ = r.Close() }() // a reader: nothing to lose
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return 0, err
	}
	defer func() {
		if e := out.Close(); err == nil {
			err = e
		}
	}()
	buf := make([]byte, 1<<20)
	for {
		if err := ctx.Err(); err != nil {
			return size, context.Cause(ctx)
		}
		n, rerr := 0, error(nil)
		for n < len(buf) && rerr == nil {
			var m int
			m, rerr = r.Read(buf[n:])
			n += m
		}
		if size+int64(n) > limit {
			return size, fmt.Errorf("more than %d bytes come out of it", limit)
		}
		if err := writeSparse(out, buf[:n], size); err != nil {
			return size, err
		}
		size += int64(n)
		report(size)
		if rerr == io.EOF {
			break
		}
		if rerr != nil {
			return size, rerr
		}
	}
	if err := out.Truncate(size); err != nil {
		return size, err
	}
	return size, out.Sync()
}

func decompressor(r io.Reader, ending string) (io.ReadCloser, error) {
	switch ending {
	case ".gz":
		return gzip.NewReader(r)
	case ".xz":
		x, err := xz.ReaderConfig{SingleStream: false, DictCap: 64 << 20}.NewReader(r)
		if err != nil {
			return nil, err
		}
		return io.NopCloser(x), nil
	case ".zst":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return nil, fmt.Errorf("%q is no known compression", ending)
}

// writeSparse leaves out blocks of zeros; the caller sets the size at the end.
func writeSparse(f *os.File, b []byte, off int64) error {
	const block = 64 << 10
	for len(b) > 0 {
		n := min(block, len(b))
		if !allZero(b[:n]) {
			if _, err := f.WriteAt(b[:n], off); err != nil {
				return err
			}
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
