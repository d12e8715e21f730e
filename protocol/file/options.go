package file

import "io/fs"

// Options are the choices of [Open] and [Create]. The zero value opens
// read-only, through the page cache, with the locks of [StableReadLocks].
type Options struct {
	// Writable opens for reading and writing. Create implies it.
	Writable bool
	// Direct bypasses the page cache (O_DIRECT; cache modes none and
	// directsync). Requests of any alignment work; unaligned ones go
	// through a buffer, and unaligned writes read what surrounds them.
	Direct bool
	// Sync makes every write return only when it survives power loss
	// (O_DSYNC; cache modes writethrough and directsync).
	Sync bool
	// Locks are the image locks to hold while the file is open. nil means
	// [WriteLocks] for a writable file and [StableReadLocks] for another.
	Locks *Locks
	// NoLock takes no locks and ignores those of others (`-U`). DANGER: what
	// is read may be half of somebody's change. Not allowed with Writable.
	NoLock bool
	// Growable lets WriteAt and WriteZeroes past the end extend a regular
	// file, as a format driver's image file needs. What lies between the
	// old end and the write reads as zeros.
	Growable bool
	// Keep makes Create leave the content of an existing file to the caller.
	Keep bool
	// Mode is the permission of a file that Create makes, before the
	// umask. 0 means 0644, as stock qemu-img.
	Mode fs.FileMode
}

// locks returns the locks to take.
func (o Options) locks() Locks {
	switch {
	case o.NoLock:
		return Locks{}
	case o.Locks != nil:
		return *o.Locks
	case o.Writable:
		return WriteLocks()
	}
	return StableReadLocks()
}
