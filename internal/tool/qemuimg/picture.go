package qemuimg

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/term"

	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/picture"
)

// drawing is what map draws beside, or in place of, its list.
type drawing struct {
	svg, png string // files; "" for none
	terminal bool
}

func (d drawing) wanted() bool { return d.svg != "" || d.png != "" || d.terminal }

// draw draws the map of an image.
func (t *tool) draw(im *image.Image, d drawing, start, length int64) int {
	layers := im.Layers()
	names := make([]string, len(layers))
	for i, l := range layers {
		names[i] = l.Name
	}
	p := picture.New(names[0], im.Node().Size(), names)
	for e, err := range im.Map(t.ctx, start, length) {
		if err != nil {
			return t.failMap(err)
		}
		kind := picture.Unallocated
		switch {
		case e.Compressed:
			kind = picture.Compressed
		case e.Data && !e.Zero:
			kind = picture.Data
		case e.Present:
			kind = picture.Zero
		}
		p.Add(e.Start, e.Length, kind, e.Depth)
	}
	var svg, png bytes.Buffer
	err := errors.Join(p.SVG(&svg), p.PNG(&png))
	if d.svg != "" && err == nil {
		err = t.writePicture(d.svg, svg.Bytes(), layers)
	}
	if d.png != "" && err == nil {
		err = t.writePicture(d.png, png.Bytes(), layers)
	}
	if d.terminal && err == nil {
		columns, color := 64, false
		if f, ok := t.stdout.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			color = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
			if w, _, err := term.GetSize(int(f.Fd())); err == nil {
				columns = w
			}
		}
		err = p.Text(t.out, columns, color)
	}
	if err != nil {
		t.errorf("%s", plainText(err))
		return exitFailed
	}
	return exitOK
}

// writePicture puts a picture in a file, whole or not at all; "-" is standard
// output. It never takes the place of a file of the chain.
func (t *tool) writePicture(name string, b []byte, layers []*image.Layer) error {
	if name == "-" {
		_, err := t.out.Write(b)
		return err
	}
	if st, err := os.Stat(name); err == nil {
		for _, l := range layers {
			for _, file := range []string{l.File(), l.DataFile()} {
				if li, err := os.Stat(file); err == nil && os.SameFile(st, li) {
					return fmt.Errorf("%s is the image: give the picture another name", name)
				}
			}
		}
		if !st.Mode().IsRegular() {
			return os.WriteFile(name, b, 0o644)
		}
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".lamina-picture-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
