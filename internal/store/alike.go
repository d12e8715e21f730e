package store

import (
	"crypto/sha256"
	"os"
	"sync"
)

// alike makes the files of machines that are made together, of which most are the
// same: each new content is made once, which for a thousand machines is most of the
// work.
type alike struct {
	mu sync.Mutex // guards what follows
	// An empty overlay of size bytes over backing has these bytes.
	backing string
	size    int64
	image   []byte
	// secret has the path of a file by the SHA-256 of the secrets in it.
	secret map[[sha256.Size]byte]string
}

// mostAlike bounds what is kept of an image, in bytes.
const mostAlike = 4 << 20

// overlay makes an empty overlay at path, which is not there: by build, or as a copy
// of the last one if it would be the same. Two overlays differ in nothing but size
// and backing file.
func (a *alike) overlay(path, backing string, size int64, build func() error) error {
	a.mu.Lock()
	image := a.image
	same := image != nil && a.backing == backing && a.size == size
	a.mu.Unlock()
	if same {
		return writeSparse(path, image)
	}
	if err := build(); err != nil {
		return err
	}
	if st, err := os.Lstat(path); err != nil || st.Size() > mostAlike {
		return err
	}
	image, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.backing, a.size, a.image = backing, size, image
	return nil
}

// secrets makes the file of a machine's secrets. Equal ones share a file, which has
// several names then.
func (a *alike) secrets(path string, content []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	sum := sha256.Sum256(content)
	// A file has at most 65,000 names on ext4.
	if first := a.secret[sum]; first != "" && os.Link(first, path) == nil {
		return nil
	}
	if err := writeSparse(path, content); err != nil {
		return err
	}
	if a.secret == nil {
		a.secret = make(map[[sha256.Size]byte]string)
	}
	a.secret[sum] = path
	return nil
}
