package image

import (
	"context"
	"errors"
	"fmt"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
)

// CheckOptions are the choices of [Check].
type CheckOptions struct {
	Format string // as in Options
	Cache  CacheMode
	NoLock bool
	// Untrusted refuses an image that names other files, as in Options.
	Untrusted bool
	Repair    block.Repair
	// Secrets resolves the names of keys of encrypted images. nil is none.
	Secrets format.Secrets
	// Report receives each finding as a line, on the calling goroutine.
	Report func(line string)
	// Fixed is called between the repair and the check that follows it,
	// with what was repaired, if anything was. May be nil.
	Fixed func(block.CheckResult)
}

// CheckReport is what a check found.
type CheckReport struct {
	Filename, Format string
	// CheckResult is of the last check: after a repair, what is left; its
	// fixed counts are of the repair.
	block.CheckResult
}

// ErrNoCheck is for a format without metadata to check. It matches
// [block.ErrUnsupported].
const ErrNoCheck = unsupported("check of an image of this format")

// ErrCheckFailed is for a check that could not look at everything.
var ErrCheckFailed = errors.New("check failed")

// Check checks an image's metadata and repairs it if asked to. After a
// repair it is checked a second time. The error is for a check that could not
// be carried out, and the report is valid beside it where Format is set.
func Check(ctx context.Context, name string, opts CheckOptions) (report CheckReport, err error) {
	im, err := Open(ctx, name, Options{
		Untrusted: opts.Untrusted, Format: opts.Format, Cache: opts.Cache, NoLock: opts.NoLock,
		Writable: opts.Repair != block.RepairNone, ForCheck: true, Secrets: opts.Secrets,
	})
	if err != nil {
		return CheckReport{}, err
	}
	defer func() { err = errors.Join(err, im.Close()) }()
	checker, ok := block.As[block.Checker](im.Node())
	if !ok {
		return CheckReport{}, ErrNoCheck
	}
	report = CheckReport{Filename: name, Format: im.Format()}
	report.CheckResult, err = checker.Check(ctx, block.CheckOptions{Repair: opts.Repair, Report: opts.Report})
	if err != nil {
		return report, fmt.Errorf("%w: %s: %w", ErrCheckFailed, name, err)
	}
	fixed := report.CheckResult
	if fixed.CorruptionsFixed == 0 && fixed.LeaksFixed == 0 {
		return report, nil
	}
	if w, ok := block.As[block.Writer](im.Node()); ok {
		if err := w.Flush(); err != nil {
			return report, fmt.Errorf("%s: after the repair: %w", name, err)
		}
	}
	if opts.Fixed != nil {
		opts.Fixed(fixed)
	}
	report.CheckResult, err = checker.Check(ctx, block.CheckOptions{Report: opts.Report})
	report.CorruptionsFixed, report.LeaksFixed = fixed.CorruptionsFixed, fixed.LeaksFixed
	if err != nil {
		return report, fmt.Errorf("%w: %s: after the repair: %w", ErrCheckFailed, name, err)
	}
	return report, nil
}
