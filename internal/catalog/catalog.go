// Package catalog knows cloud images by name, and fetches them: by name, by
// URL or from a file, whole and verified, into a cache folder.
package catalog

import (
	"fmt"
	"slices"
	"strings"

	"github.com/lamina-vm/lamina/internal/api"
)

// List is a catalog.
type List []api.CatalogEntry

// Resolve finds an entry by its name or one of its aliases.
func (l List) Resolve(ref string) (api.CatalogEntry, bool) {
	for _, e := range l {
		if e.Name == ref || slices.Contains(e.Aliases, ref) {
			return e, true
		}
	}
	return api.CatalogEntry{}, false
}

// Default returns the catalog that Lamina comes with, in the order in which it
// is shown. The caller may change it.
func Default() List { return slices.Clone(images) }

var images = List{}

// Resolve finds an entry of the Default catalog by name or alias. The error
// lists the names that there are.
func Resolve(ref string) (api.CatalogEntry, error) {
	if e, ok := images.Resolve(ref); ok {
		return e, nil
	}
	var names []string
	for _, e := range images {
		names = append(names, e.Name)
	}
	return api.CatalogEntry{}, fmt.Errorf("no image is called %q: the catalog has %s", ref, strings.Join(names, ", "))
}
