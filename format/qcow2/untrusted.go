package qcow2

import (
	"fmt"

	"github.com/lamina-vm/lamina/block"
)

// What the tables of an image from outside may have, so that opening it takes
// less than 64 MiB of memory whatever the header claims. The L1 table is enough
// for 512 TiB with clusters of 64 KiB.
const (
	untrustedL1Bytes       = 8 << 20
	untrustedRefTableBytes = 8 << 20
	untrustedSnapshots     = 1024
	untrustedSnapshotBytes = 4 << 20
)

// checkUntrusted refuses a header that claims more than an image from outside
// may.
func (h *header) checkUntrusted() error {
	refuse := func(what string, n, limit int64) error {
		return &stockError{fmt.Sprintf("%s, in an image from outside it may have %d", fmt.Sprintf(what, n), limit), block.ErrUntrusted}
	}
	switch l1 := int64(h.l1Size) * 8; {
	case l1 > untrustedL1Bytes:
		return refuse("the L1 table has %d bytes", l1, untrustedL1Bytes)
	case int64(h.refTableClusters)<<h.clusterBits > untrustedRefTableBytes:
		return refuse("the refcount table has %d bytes", int64(h.refTableClusters)<<h.clusterBits, untrustedRefTableBytes)
	case h.snapshotCount > untrustedSnapshots:
		return refuse("the snapshot table has %d entries", int64(h.snapshotCount), untrustedSnapshots)
	}
	return nil
}
