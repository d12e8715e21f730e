package luks

import (
	"fmt"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/format/encryption"
)

// ImageInfo implements [format.Informer].
func (d *Disk) ImageInfo() (format.Info, error) {
	if d.closed.Load() {
		return format.Info{}, fmt.Errorf("info %s: %w", d.name, block.ErrClosed)
	}
	return format.Info{Format: "luks", Encrypted: true, Specific: encryption.LUKSInfo(d.volume.Info())}, nil
}
