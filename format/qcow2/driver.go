package qcow2

import (
	"context"
	"slices"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/format/encryption"
)

// Driver is the format driver.
type Driver struct{}

var (
	_ format.Driver        = Driver{}
	_ format.CreateChecker = Driver{}
	_ format.Unfinished    = Driver{}
)

// Name implements [format.Driver].
func (Driver) Name() string { return "qcow2" }

// Probe implements [format.Driver].
func (Driver) Probe(prefix []byte, _ string) int {
	if isQcow2(prefix) {
		return 100
	}
	return 0
}

// Open implements [format.Driver]. The node is an [*Image].
func (Driver) Open(ctx context.Context, file block.Node, opts format.OpenOptions) (block.Node, error) {
	img, err := open(ctx, file, opts)
	if err != nil {
		return nil, err
	}
	return img, nil
}

// Create implements [format.Driver].
func (Driver) Create(ctx context.Context, file block.Node, size int64, opts format.CreateOptions) error {
	return create(ctx, file, size, opts)
}

// CheckCreate implements [format.CreateChecker].
func (Driver) CheckCreate(size int64, opts format.CreateOptions) error {
	_, _, _, err := prepareCreate(size, opts)
	return err
}

// Options implements [format.Driver].
func (Driver) Options() []format.Option {
	ciphers := encryption.CipherOptions("encrypt.")
	return slices.Concat([]format.Option{
		{Name: "backing_file", Type: format.TypeString, Help: "File name of a base image", Amendable: true},
		{Name: "backing_fmt", Type: format.TypeString, Help: "Image format of the base image", Amendable: true},
		{Name: "cluster_size", Type: format.TypeSize, Help: "qcow2 cluster size", Default: "65536"},
		{Name: "compat", Type: format.TypeString, Help: "Compatibility level (v2 [0.10] or v3 [1.1])", Amendable: true},
		{Name: "compression_type", Type: format.TypeString, Help: "Compression method used for image cluster compression"},
		{Name: "data_file", Type: format.TypeString, Help: "File name of an external data file", Amendable: true},
		{Name: "data_file_raw", Type: format.TypeBool, Help: "The external data file must stay valid as a raw image", Amendable: true},
		{Name: "extended_l2", Type: format.TypeBool, Help: "Extended L2 tables", Default: "off"},
	}, ciphers[:2], []format.Option{
		{Name: "encrypt.format", Type: format.TypeString, Help: "Encrypt the image, format choices: 'aes', 'luks'"},
	}, ciphers[2:], []format.Option{
		{Name: "encrypt.key-secret", Type: format.TypeString, Help: "ID of secret providing qcow AES key or LUKS passphrase"},
		{Name: "encryption", Type: format.TypeBool, Help: "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)"},
		{Name: "lazy_refcounts", Type: format.TypeBool, Help: "Postpone refcount updates", Default: "off", Amendable: true},
		{Name: "preallocation", Type: format.TypeString, Help: "Preallocation mode (allowed values: off, metadata, falloc, full)"},
		{Name: "refcount_bits", Type: format.TypeNumber, Help: "Width of a reference count entry in bits", Default: "16", Amendable: true},
		{Name: "size", Type: format.TypeSize, Help: "Virtual disk size", Amendable: true},
	})
}
