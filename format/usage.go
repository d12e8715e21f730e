package format

import "context"

// UsageItem is what the structures of one kind take in an image's file.
type UsageItem struct {
	// Name is for people ("L2 tables"), Key for programs ("l2-tables").
	Name, Key string
	// Count is how many there are.
	Count int64
	// Bytes is what they take of the file's length, DiskBytes what of it the
	// file system stores: holes are left out.
	Bytes, DiskBytes int64
}

// UsageReporter is a node that can say what its image's file is made of. The
// items add up to the file's length. The image must not be written meanwhile.
type UsageReporter interface {
	Usage(ctx context.Context) ([]UsageItem, error)
}
