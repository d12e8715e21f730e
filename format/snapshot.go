package format

import (
	"context"
	"time"
)

// SnapshotManager is a writable node whose image can hold internal snapshots:
// the disk as it was, in the same file, sharing with the disk what has not
// changed since.
//
// Every method takes effect as a whole or, on error, not at all, and what it
// did survives power loss when it returns; everything written before is
// durable then too. Reads and writes of the disk meanwhile wait.
// ApplySnapshot, which may change the disk's size, must not run concurrently
// with other calls on the node, as for block.Resizer.
//
// index is the snapshot's place in [Info].Snapshots; names need not be unique,
// so the caller looks for them there. One that is not there is
// block.ErrOutOfRange. An image that cannot hold snapshots (its data is in
// another file) refuses with block.ErrUnsupported. Cancelling ctx undoes what
// was begun.
type SnapshotManager interface {
	Informer
	// CreateSnapshot keeps the disk as it is under a name of at most
	// [MaxSnapshotName] bytes, which need not be a new one, with a new ID. at
	// is the time that the snapshot records, the zero value now.
	CreateSnapshot(ctx context.Context, name string, at time.Time) (Snapshot, error)
	// ApplySnapshot makes the disk what the snapshot keeps, with the size that
	// it had then. What was written since is lost; the snapshot stays, with
	// the state of the machine, if it has one.
	ApplySnapshot(ctx context.Context, index int) error
	// DeleteSnapshot gives up a snapshot. What neither the disk nor another
	// snapshot needs is given back to the file system.
	DeleteSnapshot(ctx context.Context, index int) error
}

// MaxSnapshotName is the longest name of a snapshot in bytes: QEMU shows no more.
const MaxSnapshotName = 255
