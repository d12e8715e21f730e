package qcow2

import (
	"context"
	"math"
	"math/bits"
	"slices"
	"strings"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

var _ format.Amender = (*Image)(nil)

// amendment is what an amend changes: the options as they will be, and which
// of them were given.
type amendment struct {
	version       uint32
	refcountOrder uint
	lazy          bool
	size          int64
	dataFile      *string // the name to record, nil for no change
	dataFileRaw   bool
	encrypt       map[string]string
}

// Amend implements [format.Amender]. The order of the changes is stock's: the
// upgrade first, as the others may need it, the downgrade last.
func (img *Image) Amend(ctx context.Context, opts format.AmendOptions) error {
	if err := img.checkHeadChange(); err != nil {
		return img.fail("amend", err)
	}
	a, err := img.planAmend(opts)
	if err != nil {
		return err
	}
	return img.amend(ctx, a, opts, &amendProgress{report: opts.Progress})
}

func (img *Image) amend(ctx context.Context, a *amendment, opts format.AmendOptions, p *amendProgress) error {
	if img.hdr.autoclear&^autoclearHandled != 0 {
		// What nobody knows here may not be true any more afterwards.
		img.wbMu.Lock()
		h := img.hdr
		h.autoclear &= autoclearHandled
		err := img.storeFields(h)
		img.wbMu.Unlock()
		if err != nil {
			return err
		}
	}
	if a.version > img.version {
		if err := img.upgrade(ctx); err != nil {
			return err
		}
	}
	if len(a.encrypt) > 0 {
		if err := img.amendEncryption(ctx, opts); err != nil {
			return err
		}
	}
	if a.refcountOrder != img.g.refcountOrder {
		if err := img.changeRefcountOrder(ctx, a.refcountOrder, p); err != nil {
			return err
		}
	}
	if err := img.amendDataFile(a); err != nil {
		return err
	}
	if err := img.amendLazy(a.lazy); err != nil {
		return err
	}
	if a.size != img.Size() {
		if err := img.resize(ctx, a.size, block.ResizeOptions{AllowShrink: true}); err != nil {
			return err
		}
	}
	if a.version < img.version {
		return img.downgrade(ctx, p)
	}
	return nil
}

// planAmend reads the options and refuses what cannot be done, before anything
// is changed. The words are stock's.
func (img *Image) planAmend(opts format.AmendOptions) (*amendment, error) {
	a := &amendment{
		version:       img.version,
		refcountOrder: img.g.refcountOrder,
		lazy:          img.hdr.compat&compatLazyRefcounts != 0,
		size:          img.Size(),
		dataFileRaw:   img.hdr.autoclear&autoclearRawData != 0,
		encrypt:       map[string]string{},
	}
	backing, backingFormat, newBacking := img.backingFile, img.backingFormat, false
	width := uint64(img.g.refcountBits())
	for k, v := range opts.Values {
		var err error
		switch k {
		case "compat":
			a.version, err = parseAmendCompat(v)
		case "size":
			err = a.parseSize(v)
		case "refcount_bits":
			width, err = parseNumber(k, v)
		case "lazy_refcounts":
			a.lazy, err = parseBool(k, v)
		case "data_file_raw":
			a.dataFileRaw, err = parseBool(k, v)
		case "data_file":
			a.dataFile = &v
		case "backing_file":
			backing, newBacking = v, true
		case "backing_fmt":
			backingFormat, newBacking = v, true
		default:
			if !strings.HasPrefix(k, "encrypt.") || !amendable(k) {
				return nil, unsupportedf("Invalid parameter '%s'", k)
			}
			a.encrypt[k] = v
		}
		if err != nil {
			return nil, err
		}
	}
	if newBacking {
		// One that is not given counts as none, as it does for stock.
		if _, ok := opts.Values["backing_file"]; !ok {
			backing = ""
		}
		if _, ok := opts.Values["backing_fmt"]; !ok {
			backingFormat = ""
		}
	}
	if bits.OnesCount64(width) != 1 || width > 64 {
		return nil, unsupportedf("Refcount width must be a power of two and may not exceed 64 bits")
	}
	a.refcountOrder = uint(bits.TrailingZeros64(width))
	if backing != img.backingFile || backingFormat != img.backingFormat {
		return nil, unsupportedf("Cannot amend the backing file\nYou can use 'qemu-img rebase' instead.")
	}
	return a, img.checkAmendment(a)
}

// amendable reports whether amend takes an option.
func amendable(name string) bool {
	return slices.ContainsFunc(Driver{}.AmendOptions(), func(o format.Option) bool { return o.Name == name })
}

func parseAmendCompat(v string) (uint32, error) {
	version, err := parseCompat(v)
	if err != nil {
		return 0, unsupportedf("Unknown compatibility level %s", v)
	}
	return version, nil
}

// parseSize takes a new size; 0 is no change, as for stock.
func (a *amendment) parseSize(v string) error {
	n, err := parseSize("size", v)
	switch {
	case err != nil:
		return err
	case n > math.MaxInt64:
		return unsupportedf("Image size cannot be negative")
	case n != 0:
		a.size = int64(n)
	}
	return nil
}

// checkAmendment refuses options that do not go together, or not with the
// image.
func (img *Image) checkAmendment(a *amendment) error {
	hasDataFile := img.hdr.incompat&incompatDataFile != 0
	switch {
	case a.dataFile != nil && *a.dataFile != "" && !hasDataFile:
		return unsupportedf("data-file can only be set for images that use an external data file")
	case a.dataFileRaw && img.hdr.autoclear&autoclearRawData == 0:
		return unsupportedf("data-file-raw cannot be set on existing images")
	case len(a.encrypt) > 0 && img.hdr.cryptMethod == 0:
		return unsupportedf("Can't amend encryption options - encryption not present")
	case len(a.encrypt) > 0 && img.hdr.cryptMethod != 2:
		return unsupportedf("Only LUKS encryption options can be amended")
	case a.refcountOrder != img.g.refcountOrder && a.refcountOrder != 4 && a.version < 3:
		return unsupportedf("Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)")
	case a.lazy && a.version < 3 && img.hdr.compat&compatLazyRefcounts == 0:
		return unsupportedf("Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)")
	case a.size%block.SectorSize != 0 && a.size != img.Size():
		return unsupportedf("The new size must be a multiple of %d", block.SectorSize)
	case a.size > img.g.maxSize():
		return unsupportedf("Failed to grow the L1 table: File too large")
	case a.version >= img.version:
		return nil
	}
	switch {
	case hasDataFile:
		return unsupportedf("Cannot downgrade an image with a data file")
	case a.refcountOrder != 4:
		return unsupportedf("compat=0.10 requires refcount_bits=16")
	}
	for _, s := range img.snapshots {
		if s.vmStateSize > math.MaxUint32 || s.info(img.Size()).DiskSize != a.size {
			return unsupportedf("Internal snapshots prevent downgrade of image")
		}
	}
	if f := img.hdr.incompat &^ (incompatDirty | incompatCompression); f != 0 {
		return unsupportedf("Cannot downgrade an image with incompatible features %#x set", f)
	}
	return nil
}

// upgrade makes a version 2 image one of version 3. That wants entries of
// snapshots with the disk's size, which old ones do not have.
func (img *Image) upgrade(ctx context.Context) error {
	if slices.ContainsFunc(img.snapshots, func(s snapshot) bool { return len(s.extra) < 16 }) {
		err := img.rewrite(ctx, func(t *rewrite) error {
			return t.replaceSnapshots(slices.Clone(t.snapshots)) // which completes them
		})
		if err != nil {
			return err
		}
	}
	if err := img.writeback(false); err != nil {
		return err
	}
	img.wbMu.Lock()
	defer img.wbMu.Unlock()
	h := img.hdr
	h.version, h.refcountOrder = 3, 4
	exts := img.exts
	if _, ok := findExtension(exts, extFeatureNames); !ok && img.g.clusterSize() > 4096 {
		exts = append(exts[:len(exts):len(exts)], extension{extFeatureNames, encodeFeatureNames(knownFeatures)})
	}
	return img.replaceHead(h, exts, img.backingFile)
}

// amendLazy switches lazy refcounts.
func (img *Image) amendLazy(on bool) error {
	if on == (img.hdr.compat&compatLazyRefcounts != 0) {
		return nil
	}
	if err := img.writeback(true); err != nil { // the refcounts are true then
		return err
	}
	img.wbMu.Lock()
	defer img.wbMu.Unlock()
	h := img.hdr
	if on {
		h.compat |= compatLazyRefcounts
	} else {
		h.compat &^= compatLazyRefcounts
		h.incompat &^= incompatDirty
	}
	if err := img.storeFields(h); err != nil {
		return err
	}
	img.mu.Lock()
	img.lazy = img.lazy && on
	img.mu.Unlock()
	return nil
}

// storeFields writes the header's fields, which no other part of the header
// depends on. The caller holds wbMu.
func (img *Image) storeFields(h header) error {
	if err := img.writeMeta(h.fields(), 0); err != nil {
		return img.refuseWrites(err)
	}
	if err := img.barrier(); err != nil {
		return err
	}
	img.mu.Lock()
	img.hdr = h
	img.mu.Unlock()
	return nil
}

// amendDataFile records another name of the external data file, or that it is
// no raw image.
func (img *Image) amendDataFile(a *amendment) error {
	h := img.hdr
	exts := img.exts
	if a.dataFile != nil && h.incompat&incompatDataFile != 0 {
		var data []byte
		if *a.dataFile != "" {
			data = []byte(*a.dataFile)
		}
		exts = withExtension(exts, extDataFile, data)
	}
	if !a.dataFileRaw {
		h.autoclear &^= autoclearRawData
	}
	if h.autoclear == img.hdr.autoclear && a.dataFile == nil {
		return nil
	}
	if err := img.writeback(false); err != nil {
		return err
	}
	img.wbMu.Lock()
	defer img.wbMu.Unlock()
	return img.replaceHead(h, exts, img.backingFile)
}

// amendProgress adds up the work of the steps of an amendment.
type amendProgress struct {
	report      func(done, total int64)
	done, total int64
}

// add says that a step will take n units.
func (p *amendProgress) add(n int64) { p.total += n }

// step says that one unit is done.
func (p *amendProgress) step() {
	p.done++
	if p.report != nil && p.total > 0 {
		p.report(min(p.done, p.total), p.total)
	}
}

// end says that everything is done, also where there was nothing to do.
func (p *amendProgress) end() {
	if p.report != nil {
		p.report(max(p.total, 1), max(p.total, 1))
	}
}
