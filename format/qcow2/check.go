package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"syscall"

	"github.com/lamina-vm/lamina/block"
)

var _ block.Checker = (*Image)(nil)

// Check implements [block.Checker]. It finds what stock `qemu-img check`
// finds, and reports it in the same words.
//
// It reads the tables from the file itself, past every cache, counts the
// references to each cluster, and compares the counts with the refcounts. The
// memory that it takes grows with the clusters that are referred to, not with
// what the header or the size of a sparse file claim.
//
// A repair never makes things worse at an instant of power loss: refcounts are
// written before what relies on them, and a new refcount structure is whole on
// disk before the header points to it. Where stock fails to rebuild (a damaged
// refcount table entry that still overlaps its own block) or makes the file
// longer for a refcount block outside it, the structure is built anew here; and
// where an L1 entry points into the middle of data, which stock repairs as if it
// were an L2 table, the data is left alone.
func (img *Image) Check(ctx context.Context, opts block.CheckOptions) (block.CheckResult, error) {
	c, err := newChecker(ctx, img, opts)
	if err != nil {
		return block.CheckResult{}, img.fail("check", err)
	}
	runErr := c.run()
	if c.changed {
		if err := img.reload(); err != nil && runErr == nil {
			runErr = err
		}
	}
	if runErr != nil {
		return c.res, img.fail("check", runErr)
	}
	return c.res, nil
}

// checker is one run of a check.
type checker struct {
	ctx        context.Context
	img        *Image
	g          geometry
	w          block.Writer // nil unless something may be repaired
	fixLeaks   bool
	fixErrors  bool
	reportLine func(string)

	res      block.CheckResult
	changed  bool // something was written
	corrupt  bool // the first unaligned refcount block was reported
	rebuild  bool // the refcount structure is not usable
	fileLen  int64
	clusters int64 // clusters of the file, and those referred to right behind it
	highest  int64 // last cluster that is in use

	snapshotDamage int64 // entries of the snapshot table

	refs          referenceCounts // what the tables refer to
	table         []refTableEntry // the refcount table
	blockAt       int64           // index of the refcount block in block, -1 for none
	block         []byte
	blockOff      int64
	bitmapEntries int64       // of bitmap tables, looked at so far
	l2            []byte      // buffer for an L2 table
	l2Table       l2Table     // and for what it says
	guarded       *clusterSet // clusters that no L2 table may lie in; nil until needed
}

func newChecker(ctx context.Context, img *Image, opts block.CheckOptions) (*checker, error) {
	if img.closed.Load() {
		return nil, block.ErrClosed
	}
	c := &checker{ctx: ctx, img: img, g: img.g, reportLine: opts.Report, blockAt: -1}
	if opts.Repair != block.RepairNone {
		if img.wr == nil {
			return nil, fmt.Errorf("repairing: %w", block.ErrReadOnly)
		}
		c.w = img.wr
		c.fixLeaks, c.fixErrors = true, opts.Repair == block.RepairAll
	}
	// What is only in memory would look like damage.
	if img.wr != nil {
		if c.w != nil {
			img.bitmaps.dropIgnored()
		}
		if err := img.storeAgain(); err != nil {
			return nil, err
		}
	}
	if img.wr != nil && !img.clean() {
		if err := img.writeback(true); err != nil {
			return nil, err
		}
	}
	c.l2 = make([]byte, c.g.clusterSize())
	c.l2Table = c.g.newL2Table(int(c.g.l2Entries()))
	c.block = make([]byte, c.g.clusterSize())
	return c, nil
}

// report passes a line on.
func (c *checker) report(format string, args ...any) {
	if c.reportLine != nil {
		c.reportLine(fmt.Sprintf(format, args...))
	}
}

// label is the first word of a finding.
func (c *checker) label(repairing bool) string {
	if repairing {
		return "Repairing"
	}
	return "ERROR"
}

// run does the check in stock's order: snapshot table, references, refcounts,
// COPIED flags.
func (c *checker) run() error {
	if err := c.checkSnapshotTable(); err != nil {
		return err
	}
	if err := c.begin(); err != nil {
		return err
	}
	if err := c.checkTables(); err != nil {
		c.res.Corruptions += c.snapshotDamage
		return err
	}
	c.res.ImageEndOffset = (c.highest + 1) << c.g.clusterBits
	if err := c.fixSnapshotTable(); err != nil {
		return err
	}
	return c.finish()
}

// checkTables checks everything but the snapshot table.
func (c *checker) checkTables() error {
	if err := c.countReferences(c.fixErrors); err != nil {
		return err
	}
	if err := c.checkRefcounts(); err != nil {
		return err
	}
	return c.checkCopied()
}

