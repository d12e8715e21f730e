package luks

import (
	"context"

	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/format/encryption"
)

var _ format.Measurer = Driver{}

// Measure implements [format.Measurer]: the header with its key slots, and the
// whole disk, as encrypted zeros are not zeros.
func (Driver) Measure(ctx context.Context, opts format.MeasureOptions) (m format.Measurement, err error) {
	if err := ctx.Err(); err != nil {
		return m, err
	}
	c, err := parse(opts.Values)
	if err != nil {
		return m, err
	}
	passphrase, err := encryption.Passphrase(opts.Secrets, "", c.KeySecret)
	clear(passphrase)
	if err != nil {
		return m, err
	}
	payload, err := c.Params.PayloadOffset()
	if err != nil {
		return m, err
	}
	n := uint64(opts.Size)
	if opts.Source != nil {
		n = uint64(opts.Source.Size())
	}
	m.Required = uint64(payload) + (n+511)&^511
	m.FullyAllocated = m.Required
	return m, nil
}
