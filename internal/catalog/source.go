package catalog

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/lamina-vm/lamina/internal/api"
)

// source is where an image comes from: a URL, or a path.
type source struct {
	entry *api.CatalogEntry
	url   *url.URL
	path  string
}

// source finds out what ref is. A catalog name is one even if a file of that
// name lies in the working folder: "./debian" is the file.
func (f *Fetcher) source(ref string) (source, error) {
	list := f.Catalog
	if list == nil {
		list = images
	}
	if e, ok := list.Find(ref); ok {
		u, err := url.Parse(e.URL)
		if err != nil {
			return source{}, fmt.Errorf("%s: %w", e.Name, err)
		}
		return source{entry: &e, url: u}, nil
	}
	if strings.Contains(ref, "://") || strings.HasPrefix(ref, "file:") {
		return sourceURL(ref)
	}
	if ref == "" {
		return source{}, errors.New("no image is named: give a name of the catalog, a URL or a file")
	}
	abs, err := filepath.Abs(ref)
	if err != nil {
		return source{}, fmt.Errorf("%s: %w", ref, err)
	}
	_, err = os.Stat(abs)
	if errors.Is(err, fs.ErrNotExist) && !strings.ContainsRune(ref, '/') {
		_, unknown := list.Resolve(ref)
		return source{}, fmt.Errorf("%w (a file of that name is not there either)", unknown)
	}
	if err != nil {
		return source{}, fmt.Errorf("image %w", err)
	}
	return source{path: abs}, nil
}

func sourceURL(ref string) (source, error) {
	u, err := url.Parse(ref)
	if err != nil {
		return source{}, fmt.Errorf("image: %w", err)
	}
	switch u.Scheme {
	case "http", "https":
		if u.Host == "" {
			return source{}, fmt.Errorf("image %s: the URL has no host", u.Redacted())
		}
		u.Fragment = ""
		return source{url: u}, nil
	case "file":
		if u.Host != "" && u.Host != "localhost" || !strings.HasPrefix(u.Path, "/") {
			return source{}, fmt.Errorf("image %s: a file URL is file:///PATH", ref)
		}
		return source{path: filepath.Clean(u.Path)}, nil
	}
	return source{}, fmt.Errorf("image %s: %q is not fetched: give an http, https or file URL, or download it first", u.Redacted(), u.Scheme)
}

func (s source) String() string {
	if s.url != nil {
		return s.url.Redacted()
	}
	return s.path
}

// name is the file's name at its source.
func (s source) name() string {
	if s.url == nil {
		return filepath.Base(s.path)
	}
	if b := path.Base(s.url.Path); b != "/" && b != "." {
		return b
	}
	return "image"
}

// fileName is the name of the image in the cache: without the ending of a
// compression, and of harmless letters.
func (s source) fileName() string {
	name := strings.TrimSuffix(s.name(), compression(s.name()))
	name = strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-_.", r) {
			return r
		}
		return '_'
	}, name)
	name = strings.TrimLeft(name, ".")
	if len(name) > 120 {
		name = name[len(name)-120:]
	}
	if name == "" {
		return "image"
	}
	return name
}

// folder is the name of the source's folder in the cache: one of its own for
// each address, and one that a person recognizes.
func (s source) folder() string {
	h := sha256.Sum256([]byte(s.key()))
	return s.fileName() + "-" + hex.EncodeToString(h[:6])
}

func (s source) key() string {
	if s.url != nil {
		return s.url.String()
	}
	return "file:" + s.path
}
