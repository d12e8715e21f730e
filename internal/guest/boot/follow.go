package boot

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"sync"
	"time"
)

// followInterval is how often a file that has no more to read is looked at
// again. A read at the end costs about 1 µs, so inotify would save nothing.
const followInterval = 20 * time.Millisecond

// Follow reads the file at path from its first byte and, at its end, waits for
// more, until done is closed (the machine ended): then it reads what is left
// and returns io.EOF. A file that is not there yet is waited for. When ctx ends,
// Read returns its error. Close makes a Read that waits return os.ErrClosed.
//
// A file that shrinks (a new boot truncated the log) is read from its first
// byte again.
func Follow(ctx context.Context, path string, done <-chan struct{}) (io.ReadCloser, error) {
	f := &follower{ctx: ctx, path: path, done: done, closed: make(chan struct{})}
	if err := f.open(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return f, nil
}

type follower struct {
	ctx    context.Context
	path   string
	done   <-chan struct{}
	closed chan struct{}
	once   sync.Once

	// mu guards what follows; Read holds it except while it waits.
	mu   sync.Mutex
	file *os.File
	off  int64
}

func (f *follower) open() error {
	file, err := os.Open(f.path)
	if err != nil {
		return err
	}
	f.file = file
	return nil
}

// Read blocks until there is at least one byte, or the end.
func (f *follower) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	var timer *time.Timer
	ended := false
	for {
		n, err := f.try(p)
		if n > 0 || err != nil {
			return n, err
		}
		if ended {
			return 0, io.EOF
		}
		if timer == nil {
			timer = time.NewTimer(followInterval)
			defer timer.Stop()
		} else {
			timer.Reset(followInterval)
		}
		select {
		case <-f.done:
			ended = true // one more look: what was written before the end
		case <-f.ctx.Done():
			return 0, f.ctx.Err()
		case <-f.closed:
			return 0, os.ErrClosed
		case <-timer.C:
		}
	}
}

// try reads once without waiting; 0 bytes and no error is the end for now.
func (f *follower) try(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.closed:
		return 0, os.ErrClosed
	default:
	}
	if f.file == nil {
		if err := f.open(); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return 0, nil
			}
			return 0, err
		}
	}
	n, err := f.file.ReadAt(p, f.off)
	f.off += int64(n)
	if n > 0 {
		return n, nil
	}
	if err != nil && err != io.EOF {
		return 0, err
	}
	st, err := f.file.Stat()
	if err != nil {
		return 0, err
	}
	if st.Size() < f.off {
		f.off = 0
	}
	return 0, nil
}

// Close lets go of the file.
func (f *follower) Close() error {
	f.once.Do(func() { close(f.closed) })
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file == nil {
		return nil
	}
	err := f.file.Close()
	f.file = nil
	return err
}
