package file

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/block"
)

// Perm is a set of the permissions of QEMU's image locking. The bit numbers
// are part of the protocol: each is a byte of the file that is locked.
type Perm uint8

// The permissions.
const (
	PermRead           Perm = 1 << iota // "consistent read": what is read makes sense
	PermWrite                           // change what the guest sees
	PermWriteUnchanged                  // write without changing what the guest sees
	PermResize                          // change the size
)

// permNames are QEMU's names, by bit.
var permNames = [...]string{"consistent read", "write", "write unchanged", "resize"}

// Where the lock bytes lie in the image file: one byte for each permission
// that somebody holds, one for each that somebody does not share.
const (
	lockHeldBase      = 100
	lockNotSharedBase = 200
)

// Locks is what an open file holds, and what it forbids others to hold.
//
// The protocol is QEMU's (block/file-posix): an opener takes a shared lock on
// byte 100+bit for each permission that it holds and on byte 200+bit for each
// that it does not share, and then looks whether somebody else has a lock on
// the opposite byte. The locks belong to the open file description and end
// with it, however the process ends.
type Locks struct {
	Held, NotShared Perm
}

// SharedReadLocks is for reading plain bytes beside somebody who writes them
// (stock: reading a raw image with compare or qemu-io -r).
func SharedReadLocks() Locks { return Locks{Held: PermRead} }

// StableReadLocks is for reading what nobody may change meanwhile: every
// format with metadata, a backing file, the source of convert.
func StableReadLocks() Locks {
	return Locks{Held: PermRead, NotShared: PermWrite | PermResize}
}

// WriteLocks is for changing an image that nobody else may change or be sure of.
func WriteLocks() Locks {
	return Locks{Held: PermRead | PermWrite | PermResize, NotShared: PermWrite | PermResize}
}

// SharedWriteLocks is for writing plain bytes beside others who do so (stock:
// qemu-io and convert -n on a raw image).
func SharedWriteLocks() Locks { return Locks{Held: PermRead | PermWrite} }

// RawResizeLocks is what stock resize takes on a raw image.
func RawResizeLocks() Locks { return Locks{Held: PermRead | PermWrite | PermResize} }

// CreateLocks is what making a new image in a file takes.
func CreateLocks() Locks {
	return Locks{Held: PermWrite | PermResize, NotShared: PermResize}
}

// LockError says which lock somebody else prevents. It matches
// [block.ErrInUse]; its text is that of stock QEMU, on two lines.
type LockError struct {
	File string
	Perm string // QEMU's name of the permission
	// Shared is set where another process holds the permission that we do
	// not share, else it does not share the one that we want to hold.
	Shared bool
}

// Error returns QEMU's wording.
func (e *LockError) Error() string {
	shared := ""
	if e.Shared {
		shared = "shared "
	}
	return fmt.Sprintf("Failed to get %s\"%s\" lock\nIs another process using the image [%s]?", shared, e.Perm, e.File)
}

// Is makes the error match [block.ErrInUse].
func (e *LockError) Is(target error) bool { return target == block.ErrInUse }

// ChangeLocks replaces the locks that the open file holds. On an error it
// holds those of before, without a gap.
func (f *File) ChangeLocks(l Locks) error {
	if f.opts.NoLock && l != (Locks{}) {
		return fmt.Errorf("lock %s: it was opened without locks: %w", f.name, block.ErrUnsupported)
	}
	f.lockMu.Lock()
	defer f.lockMu.Unlock()
	if f.closed.Load() {
		return f.wrap("lock", block.ErrClosed)
	}
	more := Locks{Held: l.Held &^ f.locks.Held, NotShared: l.NotShared &^ f.locks.NotShared}
	ok, err := lockBytes(f.f, f.name, more)
	if err != nil {
		return err
	}
	if !ok {
		return nil // the file system has no such locks
	}
	if err := conflict(f.f, f.name, l); err != nil {
		unlockBytes(f.f, more)
		return err
	}
	unlockBytes(f.f, Locks{Held: f.locks.Held &^ l.Held, NotShared: f.locks.NotShared &^ l.NotShared})
	f.locks = l
	return nil
}

// dropLocks gives up all locks before the descriptor is closed. Closing does it
// too, but only with the last copy, and a process that is being started at this
// moment, a QEMU of another machine say, has one until it executes.
func (f *File) dropLocks() {
	f.lockMu.Lock()
	defer f.lockMu.Unlock()
	unlockBytes(f.f, f.locks)
	f.locks = Locks{}
}

// lockBytes takes the shared locks that tell others of l, or none of them.
// False means that the kernel or the file system has no such locks; QEMU goes
// on without them too ("locking=auto").
func lockBytes(f *os.File, name string, l Locks) (bool, error) {
	for _, b := range l.bytes() {
		err := ofd(f, unix.F_OFD_SETLK, unix.F_RDLCK, b)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
			return false, nil
		}
		if err != nil {
			unlockBytes(f, l)
			return false, fmt.Errorf("lock byte %d of %s: %w", b, name, err)
		}
	}
	return true, nil
}

// unlockBytes gives up locks. Errors do not matter: closing does it too.
func unlockBytes(f *os.File, l Locks) {
	for _, b := range l.bytes() {
		_ = ofd(f, unix.F_OFD_SETLK, unix.F_UNLCK, b)
	}
}

// bytes returns the offsets of the lock bytes.
func (l Locks) bytes() []int64 {
	var b []int64
	for bit := range int64(len(permNames)) {
		if l.Held&(1<<bit) != 0 {
			b = append(b, lockHeldBase+bit)
		}
		if l.NotShared&(1<<bit) != 0 {
			b = append(b, lockNotSharedBase+bit)
		}
	}
	return b
}

// conflict looks for locks of others against l, in QEMU's order, so that the
// message names the same permission.
func conflict(f *os.File, name string, l Locks) error {
	for bit, perm := range permNames {
		if l.Held&(1<<bit) == 0 {
			continue
		}
		taken, err := lockedByOther(f, lockNotSharedBase+int64(bit))
		if err != nil {
			return fmt.Errorf("look for locks on %s: %w", name, err)
		}
		if taken {
			return &LockError{File: name, Perm: perm}
		}
	}
	for bit, perm := range permNames {
		if l.NotShared&(1<<bit) == 0 {
			continue
		}
		taken, err := lockedByOther(f, lockHeldBase+int64(bit))
		if err != nil {
			return fmt.Errorf("look for locks on %s: %w", name, err)
		}
		if taken {
			return &LockError{File: name, Perm: perm, Shared: true}
		}
	}
	return nil
}

// ofd sets a lock on one byte of the open file description.
func ofd(f *os.File, cmd int, typ int16, off int64) error {
	return withFD(f, func(fd int) error {
		return unix.FcntlFlock(uintptr(fd), cmd, &unix.Flock_t{Type: typ, Whence: io.SeekStart, Start: off, Len: 1})
	})
}

// lockedByOther reports whether another open file description has any lock on
// the byte.
func lockedByOther(f *os.File, off int64) (bool, error) {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: off, Len: 1}
	err := withFD(f, func(fd int) error {
		return unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &l)
	})
	return l.Type != unix.F_UNLCK, err
}

// withFD runs fn with f's descriptor, which cannot be closed meanwhile, again
// while a signal interrupts it.
func withFD(f *os.File, fn func(fd int) error) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var opErr error
	err = c.Control(func(fd uintptr) {
		for {
			if opErr = fn(int(fd)); !errors.Is(opErr, unix.EINTR) {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	return opErr
}
