package osinfo

import (
	"maps"
	"slices"
	"strings"
	"sync"
)

// Parsing the whole database takes 150 ms, reading it 10. So what is asked of
// all systems looks at the documents' text first, and only those that may have
// the answer are parsed. The text alone decides nothing: wherever it is not
// plain, the document is parsed.

// wanted is one thing that a description must fit: the element that has the
// expression, and what the medium says.
type wanted struct{ element, says string }

// candidates calls visit with the systems whose documents may describe media in
// an element of that name that fit, in the order of their keys.
func (db *DB) candidates(block string, asked []wanted, visit func(*record)) {
	index := db.index()
	keys := slices.Sorted(maps.Keys(index))
	may := make([]bool, len(keys))
	texts := db.texts()
	inHalves(len(keys), func(i int) {
		e := index[keys[i]]
		if len(e.files.all()) == 0 {
			may[i] = true // of the built-in table
		}
		for _, path := range e.files.all() {
			doc, read := texts[path]
			if !read || mayFit(doc, block, asked) {
				may[i] = true
				break
			}
		}
	})
	for i, key := range keys {
		if !may[i] {
			continue
		}
		if r, err := index[key].read(); err == nil { // else it is reported
			visit(r)
		}
	}
}

// readTexts returns the text of each document that can be read, by its path.
func (db *DB) readTexts() map[string]string {
	var paths []string
	for _, e := range db.index() {
		paths = append(paths, e.files.all()...)
	}
	docs, failed := make([]string, len(paths)), make([]bool, len(paths))
	inHalves(len(paths), func(i int) {
		doc, err := readDocument(paths[i])
		docs[i], failed[i] = doc, err != nil // it is reported where it is parsed
	})
	texts := make(map[string]string, len(paths))
	for i, path := range paths {
		if !failed[i] {
			texts[path] = docs[i]
		}
	}
	return texts
}

// inHalves does n pieces of work with two goroutines.
func inHalves(n int, do func(i int)) {
	var workers sync.WaitGroup
	for half := range 2 {
		workers.Go(func() {
			for i := half; i < n; i += 2 {
				do(i)
			}
		})
	}
	workers.Wait()
}

// mayFit reports whether a document may have a block that fits.
func mayFit(doc, block string, asked []wanted) bool {
	for rest := doc; ; {
		start := strings.Index(rest, "<"+block)
		if start < 0 {
			return false
		}
		rest = rest[start+1+len(block):]
		end := strings.Index(rest, "</"+block+">")
		if end < 0 {
			return true // what it is the parser says
		}
		if blockMayFit(rest[:end], asked) {
			return true
		}
	}
}

func blockMayFit(text string, asked []wanted) bool {
	if strings.Contains(text, "<!") {
		return true // a comment may hide something
	}
	for _, w := range asked {
		if !elementMayFit(text, w) {
			return false
		}
	}
	return true
}

// elementMayFit reports whether one of the elements of that name may fit, or
// there is none.
func elementMayFit(text string, w wanted) bool {
	found := false
	for rest := text; ; found = true {
		start := strings.Index(rest, "<"+w.element)
		if start < 0 {
			return !found
		}
		rest = rest[start+1+len(w.element):]
		if rest == "" || rest[0] != '>' {
			return true // attributes, or a longer name
		}
		expr, _, closed := strings.Cut(rest[1:], "<")
		if !closed || strings.Contains(expr, "&") || matchExpr(expr, w.says) {
			return true
		}
	}
}

// shortIDs returns all short ids that the documents' text has; plain is false
// where some may be missing.
func (db *DB) shortIDs() (ids []string, plain bool) {
	index := db.index()
	keys := slices.Sorted(maps.Keys(index))
	texts := db.texts()
	lists, odd := make([][]string, len(keys)), make([]bool, len(keys))
	inHalves(len(keys), func(i int) {
		e := index[keys[i]]
		odd[i] = len(e.files.all()) == 0
		for _, path := range e.files.all() {
			doc, read := texts[path]
			odd[i] = odd[i] || !read
			for rest := doc; ; {
				start := strings.Index(rest, "<short-id")
				if start < 0 {
					break
				}
				rest = rest[start+len("<short-id"):]
				id, after, closed := strings.Cut(strings.TrimPrefix(rest, ">"), "<")
				if rest == "" || rest[0] != '>' || !closed || !strings.HasPrefix(after, "/short-id>") || strings.Contains(id, "&") {
					odd[i] = true
					break
				}
				lists[i] = append(lists[i], id)
			}
		}
	})
	return slices.Concat(lists...), !slices.Contains(odd, true)
}
