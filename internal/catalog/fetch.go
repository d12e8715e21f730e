package catalog

import (
	"context"
	"errors"
	"net/http"

	"github.com/lamina-vm/lamina/internal/api"
)

// Fetcher keeps images in a folder. Its methods are safe for concurrent use,
// also by several processes on the same folder: each image is fetched by one
// of them, the others wait for it.
type Fetcher struct {
	Dir     string       // the cache folder; made when needed
	Client  *http.Client // nil means one with sane time limits
	Catalog List         // nil means Default
}

// Options are the choices of Fetch.
type Options struct {
	// Checksum, "sha256:HEX" or "sha512:HEX", is required to match if given.
	Checksum string
	// Force fetches again what is in the cache.
	Force bool
}

// Result says where the image is.
type Result struct {
	api.PullResult
	// Entry is the catalog's, nil where ref was no name of it.
	Entry *api.CatalogEntry
	// Source is the URL or the absolute path that the image came from.
	Source string
	// Note is worth telling, if not empty: a cached copy used while the
	// publisher cannot be reached, a publisher without checksums.
	Note string
}

// Fetch brings the image that ref names (a catalog name or alias, an http,
// https or file URL, or a path) to the local disk. A local file is used where it
// is. progress, if not nil, is called with Step "download" or "verify", one call
// at a time, at most some ten times a second.
func (f *Fetcher) Fetch(ctx context.Context, ref string, o Options, progress func(api.Event)) (Result, error) {
	return Result{}, errors.New("catalog: not built yet")
}
