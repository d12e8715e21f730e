package vm

import (
	"context"
	"errors"
)

// ErrNoLayer: this drive cannot get another layer, or lose those below it, while
// the machine runs; the wrapping error says why and what to do.
var ErrNoLayer = errors.New("its layers cannot change while the machine runs")

// Pauser is a [Machine] that can be held for a while.
type Pauser interface {
	// Pause stops the guest and holds it, also one that waits for space on the
	// host (which else goes on by itself). It lasts until Resume or the machine's
	// end, also beyond the end of this process. Pausing twice is pausing once.
	Pause(ctx context.Context) error
	// Resume lets it go on. One that is not paused goes on as it did.
	Resume(ctx context.Context) error
}

// SpaceWaiter is a [Machine] whose guest is stopped where a write finds no space on
// the host, and goes on by itself when there is some.
type SpaceWaiter interface {
	// WaitsForSpace says whether it does now. It asks nobody: it costs nothing.
	WaitsForSpace() bool
}

// DiskFlattener is a [Machine] that can copy into a drive's image, while the guest
// runs, what lies below it.
type DiskFlattener interface {
	// FlattenDisk returns when the image of a drive has no backing file any more. It
	// goes on where an earlier call, also of another process, has left off. progress,
	// which may be nil, is called on this goroutine with bytes. On an error, and when
	// ctx ends, the image is as good as before.
	FlattenDisk(ctx context.Context, name string, progress func(done, total int64)) error
}

// DiskSnapshotter is a [Machine] whose drives can go on over new overlays.
type DiskSnapshotter interface {
	// SnapshotDisks makes the drives of layers, which names them as
	// [Spec.FindDisk] does, write to new overlays of their present images, all from
	// one instant on. The overlays are qcow2 images made by the caller. From then on
	// the present images are only read, and the machine's spec names the overlays.
	// On an error nothing has changed, as far as is known: where the machine ended, or
	// did not answer, [ImageTeller] and the overlays tell.
	SnapshotDisks(ctx context.Context, layers map[string]string) error
}

// ImageTeller is a [Machine] that can be asked which images it uses. [Described] tells
// what is on record, which is the same unless a change of it was broken off.
type ImageTeller interface {
	// DiskImage asks what runs for the path of the image that a drive, named as
	// [Spec.FindDisk] does, writes to now. [ErrNotRunning] where the machine has ended:
	// then nobody writes to any.
	DiskImage(ctx context.Context, name string) (string, error)
}
