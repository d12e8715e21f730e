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
		if family != "" && (strings.HasPrefix(name, family) || distance(name, family) <= 2) {
			out = append(out, e.Name)
		}
	}
	return out
}

// distance is the number of letters to add, drop, change or swap with the next
// one to make b of a; anything above 3 for words of very different length.
func distance(a, b string) int {
	if len(a) > len(b)+3 || len(b) > len(a)+3 {
		return 4
	}
	rows := [3][]int{}
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
	}
	for j := range rows[1] {
		rows[1][j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, last, row := rows[0], rows[1], rows[2]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		rows[0], rows[1], rows[2] = last, row, before
	}
	return rows[1][len(b)]
}
