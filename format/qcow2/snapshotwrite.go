package qcow2

import (
	"context"
	"fmt"
	"strconv"
	"syscall"
	"time"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

var _ format.SnapshotManager = (*Image)(nil)

// CreateSnapshot implements [format.SnapshotManager]. The snapshot gets a copy
// of the L1 table and shares the L2 tables; a state of a machine that lies
// behind the disk is not part of it.
func (img *Image) CreateSnapshot(ctx context.Context, name string, at time.Time) (format.Snapshot, error) {
	var s snapshot
	err := img.changeSnapshots(ctx, func(t *rewrite) error {
		if len(name) > format.MaxSnapshotName {
			return fmt.Errorf("a name of %d bytes is longer than %d: %w", len(name), format.MaxSnapshotName, block.ErrOutOfRange)
		}
		if len(t.snapshots) >= maxSnapshots {
			return tooMany("the image has %d snapshots already", len(t.snapshots))
		}
		s = newSnapshot(t.snapshots, name, at, img.Size())
		return t.create(&s)
	})
	if err != nil {
		return format.Snapshot{}, img.fail("create a snapshot of", err)
	}
	return s.info(img.Size()), nil
}

// changeSnapshots is rewrite for an image that can hold snapshots.
func (img *Image) changeSnapshots(ctx context.Context, change func(*rewrite) error) error {
	if img.g.external {
		return &errnoError{"the data is in an external data file, which no snapshot can keep", block.ErrUnsupported, syscall.ENOTSUP}
	}
	return img.rewrite(ctx, change)
}

// newSnapshot returns the entry of a new snapshot, without its L1 table, as
// stock `qemu-img snapshot` makes it.
func newSnapshot(others []snapshot, name string, at time.Time, size int64) snapshot {
	if at.IsZero() {
		at = time.Now()
	}
	highest := uint64(0)
	for _, o := range others {
		highest = max(highest, leadingNumber(o.id))
	}
	return snapshot{
		id: strconv.FormatUint(highest+1, 10), name: name,
		dateSec: uint32(at.Unix()), dateNsec: uint32(at.Nanosecond() / 1000 * 1000),
		diskSize: uint64(size), extra: make([]byte, snapshotExtra),
	}
}

// leadingNumber reads the digits that s begins with, as strtoul does.
func leadingNumber(s string) uint64 {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	v, err := strconv.ParseUint(s[:n], 10, 64)
	if err != nil && n > 0 {
		return 1<<64 - 1
	}
	return v
}

// tooMany is an error that has stock's number for a limit.
func tooMany(format string, args ...any) error {
	return &errnoError{fmt.Sprintf(format, args...) + ": delete some first", block.ErrUnsupported, syscall.EFBIG}
}

func (t *rewrite) create(s *snapshot) error {
	if err := checkSnapshotTable(append(t.snapshots[:len(t.snapshots):len(t.snapshots)], *s)); err != nil {
		return err
	}
	disk, state := t.splitL1()
	if err := t.addTree(disk, 1); err != nil {
		return err
	}
	if err := t.addTree(state, -1); err != nil {
		return err
	}
	shared, err := t.settle(disk, 2)
	if err != nil {
		return err
	}
	if s.l1Size = uint32(len(shared)); s.l1Size > 0 {
		if s.l1Offset, err = t.writeTable("snapshot L1 table", encodeL1(shared)); err != nil {
			return err
		}
	}
	if err := t.replaceL1(shared, len(t.l1)); err != nil {
		return err
	}
	return t.replaceSnapshots(append(t.snapshots[:len(t.snapshots):len(t.snapshots)], *s))
}

// splitL1 returns the part of the active L1 table that maps the disk, and what
// lies behind it: the state of a machine that a snapshot left there. It
// belongs to the snapshot; in the active table nobody needs it.
func (t *rewrite) splitL1() (disk, state []l1Entry) {
	n := min(t.img.g.l1EntriesFor(t.img.Size()), int64(len(t.l1)))
	return t.l1[:n], t.l1[n:]
}

// ApplySnapshot implements [format.SnapshotManager]. With dirty bitmaps it
// is refused, as they would not know of the change.
func (img *Image) ApplySnapshot(ctx context.Context, index int) error {
	if len(img.Bitmaps()) > 0 {
		return img.fail("apply a snapshot of", format.ErrActiveBitmaps)
	}
	err := img.changeSnapshots(ctx, func(t *rewrite) error {
		s, err := t.snapshotAt(index)
		if err != nil {
			return err
		}
		return t.apply(s)
	})
	if err != nil {
		return img.fail("apply a snapshot of", err)
	}
	return nil
}

// snapshotAt returns a snapshot whose table can be used.
func (t *rewrite) snapshotAt(index int) (snapshot, error) {
	if index < 0 || index >= len(t.snapshots) {
		return snapshot{}, fmt.Errorf("snapshot %d of %d: %w", index, len(t.snapshots), block.ErrOutOfRange)
	}
	s := t.snapshots[index]
	if err := t.img.checkSnapshotL1(s); err != nil {
		return snapshot{}, fmt.Errorf("internal snapshot %q: %w", s.name, err)
	}
	return s, nil
}

// snapshotL1 reads a snapshot's L1 table.
func (t *rewrite) snapshotL1(s snapshot) ([]l1Entry, error) {
	b := make([]byte, int64(s.l1Size)*8)
	if err := readPadded(t.img.file, b, int64(s.l1Offset)); err != nil {
		return nil, couldNotRead("snapshot L1 table", err)
	}
	return decodeL1(b), nil
}

func (t *rewrite) apply(s snapshot) error {
	size := s.info(t.img.Size()).DiskSize
	switch {
	case size != t.img.Size() && t.img.version < 3:
		return unsupportedf("Can't resize a v2 image which has snapshots")
	case size%block.SectorSize != 0:
		return unsupportedf("The new size must be a multiple of %d", block.SectorSize)
	case size > t.img.Size() && t.img.backing == nil && t.img.backingFile != "":
		return fmt.Errorf("growing: %w", errNotOpened(t.img.backingFile))
	}
	l1, err := t.snapshotL1(s)
	if err != nil {
		return err
	}
	l1 = l1[:min(int64(len(l1)), t.img.g.l1EntriesFor(size))] // what is behind is the machine's state
	if err := t.addTree(l1, 1); err != nil {
		return err
	}
	if err := t.addTree(t.l1, -1); err != nil {
		return err
	}
	if l1, err = t.settle(l1, 1); err != nil {
		return err
	}
	t.h.size = uint64(size)
	return t.replaceL1(l1, len(t.l1))
}

// DeleteSnapshot implements [format.SnapshotManager].
func (img *Image) DeleteSnapshot(ctx context.Context, index int) error {
	err := img.changeSnapshots(ctx, func(t *rewrite) error {
		s, err := t.snapshotAt(index)
		if err != nil {
			return err
		}
		return t.remove(index, s)
	})
	if err != nil {
		return img.fail("delete a snapshot of", err)
	}
	return nil
}

func (t *rewrite) remove(index int, s snapshot) error {
	gone, err := t.snapshotL1(s)
	if err != nil {
		return err
	}
	if err := t.addTree(gone, -1); err != nil {
		return err
	}
	if err := t.freeTable(s.l1Offset, int64(s.l1Size)*8); err != nil {
		return err
	}
	l1, err := t.settle(t.l1, 1)
	if err != nil {
		return err
	}
	if err := t.replaceL1(l1, len(l1)); err != nil {
		return err
	}
	list := append([]snapshot(nil), t.snapshots[:index]...)
	return t.replaceSnapshots(append(list, t.snapshots[index+1:]...))
}

// replaceL1 makes l1, with at least n entries, the active L1 table, in a new
// place. It does not become shorter, so that a request that still waits finds
// no end of the table.
func (t *rewrite) replaceL1(l1 []l1Entry, n int) error {
	if len(l1) < n {
		l1 = append(l1[:len(l1):len(l1)], make([]l1Entry, n-len(l1))...)
	}
	same := len(l1) == len(t.l1)
	for i := 0; same && i < len(l1); i++ {
		same = l1[i] == t.l1[i]
	}
	if same {
		return nil
	}
	at, err := t.writeTable("L1 table", encodeL1(l1))
	if err != nil {
		return err
	}
	if err := t.freeTable(hostOffset(t.h.l1Offset), int64(len(t.l1))*8); err != nil {
		return err
	}
	t.l1 = l1
	t.h.l1Offset, t.h.l1Size = uint64(at), uint32(len(l1))
	return nil
}

// checkSnapshotTable refuses a table that nobody could open.
func checkSnapshotTable(list []snapshot) error {
	if n := snapshotTableSize(list); n > maxSnapshotBytes {
		return tooMany("the snapshot table would have %d bytes, more than %d", n, maxSnapshotBytes)
	}
	return nil
}

// replaceSnapshots makes list the image's snapshots.
func (t *rewrite) replaceSnapshots(list []snapshot) error {
	if err := checkSnapshotTable(list); err != nil {
		return err
	}
	for i := range list {
		list[i] = list[i].complete(t.img.Size())
	}
	var at hostOffset
	if len(list) > 0 {
		var err error
		if at, err = t.writeTable("snapshot table", encodeSnapshots(list)); err != nil {
			return err
		}
	}
	if t.h.snapshotCount > 0 {
		if err := t.freeTable(hostOffset(t.h.snapshotsOffset), t.img.snapshotBytes); err != nil {
			return err
		}
	}
	t.snapshots = list
	t.h.snapshotCount, t.h.snapshotsOffset = uint32(len(list)), uint64(at)
	return nil
}