// begin learns the sizes and reads the refcount table.
func (c *checker) begin() error {
	c.fileLen = c.img.file.Size()
	c.clusters = ceilDiv(c.fileLen, c.g.clusterSize())
	if c.clusters > math.MaxInt32 {
		c.res.CheckErrors++
		return fmt.Errorf("the file has %d clusters: %w", c.clusters, syscall.EFBIG)
	}
	c.res.TotalClusters = ceilDiv(c.img.Size(), c.g.clusterSize())
	c.res.HasClusterCounts = true
	return c.readTable()
}

func (c *checker) readTable() error {
	b := make([]byte, int64(c.img.hdr.refTableClusters)<<c.g.clusterBits)
	if err := c.read(b, int64(c.img.hdr.refTableOffset)); err != nil {
		c.res.CheckErrors++
		return fmt.Errorf("refcount table: %w", err)
	}
	c.table, c.blockAt = decodeRefTable(b), -1
	return nil
}

// checkRefcounts compares, and repairs what may be repaired.
func (c *checker) checkRefcounts() error {
	before := c.res
	if err := c.compare(false, false); err != nil {
		return err
	}
	switch {
	case c.rebuild && c.fixErrors:
		return c.rebuildAndRecount()
	case c.w == nil:
		return nil
	case c.rebuild:
		c.report("ERROR need to rebuild refcount structures")
		return fmt.Errorf("the refcount structure is damaged, only a repair of everything (-r all) can rebuild it: %w", syscall.EIO)
	case c.res.Leaks > 0 || c.res.Corruptions > 0:
		c.res = before
		if err := c.compare(c.fixLeaks, c.fixErrors); err != nil {
			return err
		}
		return c.barrier()
	}
	return nil
}

// rebuildAndRecount makes a new refcount structure and counts again, because
// the old structure's clusters are leaks now.
func (c *checker) rebuildAndRecount() error {
	old := c.res
	c.report("Rebuilding refcount structure")
	if err := c.writeNewStructure(); err != nil {
		c.res.CheckErrors++
		return fmt.Errorf("rebuild of the refcount structure: %w", err)
	}
	fixed := c.res.CorruptionsFixed
	c.res = block.CheckResult{TotalClusters: old.TotalClusters, HasClusterCounts: true, CorruptionsFixed: fixed, LeaksFixed: old.LeaksFixed}
	c.rebuild = false
	c.refs = referenceCounts{}
	if err := c.countReferences(false); err != nil {
		return err
	}
	counted := c.res
	c.res = block.CheckResult{}
	if err := c.compare(true, false); err != nil {
		return err
	}
	if c.rebuild {
		c.report("ERROR rebuilt refcount structure is still broken")
	}
	fresh := c.res
	c.res = counted
	c.res.CorruptionsFixed += max(0, old.Corruptions-c.res.Corruptions)
	c.res.LeaksFixed += max(0, old.Leaks-c.res.Leaks)
	c.res.Leaks += fresh.Leaks
	c.res.CheckErrors += fresh.CheckErrors
	return c.barrier()
}

// finish clears the dirty and corrupt bits of an image that is whole again.
func (c *checker) finish() error {
	if c.w == nil || c.res.CheckErrors > 0 || c.res.Corruptions > 0 || c.img.version < 3 {
		return nil
	}
	if c.img.hdr.incompat&(incompatDirty|incompatCorrupt) == 0 {
		return nil
	}
	if err := c.barrier(); err != nil {
		return err
	}
	incompat := c.img.hdr.incompat &^ (incompatDirty | incompatCorrupt)
	if err := c.write(binary.BigEndian.AppendUint64(nil, incompat), offIncompatFeatures); err != nil {
		return err
	}
	c.img.hdr.incompat = incompat
	return c.barrier()
}

// read reads from the file; what lies behind its end reads as zeros.
func (c *checker) read(p []byte, off int64) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	return readPadded(c.img.file, p, off)
}

func (c *checker) write(p []byte, off int64) error {
	c.changed = true
	_, err := c.w.WriteAt(p, off)
	return err
}

// barrier makes what was written survive a power loss before what follows.
func (c *checker) barrier() error {
	if !c.changed || c.img.unsafe {
		return nil
	}
	return c.w.Flush()
}

// reload reads again what the image keeps in memory, after a repair.
func (img *Image) reload() error {
	img.wbMu.Lock()
	defer img.wbMu.Unlock()
	img.mu.Lock()
	defer img.mu.Unlock()
	return img.reloadTables()
}
