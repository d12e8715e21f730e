// Package luks is the format driver of LUKS1 volumes: a header with key slots,
// and behind it the disk, every sector encrypted. Its algorithms are in
// block/diskcrypt.
package luks

import (
	"context"
	"fmt"
	"io"
	"iter"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/diskcrypt"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/format/encryption"
)

// Driver is the format driver.
type Driver struct{}

var (
	_ format.Driver        = Driver{}
	_ format.CreateChecker = Driver{}
)

// Name implements [format.Driver].
func (Driver) Name() string { return "luks" }

// Probe implements [format.Driver].
func (Driver) Probe(prefix []byte, _ string) int {
	if diskcrypt.IsLUKS(prefix) || isUnfinished(prefix) {
		return 100
	}
	return 0
}

// Open implements [format.Driver]. The option "key-secret" names the secret
// with the passphrase; without data (NoData) it is not needed.
func (Driver) Open(ctx context.Context, file block.Node, opts format.OpenOptions) (block.Node, error) {
	for k := range opts.Values {
		if k != "key-secret" {
			return nil, fmt.Errorf("open %s: option %s of a LUKS volume: %w", opts.Filename, k, block.ErrUnsupported)
		}
	}
	if err := refuseUnfinished(file); err != nil {
		return nil, err
	}
	d := &Disk{file: file, name: opts.Filename, unsafe: opts.Unsafe, secret: opts.Values["key-secret"]}
	if opts.Writable {
		w, ok := file.(block.Writer)
		if !ok {
			return nil, fmt.Errorf("open %s for writing: %w", opts.Filename, block.ErrReadOnly)
		}
		d.wr = w
	}
	var passphrase []byte
	if !opts.NoData {
		var err error
		if passphrase, err = encryption.Passphrase(opts.Secrets, "", d.secret); err != nil {
			return nil, err
		}
		defer clear(passphrase)
	}
	var err error
	if d.volume, err = diskcrypt.ReadVolume(file); err != nil {
		return nil, err
	}
	if opts.Untrusted {
		if err := d.volume.CheckCost(); err != nil {
			return nil, err
		}
	}
	if !opts.NoData {
		if d.cipher, err = d.volume.Unlock(ctx, file, passphrase); err != nil {
			return nil, err
		}
	}
	d.payload = d.volume.PayloadOffset()
	if roundUp(file.Size()) < d.payload {
		return nil, stockf("Could not refresh total sector count: %w", syscall.EIO)
	}
	return d, nil
}

// Disk is an open LUKS volume. Its size is the file's behind the header,
// rounded up to [block.SectorSize].
type Disk struct {
	file    block.Node
	wr      block.Writer // nil if read-only
	name    string
	secret  string // the id of the passphrase that opened it
	unsafe  bool
	volume  *diskcrypt.Volume
	cipher  *diskcrypt.Cipher // nil if opened without data
	payload int64
	closed  atomic.Bool

	// mu is held shared by requests of whole sectors, and alone by writes of
	// parts of sectors, which read and write their sectors, and by Resize.
	mu sync.RWMutex
}

var (
	_ block.Writer     = (*Disk)(nil)
	_ block.Resizer    = (*Disk)(nil)
	_ block.ZeroIniter = (*Disk)(nil)
	_ format.Informer  = (*Disk)(nil)
)

func roundUp(n int64) int64 {
	return (n + block.SectorSize - 1) / block.SectorSize * block.SectorSize
}

// Size implements [block.Node].
func (d *Disk) Size() int64 { return max(roundUp(d.file.Size())-d.payload, 0) }

// ZeroInit implements [block.ZeroIniter]: a hole of the file does not decrypt
// to zeros.
func (d *Disk) ZeroInit() bool { return false }

// ready refuses a request that cannot be done.
func (d *Disk) ready() error {
	switch {
	case d.closed.Load():
		return block.ErrClosed
	case d.cipher == nil:
		return errNoKey
	}
	return nil
}

// ReadAt implements [block.Node].
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if err := d.ready(); err != nil {
		return 0, fmt.Errorf("read %s: %w", d.name, err)
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	size := d.Size()
	if off < 0 {
		return 0, fmt.Errorf("read %s: %w", d.name, block.CheckRange(off, int64(len(p)), size))
	}
	if len(p) == 0 && off <= size {
		return 0, nil
	}
	if off >= size {
		return 0, io.EOF
	}
	var end error
	if int64(len(p)) > size-off {
		p, end = p[:size-off], io.EOF
	}
	n, err := d.read(p, off)
	if err != nil {
		return n, fmt.Errorf("read %s: %w", d.name, err)
	}
	return n, end
}

// read reads what lies in the disk: whole sectors in place, parts of sectors
// by way of a buffer.
func (d *Disk) read(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		q := p[done:]
		in := off % block.SectorSize
		if in == 0 && len(q) >= block.SectorSize {
			q = q[:min(len(q), maxRequest)/block.SectorSize*block.SectorSize]
			if err := d.readSectors(q, off); err != nil {
				return done, err
			}
		} else {
			var sector [block.SectorSize]byte
			if err := d.readSectors(sector[:], off-in); err != nil {
				return done, err
			}
			q = q[:copy(q, sector[in:])]
		}
		done += len(q)
		off += int64(len(q))
	}
	return done, nil
}

