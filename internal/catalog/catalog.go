// Package catalog knows cloud images by name, and fetches them: by name, by
// URL or from a file, whole and verified, into a cache folder.
package catalog

import (
	"fmt"
	"slices"
	"strings"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/nearest"
)

// List is a catalog.
type List []api.CatalogEntry

// Default returns the catalog that Lamina comes with, in the order in which it
// is shown. The caller may change it.
func Default() List { return slices.Clone(images) }

// Find returns the entry of that name or alias.
func (l List) Find(ref string) (api.CatalogEntry, bool) {
	for _, e := range l {
		if e.Name == ref || slices.Contains(e.Aliases, ref) {
			return e, true
		}
	}
	return api.CatalogEntry{}, false
}

// Resolve is Find with an error that says which names there are, the ones that
// look alike first.
func (l List) Resolve(ref string) (api.CatalogEntry, error) {
	if e, ok := l.Find(ref); ok {
		return e, nil
	}
	if alike := l.alike(ref); len(alike) > 0 {
		return api.CatalogEntry{}, fmt.Errorf("the catalog has no image %q: did you mean %s?", ref, strings.Join(alike, " or "))
	}
	names := make([]string, len(l))
	for i, e := range l {
		names[i] = e.Name
	}
	return api.CatalogEntry{}, fmt.Errorf("the catalog has no image %q: it has %s", ref, strings.Join(names, ", "))
}

// Resolve finds an entry of the Default catalog by name or alias.
func Resolve(ref string) (api.CatalogEntry, error) { return images.Resolve(ref) }

// alike returns the names of the family that ref names, or seems to: "debian:11",
// "debain".
func (l List) alike(ref string) []string {
	family, _, _ := strings.Cut(strings.ToLower(ref), ":")
	var out []string
	for _, e := range l {
		name, _, _ := strings.Cut(e.Name, ":")
		if family != "" && (strings.HasPrefix(name, family) || nearest.Distance(name, family, 2) <= 2) {
			out = append(out, e.Name)
		}
	}
	return out
}
