package block

import "fmt"

// CheckRange returns ErrOutOfRange, with the numbers, unless [off, off+n)
// lies in a disk of the given size. Implementations call it once, first.
func CheckRange(off, n, size int64) error {
	if off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("offset %d, length %d, disk size %d: %w", off, n, size, ErrOutOfRange)
	}
	return nil
}
