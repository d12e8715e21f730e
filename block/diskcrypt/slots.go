package diskcrypt

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"time"
)

// HeaderStore is where a volume's header and key material lie, from offset 0.
type HeaderStore interface {
	io.ReaderAt
	io.WriterAt
	// Flush returns when everything written before survives power loss.
	Flush() error
}

// SlotChange is a change of key slots.
type SlotChange struct {
	// Active adds a passphrase, else passphrases are erased.
	Active bool
	// Slot is the slot to change; -1 means the first free one, or those that
	// OldPassphrase opens.
	Slot int64
	// Passphrase opens the volume, to add another one.
	Passphrase func() ([]byte, error)
	// NewPassphrase is the one to add; OldPassphrase selects those to erase.
	// nil means that none was given.
	NewPassphrase, OldPassphrase func() ([]byte, error)
	// IterTime is as in NewOptions; HasIterTime says that it was given.
	IterTime    time.Duration
	HasIterTime bool
	// Force allows to erase the last slot, and to overwrite an active one.
	// DANGER: without an active slot the data is lost for good.
	Force bool
}

// ChangeSlots adds or erases a passphrase. A new slot's key material is safe
// on the disk before the header says that the slot is active; a slot is
// inactive, on the disk, before its material is overwritten: a crash leaves
// the old or the new passphrases, whichever way. (Overwriting an active slot,
// which needs Force, loses that slot on the way.) The texts are stock's.
func (v *Volume) ChangeSlots(ctx context.Context, store HeaderStore, c SlotChange) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if c.Active {
		return v.addSlot(ctx, store, c)
	}
	return v.eraseSlots(ctx, store, c)
}

func (v *Volume) addSlot(ctx context.Context, store HeaderStore, c SlotChange) error {
	switch {
	case c.NewPassphrase == nil:
		return unsupportedf("'new-secret' is required to activate a keyslot")
	case c.OldPassphrase != nil:
		return unsupportedf("'old-secret' must not be given when activating keyslots")
	case c.Slot < -1 || c.Slot >= Slots:
		return unsupportedf("Invalid keyslot %d specified, must be between 0 and %d", uint32(c.Slot), Slots-1)
	case c.Slot >= 0 && v.h.slots[c.Slot].active == slotEnabled && !c.Force:
		return unsupportedf("Refusing to overwrite active keyslot %d - please erase it first", c.Slot)
	}
	i := int(c.Slot)
	for k := Slots - 1; k >= 0 && c.Slot < 0; k-- {
		if v.h.slots[k].active != slotEnabled {
			i = k
		}
	}
	if i < 0 {
		return unsupportedf("Can't add a keyslot - all keyslots are in use")
	}
	passphrase, err := c.Passphrase()
	if err != nil {
		return err
	}
	defer clear(passphrase)
	key, err := v.h.masterKey(ctx, store, passphrase)
	if err != nil {
		return fmt.Errorf("%w\nFailed to retrieve the master key", err)
	}
	defer clear(key)
	added, err := c.NewPassphrase()
	if err != nil {
		return err
	}
	defer clear(added)
	next := *v.h
	material, err := next.fillSlot(ctx, i, added, key, c.IterTime)
	if err != nil {
		return err
	}
	if v.h.slots[i].active == slotEnabled {
		if err := v.deactivate(store, []int{i}); err != nil {
			return stockf("Failed to write to keyslot %d: %w", i, err)
		}
	}
	if err := writeAndFlush(store, material, int64(next.slots[i].offset)*SectorSize); err != nil {
		return stockf("Failed to write to keyslot %d: %w", i, err)
	}
	if err := v.writeHeader(store, &next); err != nil {
		return stockf("Failed to write to keyslot %d: %w", i, err)
	}
	return nil
}

func (v *Volume) eraseSlots(ctx context.Context, store HeaderStore, c SlotChange) error {
	switch {
	case c.NewPassphrase != nil:
		return unsupportedf("'new-secret' must not be given when erasing keyslots")
	case c.HasIterTime:
		return unsupportedf("'iter-time' must not be given when erasing keyslots")
	}
	var old []byte
	if c.OldPassphrase != nil {
		var err error
		if old, err = c.OldPassphrase(); err != nil {
			return err
		}
		defer clear(old)
	}
	var slots []int
	var err error
	switch {
	case c.Slot != -1:
		slots, err = v.oneToErase(ctx, store, c, old)
	case c.OldPassphrase != nil:
		slots, err = v.matching(ctx, store, c, old)
	default:
		err = unsupportedf("To erase keyslot(s), either explicit keyslot index or the password currently contained in them must be given")
	}
	if err != nil {
		return err
	}
	if err := v.deactivate(store, slots); err != nil {
		return stockf("Failed to erase keyslot %d: %w", slots[0], err)
	}
	for _, i := range slots {
		if err := v.wipeMaterial(store, i); err != nil {
			return stockf("Failed to erase keyslot %d: %w", i, err)
		}
	}
	return nil
}

