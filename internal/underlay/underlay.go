// Package underlay lets a test stand between package image and the files that
// it opens and makes: to record what is written, or to make it fail.
package underlay

import (
	"context"

	"github.com/lamina-vm/lamina/block"
)

// A Wrap returns what is used in place of the bytes of the file at path, node
// itself if it has no interest in it. What it returns implements
// [block.Wrapper] so that the file's other abilities stay reachable.
type Wrap func(path string, node block.Node) block.Node

type key struct{}

// With returns a context under which package image uses wrap.
func With(ctx context.Context, wrap Wrap) context.Context {
	return context.WithValue(ctx, key{}, wrap)
}

// Node returns what is to be used for the file at path.
func Node(ctx context.Context, path string, node block.Node) block.Node {
	if wrap, ok := ctx.Value(key{}).(Wrap); ok {
		return wrap(path, node)
	}
	return node
}
