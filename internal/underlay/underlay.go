// Package underlay lets a test stand between package image and the files that
// it opens and makes: to record what is written, or to make it fail.
package underlay

import (
	"context"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/lamina-vm/lamina/block"
)

// A Wrap returns what is used in place of the bytes of the file at path, node
// itself if it has no interest in it. What it returns implements
// [block.Wrapper] so that the file's other abilities stay reachable. A file
// that is made is seen before it is made empty; all that changes it, that
// included, goes through what Wrap returned.
type Wrap func(path string, node block.Node) block.Node

type key struct{}

// With returns a context under which package image uses wrap.
func With(ctx context.Context, wrap Wrap) context.Context {
	return context.WithValue(ctx, key{}, wrap)
}

// folder is a wrap for the files in a folder.
type folder struct {
	dir  string
	wrap Wrap
}

var (
	foldersMu sync.Mutex // guards changes of folders
	folders   atomic.Pointer[[]folder]
)

// Under makes package image use wrap for the files in the folder dir whatever
// the context, until undo is called: for tests of what makes its own contexts.
func Under(dir string, wrap Wrap) (undo func()) {
	change := func(edit func([]folder) []folder) {
		foldersMu.Lock()
		defer foldersMu.Unlock()
		var now []folder
		if p := folders.Load(); p != nil {
			now = *p
		}
		now = edit(append([]folder(nil), now...))
		if len(now) == 0 {
			folders.Store(nil)
			return
		}
		folders.Store(&now)
	}
	drop := func(all []folder) []folder {
		for i, f := range all {
			if f.dir == dir {
				return append(all[:i], all[i+1:]...)
			}
		}
		return all
	}
	change(func(all []folder) []folder { return append(drop(all), folder{dir, wrap}) })
	return func() { change(drop) }
}

// Node returns what is to be used for the file at path.
func Node(ctx context.Context, path string, node block.Node) block.Node {
	if wrap, ok := ctx.Value(key{}).(Wrap); ok {
		return wrap(path, node)
	}
	all := folders.Load()
	if all == nil {
		return node
	}
	for _, f := range *all {
		if rel, ok := strings.CutPrefix(path, f.dir+string(filepath.Separator)); ok && rel != "" {
			return f.wrap(path, node)
		}
	}
	return node
}
