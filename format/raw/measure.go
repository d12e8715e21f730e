package raw

import (
	"context"

	"github.com/lamina-vm/lamina/format"
)

var _ format.Measurer = Driver{}

// Measure implements [format.Measurer]: what is not written counts too, as it
// does for the file's size.
func (Driver) Measure(ctx context.Context, opts format.MeasureOptions) (m format.Measurement, err error) {
	if err := ctx.Err(); err != nil {
		return m, err
	}
	n := uint64(opts.Size)
	if opts.Source != nil {
		n = uint64(opts.Source.Size())
	}
	m.Required = (n + 511) &^ 511
	m.FullyAllocated = m.Required
	return m, nil
}
