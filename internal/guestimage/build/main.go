// Command build makes one of the guests of the demo and the tests:
//
//	go run ./internal/guestimage/build small|debian [-raw] [-o FILE]
//
// It prints the path of the image. With -o the image is copied there, else it
// stays in the cache and must not be written to.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/lamina-vm/lamina/internal/guestimage"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := build(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "build:", err)
		os.Exit(1)
	}
}

func build(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("usage: build small|debian [-raw] [-o FILE]")
	}
	kind := guestimage.Kind(args[0])
	flags := flag.NewFlagSet("build", flag.ContinueOnError)
	out := flags.String("o", "", "copy the image to `FILE`")
	raw := flags.Bool("raw", false, "raw instead of compressed qcow2")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	img, err := guestimage.Build(ctx, kind, os.Stderr)
	if err != nil {
		return err
	}
	path := img.QCOW2
	if *raw {
		path = img.Raw
	}
	if *out != "" {
		if err := copyFile(path, *out); err != nil {
			return err
		}
		path = *out
	}
	fmt.Println(path)
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}
