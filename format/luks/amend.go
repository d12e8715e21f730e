package luks

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/format/encryption"
)

var _ format.Amender = (*Disk)(nil)

// Amend implements [format.Amender]: it adds and erases passphrases. The
// header of the file changes while the disk may be read and written.
func (d *Disk) Amend(ctx context.Context, opts format.AmendOptions) error {
	if d.closed.Load() {
		return fmt.Errorf("amend %s: %w", d.name, block.ErrClosed)
	}
	if d.wr == nil {
		return fmt.Errorf("amend %s: %w", d.name, block.ErrReadOnly)
	}
	for _, k := range slices.Sorted(maps.Keys(opts.Values)) {
		if !slices.ContainsFunc(Driver{}.AmendOptions(), func(o format.Option) bool { return o.Name == k }) {
			return &optionError{"Invalid parameter '" + k + "'"}
		}
	}
	change, err := encryption.SlotChange(opts, "", d.secret)
	if err != nil {
		return err
	}
	return d.volume.ChangeSlots(ctx, store{d.wr}, change)
}

// store is the file that holds the header.
type store struct{ block.Writer }
