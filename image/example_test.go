package image_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/image"
)

// Make an image, put something in it, and make a thin overlay of it.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "image")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	base, clone := filepath.Join(dir, "base.qcow2"), filepath.Join(dir, "clone.qcow2")

	if err := image.Create(ctx, base, image.CreateOptions{Format: "qcow2", Size: 10 << 30}); err != nil {
		log.Fatal(err)
	}
	im, err := image.Open(ctx, base, image.Options{Format: "qcow2", Writable: true})
	if err != nil {
		log.Fatal(err)
	}
	w, _ := block.As[block.Writer](im.Node())
	if _, err := w.WriteAt([]byte("hello"), 1<<30); err != nil {
		log.Fatal(err)
	}
	if err := im.Close(); err != nil {
		log.Fatal(err)
	}

	if err := image.Overlay(ctx, clone, image.OverlayOptions{Base: "base.qcow2", BaseFormat: "qcow2"}); err != nil {
		log.Fatal(err)
	}
	infos, err := image.Inspect(ctx, clone, image.InfoOptions{Chain: true})
	if err != nil {
		log.Fatal(err)
	}
	for _, i := range infos {
		fmt.Println(filepath.Base(i.Filename), i.Format, i.VirtualSize>>30, "GiB")
	}
	// Output:
	// clone.qcow2 qcow2 10 GiB
	// base.qcow2 qcow2 10 GiB
}

// Convert a raw disk to a compressed qcow2 image.
func ExampleConvert() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "image")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	raw, packed := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.qcow2")
	if err := image.Create(ctx, raw, image.CreateOptions{Size: 1 << 20}); err != nil {
		log.Fatal(err)
	}

	err = image.Convert(ctx, []string{raw}, packed, image.ConvertOptions{
		SourceFormat: "raw",
		Format:       "qcow2",
		Compress:     true,
	})
	fmt.Println(err)
	// Output: <nil>
}

// List where the bytes of a disk come from.
func ExampleImage_Map() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "image")
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	name := filepath.Join(dir, "disk.qcow2")
	if err := image.Create(ctx, name, image.CreateOptions{Format: "qcow2", Size: 1 << 20}); err != nil {
		log.Fatal(err)
	}
	im, err := image.Open(ctx, name, image.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = im.Close() }()
	for e, err := range im.Map(ctx, 0, -1) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(e.Start, e.Length, e.Data)
	}
	// Output: 0 1048576 false
}
