package image

import (
	"fmt"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format/all"
)

// guardedLen is how much of the disk is guarded: every magic lies in it.
const guardedLen = 512

// Unwrap implements [block.Wrapper]: all but writing passes through.
func (g *guardedRaw) Unwrap() block.Node { return g.Node }

// WriteAt refuses, with an error that matches block.ErrReadOnly, to make the
// first sector look like an image of another format.
func (g *guardedRaw) WriteAt(p []byte, off int64) (int, error) {
	w := g.Node.(block.Writer)
	if off < guardedLen && off >= 0 && len(p) > 0 {
		var head [guardedLen]byte
		if _, err := g.Node.ReadAt(head[:min(guardedLen, g.Node.Size())], 0); err != nil {
			return 0, err
		}
		copy(head[off:], p)
		if d := all.Probe(head[:], g.name); d != nil && d.Name() != rawName {
			return 0, fmt.Errorf("%s: writing the header of a %s image to a raw image whose format was guessed: open it as raw explicitly to allow that: %w", g.name, d.Name(), block.ErrReadOnly)
		}
	}
	return w.WriteAt(p, off)
}

// Flush passes through.
func (g *guardedRaw) Flush() error { return g.Node.(block.Writer).Flush() }
