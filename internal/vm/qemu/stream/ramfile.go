package stream

import (
	"errors"
	"fmt"
	"io"
	"math/bits"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxGather is how many pages are written with one call.
const maxGather = 256

// ramFile is the file of the guest's memory. Pages that follow one another are
// written together.
type ramFile struct {
	f       *os.File
	raw     syscall.RawConn // by which a call keeps the descriptor from being closed
	size    int64
	written *atomic.Int64

	// data are the pages that the file has, stale those that it has and that are
	// zeros by now: a bit for each.
	data, stale []uint64

	run   [][]byte // pages that were not written yet, from offset start
	start int64
}

func newRAMFile(f *os.File, size int64, written *atomic.Int64) (*ramFile, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() != 0 {
		return nil, fmt.Errorf("%s is no empty file", f.Name())
	}
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	words := (size/PageSize + 63) / 64
	return &ramFile{f: f, raw: raw, size: size, written: written, data: make([]uint64, words), stale: make([]uint64, words), run: make([][]byte, 0, maxGather)}, nil
}

// put notes a page, which must stay as it is until flush.
func (m *ramFile) put(offset int64, page []byte) error {
	if len(m.run) == maxGather || m.start+int64(len(m.run))*PageSize != offset {
		if err := m.flush(); err != nil {
			return err
		}
		m.start = offset
	}
	m.run = append(m.run, page)
	n := offset / PageSize
	m.data[n/64] |= 1 << (n % 64)
	m.stale[n/64] &^= 1 << (n % 64)
	return nil
}

// zero notes that a page is zeros.
func (m *ramFile) zero(offset int64) {
	n := offset / PageSize
	bit := uint64(1) << (n % 64)
	m.stale[n/64] |= m.data[n/64] & bit
	m.data[n/64] &^= bit
}

// flush writes what was put.
func (m *ramFile) flush() error {
	for pages := m.run; len(pages) > 0; {
		var n int
		err := m.call(func(fd int) (err error) {
			n, err = unix.Pwritev(fd, pages, m.start)
			return err
		})
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "write", Path: m.f.Name(), Err: err}
		}
		if n == 0 {
			return &os.PathError{Op: "write", Path: m.f.Name(), Err: io.ErrShortWrite}
		}
		m.written.Add(int64(n))
		m.start += int64(n)
		for n > 0 {
			cut := min(n, len(pages[0]))
			n -= cut
			if pages[0] = pages[0][cut:]; len(pages[0]) == 0 {
				pages = pages[1:]
			}
		}
	}
	m.run = m.run[:0]
	return nil
}

func (m *ramFile) call(f func(fd int) error) error {
	var err error
	if cerr := m.raw.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// finish makes holes of the pages that are zeros by now.
func (m *ramFile) finish() error {
	if err := m.flush(); err != nil {
		return err
	}
	return runs(m.stale, func(first, n int64) error {
		return m.punch(first*PageSize, n*PageSize)
	})
}

// punch makes a hole, or writes zeros where the file system has none.
func (m *ramFile) punch(offset, n int64) error {
	for {
		err := m.call(func(fd int) error {
			return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, n)
		})
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS):
			zeros := make([]byte, min(n, 1<<20))
			for ; n > 0; n -= int64(len(zeros)) {
				zeros = zeros[:min(n, int64(len(zeros)))]
				if _, err := m.f.WriteAt(zeros, offset); err != nil {
					return err
				}
				offset += int64(len(zeros))
			}
			return nil
		case err != nil:
			return &os.PathError{Op: "punch a hole into", Path: m.f.Name(), Err: err}
		}
		return nil
	}
}

// bytes is how much of the file is no holes.
func (m *ramFile) bytes() int64 { return count(m.data) * PageSize }

func count(set []uint64) (n int64) {
	for _, w := range set {
		n += int64(bits.OnesCount64(w))
	}
	return n
}

// runs calls f for each run of set bits.
func runs(set []uint64, f func(first, n int64) error) error {
	first, n := int64(0), int64(0)
	for i, w := range set {
		if w == 0 {
			continue
		}
		for b := int64(0); b < 64; b++ {
			if w>>b&1 == 0 {
				continue
			}
			at := int64(i)*64 + b
			if n > 0 && at == first+n {
				n++
				continue
			}
			if n > 0 {
				if err := f(first, n); err != nil {
					return err
				}
			}
			first, n = at, 1
		}
	}
	if n == 0 {
		return nil
	}
	return f(first, n)
}
