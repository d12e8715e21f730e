package luks

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"syscall"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/diskcrypt"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/format/encryption"
)

// errNoKey is for an image whose key was not named.
var errNoKey error = &optionError{"Parameter 'key-secret' is required for cipher"}

// optionError is about an option, in stock QEMU's words. It matches
// [block.ErrUnsupported].
type optionError struct{ text string }

func (e *optionError) Error() string        { return e.text }
func (e *optionError) Is(target error) bool { return target == block.ErrUnsupported }

// Options implements [format.Driver].
func (Driver) Options() []format.Option {
	return append(encryption.CipherOptions(""), []format.Option{
		{Name: "key-secret", Type: format.TypeString, Help: "ID of the secret that provides the keyslot passphrase"},
		{Name: "preallocation", Type: format.TypeString, Help: "Preallocation mode (allowed values: off, falloc, full)"},
		{Name: "size", Type: format.TypeSize, Help: "Virtual disk size"},
	}...)
}

// AmendOptions describes the options of Amend, which are not those of Create.
func (Driver) AmendOptions() []format.Option {
	return encryption.SlotOptions("")
}

// choices are the creation options by value.
type choices struct {
	encryption.Options
	prealloc block.Preallocation
}

func parse(values map[string]string) (c choices, err error) {
	for _, k := range slices.Sorted(maps.Keys(values)) {
		v := values[k]
		ours, err := c.Set(k, v)
		if err != nil {
			return c, err
		}
		switch {
		case ours, k == "size":
		case k == "preallocation":
			switch c.prealloc = block.Preallocation(v); c.prealloc {
			case block.PreallocMetadata: // there is none
				c.prealloc = block.PreallocOff
			case block.PreallocOff, block.PreallocFalloc, block.PreallocFull:
			default:
				return c, &optionError{"Parameter 'preallocation' does not accept value '" + v + "'"}
			}
		default:
			return c, &optionError{"Invalid parameter '" + k + "'"}
		}
	}
	return c, c.Params.CheckNames()
}

// CheckCreate implements [format.CreateChecker].
func (Driver) CheckCreate(size int64, opts format.CreateOptions) error {
	c, err := parse(opts.Values)
	switch {
	case err != nil:
		return err
	case opts.BackingFile != "":
		return &optionError{"Backing file not supported for file format 'luks'"}
	case size < 0 || size > maxDisk:
		return stockf("The requested file size is too large%w", noText{syscall.EFBIG})
	}
	passphrase, err := encryption.Passphrase(opts.Secrets, "", c.KeySecret)
	clear(passphrase)
	if err != nil {
		return err
	}
	_, err = c.Params.PayloadOffset()
	return err
}

// noText matches an error without showing it.
type noText struct{ error }

func (noText) Error() string   { return "" }
func (e noText) Unwrap() error { return e.error }

// Create implements [format.Driver].
func (Driver) Create(ctx context.Context, file block.Node, size int64, opts format.CreateOptions) error {
	if err := (Driver{}).CheckCreate(size, opts); err != nil {
		return err
	}
	c, err := parse(opts.Values)
	if err != nil {
		return err
	}
	w, ok := file.(block.Writer)
	if !ok {
		return fmt.Errorf("create %s: %w", opts.Filename, block.ErrReadOnly)
	}
	passphrase, err := encryption.Passphrase(opts.Secrets, "", c.KeySecret)
	if err != nil {
		return err
	}
	defer clear(passphrase)
	volume, _, parts, err := diskcrypt.New(ctx, passphrase, c.NewOptions)
	if err != nil {
		return err
	}
	end := volume.PayloadOffset() + roundUp(size)
	if file.Size() != end {
		r, ok := block.As[block.Resizer](file)
		if !ok {
			return fmt.Errorf("create %s: the storage has a fixed size of %d bytes: %w", opts.Filename, file.Size(), block.ErrUnsupported)
		}
		if err := r.Resize(ctx, end, block.ResizeOptions{Prealloc: c.prealloc, AllowShrink: true}); err != nil {
			return err
		}
	}
	// The header last: what lacks it is no LUKS volume.
	for _, off := range slices.Backward(slices.Sorted(maps.Keys(parts))) {
		if _, err := w.WriteAt(parts[off], off); err != nil {
			return stockf("Could not write encryption header: %w", err)
		}
	}
	return nil
}
