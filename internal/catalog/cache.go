package catalog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// slot is one source's folder in the cache. Its files:
//
//	lock       held (flock) by the process that works on it
//	part       what has been fetched so far
//	part.json  what the part is of, and how much of it is on the disk
//	meta.json  what the image is of
//	NAME       the image
type slot struct {
	dir  string
	name string
	lock *os.File
}

func (s *slot) image() string    { return filepath.Join(s.dir, s.name) }
func (s *slot) part() string     { return filepath.Join(s.dir, "part") }
func (s *slot) unpacked() string { return filepath.Join(s.dir, "unpacked") }
func (s *slot) partState() string {
	return filepath.Join(s.dir, "part.json")
}
func (s *slot) metaPath() string { return filepath.Join(s.dir, "meta.json") }

// meta says what the image in a slot is.
type meta struct {
	URL          string    `json:"url"`
	ETag         string    `json:"etag,omitempty"`
	LastModified string    `json:"lastModified,omitempty"`
	Length       int64     `json:"length"` // as fetched, bytes
	Sums         []string  `json:"sums"`   // "ALGO:HEX" of the file as fetched
	Publisher    string    `json:"publisher,omitempty"`
	FetchedAt    time.Time `json:"fetchedAt"`

	// The image as it lies here; it is not used when these do not fit.
	Size    int64  `json:"size"`
	SHA256  string `json:"sha256"`
	ModTime int64  `json:"modTime"` // ns
}

// partState belongs to the part.
type partState struct {
	URL          string `json:"url"`
	ETag         string `json:"etag,omitempty"`
	LastModified string `json:"lastModified,omitempty"`
	Total        int64  `json:"total"` // bytes, -1 if the server does not say
	// Synced bytes are on the disk for sure; Boot tells whether the host
	// has been started anew since, so that more cannot be trusted.
	Synced int64  `json:"synced"`
	Boot   string `json:"boot"`
}

// open takes the slot for this process, waiting for another one that has it.
// busy is called once if it must wait.
func (f *Fetcher) open(ctx context.Context, src source, busy func()) (*slot, error) {
	dir := filepath.Join(f.Dir, src.folder())
	s := &slot{dir: dir, name: slotImage(src.fileName())}
	lock, err := s.openLock()
	if err != nil {
		return nil, fmt.Errorf("image cache: %w", err)
	}
	for first := true; ; first = false {
		err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			if s.lock = lock; s.locked() {
				return s, nil
			}
			// Who had it has removed the folder, as nothing was in it.
			_ = lock.Close()
			if lock, err = s.openLock(); err != nil {
				return nil, fmt.Errorf("image cache: %w", err)
			}
			continue
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			_ = lock.Close()
			return nil, fmt.Errorf("image cache: lock %s: %w", lock.Name(), err)
		}
		if first {
			busy()
		}
		select {
		case <-ctx.Done():
			_ = lock.Close()
			return nil, context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// openLock opens the file of the folder's lock, and makes both if need be.
func (s *slot) openLock() (*os.File, error) {
	for try := 1; ; try++ {
		// Its owner's alone: an image may have been fetched with a password.
		if err := os.MkdirAll(s.dir, 0o700); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
		if err == nil || !errors.Is(err, fs.ErrNotExist) || try == 100 { // removed in between: see close
			return f, err
		}
	}
}

// locked says whether the lock that is held is still the folder's.
func (s *slot) locked() bool {
	mine, err := s.lock.Stat()
	if err != nil {
		return false
	}
	now, err := os.Stat(s.lock.Name())
	return err == nil && os.SameFile(mine, now)
}

// close lets go of the lock. A folder in which nothing is goes with it.
func (s *slot) close() {
	if list, err := os.ReadDir(s.dir); err == nil && len(list) == 1 && list[0].Name() == "lock" {
		if os.Remove(s.lock.Name()) == nil {
			_ = os.Remove(s.dir) // somebody may have made the lock anew
		}
	}
	_ = s.lock.Close()
}

// cached returns what the slot holds, nil if that is nothing whole.
func (s *slot) cached() *meta {
	var m meta
	if readJSON(s.metaPath(), &m) != nil {
		return nil
	}
	st, err := os.Stat(s.image())
	if err != nil || !st.Mode().IsRegular() || st.Size() != m.Size || st.ModTime().UnixNano() != m.ModTime {
		return nil
	}
	return &m
}

// has says whether the image as fetched has that checksum; known is false if
// only reading it would tell.
func (m *meta) has(want sum) (same, known bool) {
	for _, s := range m.Sums {
		if algo, value, _ := strings.Cut(s, ":"); algo == want.algo {
			return value == want.hex, true
		}
	}
	return false, false
}

// keep makes the file at from the slot's image, with its meta.
func (s *slot) keep(from string, m meta) (meta, error) {
	// A meta without its image is no harm; an image with another's is found
	// out by size and time, but why leave it.
	if err := remove(s.metaPath()); err != nil {
		return m, err
	}
	if err := os.Rename(from, s.image()); err != nil {
		return m, err
	}
	st, err := os.Stat(s.image())
	if err != nil {
		return m, err
	}
	m.Size, m.ModTime = st.Size(), st.ModTime().UnixNano()
	if err := writeJSON(s.metaPath(), m); err != nil {
		return m, err
	}
	return m, s.dropPart()
}

// dropPart forgets what has been fetched so far.
func (s *slot) dropPart() error {
	return errors.Join(remove(s.part()), remove(s.partState()), remove(s.unpacked()))
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// writeJSON replaces a small file, whole or not at all.
func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".json.*")
	if err != nil {
		return err
	}
	_, werr := f.Write(append(b, '\n'))
	if err := errors.Join(werr, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, remove(f.Name()))
	}
	return os.Rename(f.Name(), path)
}

// bootID tells two starts of the host apart.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(b))
}
