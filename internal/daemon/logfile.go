package daemon

import (
	"errors"
	"fmt"
	"os"
	"sync"
)

// maxLog is the size at which the daemon's log is put aside as LOG.1, which
// replaces an older one: the log never takes more than twice this.
const maxLog = 8 << 20

// LogFile is a log of bounded size. Write is safe for concurrent use.
type LogFile struct {
	path string
	max  int64

	mu   sync.Mutex
	f    *os.File
	size int64
}

// OpenLog opens the log at path to add to it, made with mode 0600.
func OpenLog(path string) (*LogFile, error) {
	l := &LogFile{path: path, max: maxLog}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *LogFile) open() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		return errors.Join(fmt.Errorf("log: %w", err), f.Close())
	}
	l.f, l.size = f, st.Size()
	return nil
}

// Write adds a record. A record is never split over two files.
func (l *LogFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return 0, os.ErrClosed
	}
	if l.size > 0 && l.size+int64(len(p)) > l.max {
		if err := l.rotate(); err != nil {
			return 0, err
		}
	}
	n, err := l.f.Write(p)
	l.size += int64(n)
	return n, err
}

func (l *LogFile) rotate() error {
	err := errors.Join(l.f.Close(), os.Rename(l.path, l.path+".1"))
	l.f = nil
	if e := l.open(); e != nil {
		return errors.Join(err, e)
	}
	return err
}

// Close closes the log.
func (l *LogFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	return err
}