// oneToErase checks an explicit slot.
func (v *Volume) oneToErase(ctx context.Context, store HeaderStore, c SlotChange, old []byte) ([]int, error) {
	if c.Slot < 0 || c.Slot >= Slots {
		return nil, unsupportedf("Invalid keyslot %d specified, must be between 0 and %d", c.Slot, Slots-1)
	}
	i := int(c.Slot)
	if old != nil {
		key, err := v.h.openSlot(ctx, store, i, old)
		if err != nil {
			return nil, err
		}
		clear(key)
		if key == nil {
			return nil, unsupportedf("Given keyslot %d doesn't contain the given old password for erase operation", i)
		}
	}
	active := v.h.slots[i].active == slotEnabled
	switch {
	case !c.Force && !active:
		return nil, unsupportedf("Given keyslot %d is already erased (inactive) ", i)
	case !c.Force && v.active() == 1:
		return nil, unsupportedf("Attempt to erase the only active keyslot %d which will erase all the data in the image irreversibly - refusing operation", i)
	}
	return []int{i}, nil
}

// matching returns the slots that a passphrase opens.
func (v *Volume) matching(ctx context.Context, store HeaderStore, c SlotChange, old []byte) ([]int, error) {
	var slots []int
	for i := range v.h.slots {
		key, err := v.h.openSlot(ctx, store, i, old)
		if err != nil {
			return nil, err
		}
		if key != nil {
			slots = append(slots, i)
		}
		clear(key)
	}
	switch {
	case len(slots) == 0:
		return nil, unsupportedf("No keyslots match given (old) password for erase operation")
	case !c.Force && len(slots) == v.active():
		return nil, unsupportedf("All the active keyslots match the (old) password that was given and erasing them will erase all the data in the image irreversibly - refusing operation")
	}
	return slots, nil
}

// active counts the active slots.
func (v *Volume) active() int {
	n := 0
	for _, s := range v.h.slots {
		if s.active == slotEnabled {
			n++
		}
	}
	return n
}

// deactivate makes slots inactive, on the disk.
func (v *Volume) deactivate(store HeaderStore, slots []int) error {
	next := *v.h
	for _, i := range slots {
		s := &next.slots[i]
		*s = slot{active: slotDisabled, offset: s.offset, stripes: s.stripes}
	}
	return v.writeHeader(store, &next)
}

// wipes is how often key material is overwritten. More than once is for old
// magnetic disks; what a flash disk keeps no number of times changes.
const wipes = 8

// wipeMaterial overwrites the key material of a slot with random bytes.
func (v *Volume) wipeMaterial(store HeaderStore, i int) error {
	s := v.h.slots[i]
	b := wholeSectors(make([]byte, int(v.h.keyBytes)*stripes))
	for range wipes {
		if _, err := rand.Read(b); err != nil {
			return err
		}
		if err := writeAndFlush(store, b, int64(s.offset)*SectorSize); err != nil {
			return err
		}
	}
	return nil
}

// writeHeader makes next the header. It has more than one sector, which a disk
// may write one without the other: the second one goes first, for a slot that
// lies in both begins to count with the first. After an error the disk may hold
// the old header, the new one, or such a mixture; all of them open with the
// passphrases that are not changed.
func (v *Volume) writeHeader(store HeaderStore, next *header) error {
	b, old := next.encode(), v.h.encode()
	if back, err := decodeHeader(b); err != nil || *back != *next {
		return corruptf("LUKS header: what would be written does not read back the same: %v", err)
	}
	if !bytes.Equal(b[SectorSize:], old[SectorSize:]) {
		if err := writeAndFlush(store, b[SectorSize:], SectorSize); err != nil {
			return err
		}
	}
	if err := writeAndFlush(store, b[:SectorSize], 0); err != nil {
		return err
	}
	v.h = next
	return nil
}

func writeAndFlush(store HeaderStore, p []byte, off int64) error {
	if _, err := store.WriteAt(p, off); err != nil {
		return err
	}
	return store.Flush()
}
