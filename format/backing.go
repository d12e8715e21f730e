package format

import (
	"context"
	"errors"
)

// ErrHeaderFull: what is to be recorded does not fit into the image's header.
var ErrHeaderFull = errors.New("no space left in the file header")

// BackingChanger is a writable node whose image can be made to name another
// backing file.
type BackingChanger interface {
	// ChangeBacking records name and formatName, as they are, as the backing
	// file; an empty name means none. Everything written before is durable
	// before the header changes, and the change is when it returns: power
	// loss leaves the old name or the new one. That the image reads the same
	// through the new one is up to the caller; this node goes on reading
	// through the chain that it was opened with until it is closed.
	// A name that the header has no room for fails with an error that
	// matches ErrHeaderFull; one that no header holds, or a name without a
	// format, with one that matches block.ErrUnsupported. It must not run
	// concurrently with other calls.
	ChangeBacking(ctx context.Context, name, formatName string) error
}

// Emptier is a writable node whose image can be made to hold nothing, so that
// the disk reads as its backing file. The size stays.
type Emptier interface {
	// MakeEmpty unlinks all that the image holds of the disk, then gives the
	// space back; internal snapshots keep theirs. Power loss leaves each
	// range either as it was or as the backing file has it. It must not run
	// concurrently with other calls.
	MakeEmpty(ctx context.Context) error
}
