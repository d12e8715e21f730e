package image

import (
	"context"
	"errors"
	"fmt"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

// SnapshotRef says which internal snapshot of an image is meant.
type SnapshotRef struct {
	// IDOrName is the snapshot's ID or, where no ID is the same, its name.
	// It counts only if ID and Name are nil.
	IDOrName string
	// ID and Name must both match, where they are not nil.
	ID, Name *string
}

// find returns the place in list of the first snapshot that is meant, or -1.
func (r SnapshotRef) find(list []format.Snapshot) int {
	if r.ID == nil && r.Name == nil {
		if i := (SnapshotRef{ID: &r.IDOrName}).find(list); i >= 0 {
			return i
		}
		return SnapshotRef{Name: &r.IDOrName}.find(list)
	}
	for i, s := range list {
		if (r.ID == nil || *r.ID == s.ID) && (r.Name == nil || *r.Name == s.Name) {
			return i
		}
	}
	return -1
}

// String is the reference as -l of qemu-img takes it.
func (r SnapshotRef) String() string {
	switch {
	case r.ID != nil && r.Name != nil:
		return "snapshot.id=" + *r.ID + ",snapshot.name=" + *r.Name
	case r.ID != nil:
		return "snapshot.id=" + *r.ID
	case r.Name != nil:
		return "snapshot.name=" + *r.Name
	}
	return r.IDOrName
}

// Errors of internal snapshots.
var (
	ErrNoSnapshot    = errors.New("no such snapshot")
	ErrManySnapshots = errors.New("a snapshot of several sources")
)

// ErrSnapshotFormat matches [block.ErrUnsupported]: the image's format has no
// internal snapshots.
const ErrSnapshotFormat = unsupported("an internal snapshot of an image of this format")

// SnapshotError says which internal snapshot could not be opened or changed.
type SnapshotError struct {
	Op       string // "open", "change"
	Image    string
	Format   string
	Snapshot SnapshotRef
	Err      error
}

// Error names image, snapshot and cause.
func (e *SnapshotError) Error() string {
	return fmt.Sprintf("%s snapshot %q of %s: %v", e.Op, e.Snapshot, e.Image, e.Err)
}

// Unwrap returns the cause.
func (e *SnapshotError) Unwrap() error { return e.Err }

// OpenSnapshot returns the disk as an internal snapshot keeps it, which can
// only be read, and has the size that the disk had then. It is closed before
// the Image, which was opened read-only. Errors are a *[SnapshotError].
func (im *Image) OpenSnapshot(ctx context.Context, ref SnapshotRef) (block.Node, error) {
	fail := func(err error) (block.Node, error) {
		return nil, &SnapshotError{Op: "open", Image: im.layers[0].Name, Format: im.Format(), Snapshot: ref, Err: err}
	}
	opener, ok := block.As[format.SnapshotOpener](im.Node())
	if !ok {
		return fail(ErrSnapshotFormat)
	}
	info, err := opener.ImageInfo()
	if err != nil {
		return fail(err)
	}
	i := ref.find(info.Snapshots)
	if i < 0 {
		return fail(ErrNoSnapshot)
	}
	node, err := opener.OpenSnapshot(ctx, i)
	if err != nil {
		return fail(err)
	}
	return node, nil
}