// maxRequest is the most bytes that are encrypted or decrypted at once.
const maxRequest = 1 << 20

// readSectors reads and decrypts whole sectors. What the file lacks of its
// last sector counts as zeros before it is decrypted, as for stock.
func (d *Disk) readSectors(p []byte, off int64) error {
	n, err := d.file.ReadAt(p, d.payload+off)
	if err != nil && err != io.EOF {
		return err
	}
	clear(p[n:])
	d.cipher.Decrypt(p, p, uint64(off/block.SectorSize))
	return nil
}

// buffers are for sectors on their way to the file.
var buffers = sync.Pool{New: func() any { return new([maxRequest]byte) }}

// WriteAt implements [block.Writer].
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.change("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	if (off|int64(len(p)))%block.SectorSize == 0 {
		d.mu.RLock()
		defer d.mu.RUnlock()
	} else {
		d.mu.Lock()
		defer d.mu.Unlock()
	}
	buf := buffers.Get().(*[maxRequest]byte)
	defer buffers.Put(buf)
	done := 0
	for done < len(p) {
		n, err := d.writeSome(buf, p[done:], off)
		if err != nil {
			return done, fmt.Errorf("write %s: %w", d.name, err)
		}
		done += n
		off += int64(n)
	}
	return done, nil
}

// writeSome writes the beginning of p and returns how much of it.
func (d *Disk) writeSome(buf *[maxRequest]byte, p []byte, off int64) (int, error) {
	in := off % block.SectorSize
	start := off - in
	n := min(len(p), maxRequest-int(in))
	b := buf[:roundUp(in+int64(n))]
	src := p
	if len(b) != n {
		// The first and the last sector keep what is not written of them.
		if err := d.readSectors(b[:block.SectorSize], start); err != nil {
			return 0, err
		}
		if last := len(b) - block.SectorSize; last > 0 {
			if err := d.readSectors(b[last:], start+int64(last)); err != nil {
				return 0, err
			}
		}
		copy(b[in:], p[:n])
		src = b
	}
	d.cipher.Encrypt(b, src[:len(b)], uint64(start/block.SectorSize))
	if _, err := d.wr.WriteAt(b, d.payload+start); err != nil {
		return 0, err
	}
	return n, nil
}

// change refuses a change that cannot be made.
func (d *Disk) change(op string, off, n int64) error {
	err := d.ready()
	switch {
	case d.closed.Load():
	case d.wr == nil:
		err = block.ErrReadOnly
	case err == nil:
		err = block.CheckRange(off, n, d.Size())
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", op, d.name, err)
	}
	return nil
}

// Flush implements [block.Writer].
func (d *Disk) Flush() error {
	switch {
	case d.closed.Load():
		return fmt.Errorf("flush %s: %w", d.name, block.ErrClosed)
	case d.wr == nil:
		return fmt.Errorf("flush %s: %w", d.name, block.ErrReadOnly)
	case d.unsafe:
		return nil
	}
	return d.wr.Flush()
}

// Extents implements [block.Node]. All of the disk is data: what the file has
// holes for decrypts to anything.
func (d *Disk) Extents(off, n int64) iter.Seq2[block.Extent, error] {
	return func(yield func(block.Extent, error) bool) {
		err := block.CheckRange(off, n, d.Size())
		if d.closed.Load() {
			err = block.ErrClosed
		}
		switch {
		case err != nil:
			yield(block.Extent{}, fmt.Errorf("map %s: %w", d.name, err))
		case n > 0:
			yield(block.Extent{Start: off, Length: n, Kind: block.Data, HostOffset: block.NoHostOffset}, nil)
		}
	}
}

// Resize implements [block.Resizer]. Preallocation is that of the file. As
// with stock, what is added holds anything until it is written (see ZeroInit):
// encrypted zeros would have to be written to all of it.
func (d *Disk) Resize(ctx context.Context, size int64, opts block.ResizeOptions) error {
	if err := d.change("resize", 0, 0); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	r, ok := block.As[block.Resizer](d.file)
	old := d.Size()
	switch {
	case !ok:
		return fmt.Errorf("resize %s: the storage has a fixed size: %w", d.name, block.ErrUnsupported)
	case size < 0 || size > maxDisk:
		return fmt.Errorf("resize %s to %d bytes: %w", d.name, size, block.ErrOutOfRange)
	case size < old && !opts.AllowShrink:
		return fmt.Errorf("resize %s from %d to %d bytes: shrinking was not allowed: %w", d.name, old, size, block.ErrUnsupported)
	case size == old:
		return nil
	case opts.Prealloc == block.PreallocMetadata:
		return &optionError{"Unsupported preallocation mode: metadata"}
	}
	return r.Resize(ctx, d.payload+roundUp(size), opts)
}

// maxDisk is the largest disk: with its header the file's size is a number.
const maxDisk = 1 << 62

// Close implements [block.Node].
func (d *Disk) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	return d.file.Close()
}

// stockf returns an error in stock's words, which begin as sentences do.
func stockf(format string, args ...any) error { return fmt.Errorf(format, args...) }
