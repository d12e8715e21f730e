package qcow2

import (
	"context"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

var (
	_ format.BackingChanger = (*Image)(nil)
	_ format.Emptier        = (*Image)(nil)
)

// ChangeBacking implements [format.BackingChanger].
func (img *Image) ChangeBacking(ctx context.Context, name, formatName string) error {
	if err := img.changeBacking(ctx, name, formatName); err != nil {
		return img.fail("change the backing file of", err)
	}
	return nil
}

func (img *Image) changeBacking(ctx context.Context, name, formatName string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := img.checkHeadChange(); err != nil {
		return err
	}
	switch {
	case len(name) > maxBackingName:
		return unsupportedf("Backing file name too long")
	case name == "":
		formatName = ""
	case img.rawData():
		return unsupportedf("Backing file and data-file-raw cannot be used at the same time")
	case formatName == "":
		return unsupportedf("backing format must be specified")
	}
	if err := img.writeback(false); err != nil {
		return err
	}
	img.wbMu.Lock()
	defer img.wbMu.Unlock()
	var data []byte
	if formatName != "" {
		data = []byte(formatName)
	}
	h := img.hdr
	h.autoclear &= autoclearHandled
	if err := img.replaceHead(h, withExtension(img.exts, extBackingFormat, data), name); err != nil {
		return err
	}
	img.backingFile, img.backingFormat = name, formatName
	return nil
}

// checkHeadChange refuses a change of the header that cannot be made.
func (img *Image) checkHeadChange() error {
	if err := img.checkChange(0, 0); err != nil {
		return err
	}
	if img.overlap != nil {
		return img.refuseWrites(img.overlap)
	}
	return nil
}

// MakeEmpty implements [format.Emptier].
func (img *Image) MakeEmpty(ctx context.Context) error {
	if err := img.makeEmpty(ctx); err != nil {
		return img.fail("empty", err)
	}
	return nil
}

// makeEmpty unlinks the L2 tables; each writeback writes the L1 entries and,
// behind a barrier, gives back what they referred to.
func (img *Image) makeEmpty(ctx context.Context) error {
	if err := img.checkChange(0, 0); err != nil {
		return err
	}
	if err := img.begin(); err != nil {
		return err
	}
	for i := range img.l1 {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := img.relieve(); err != nil {
			return err
		}
		if img.l1[i].l2Table() == 0 {
			continue
		}
		if err := img.dropEntries(int64(i)*img.g.l2Span(), img.g.l2Entries(), true); err != nil {
			return err
		}
	}
	if err := img.writeback(false); err != nil {
		return err
	}
	if img.g.external && !img.rawData() {
		// Nothing refers to what the data file holds any more.
		if d, ok := block.As[block.Discarder](img.data.wr); ok {
			_ = d.Discard(0, min(img.Size(), img.data.wr.Size()))
		}
	}
	if err := img.compactRefcounts(ctx); err != nil {
		return err
	}
	return img.cutFile(ctx)
}
