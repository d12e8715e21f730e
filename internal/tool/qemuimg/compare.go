package qemuimg

import (
	"errors"

	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/getopt"
)

const compareSyntax = "[--object objectdef] [--image-opts] [-f fmt] [-F fmt] [-T src_cache] [-p] [-q] [-s] [-U] filename1 filename2"

// Exit statuses of compare, beside exitOK for images that are alike.
const (
	exitDiffer     = 1
	exitNotOpened  = 2
	exitStatusTest = 3 // it could not be found out what an image stores
	exitNotRead    = 4
)

func (t *tool) compare(args []string) int {
	format2, strict := "", false
	c, status, done := t.parse(args, ":hf:F:T:pqsU", []getopt.Long{
		longHelp, longObject, longImageOpts, longForce, longSrcCache, longProgress, longQuiet,
		{Name: "a-format", Arg: getopt.RequiredArgument, Val: 'f'}, {Name: "b-format", Arg: getopt.RequiredArgument, Val: 'F'},
		{Name: "strict", Val: 's'},
	}, func(o getopt.Option) bool {
		if o.Val == 'F' {
			format2 = o.Arg
		} else {
			strict = true
		}
		return true
	})
	switch {
	case c.badObject:
		return exitNotOpened
	case done:
		return status
	}
	if len(c.rest) != 2 {
		return t.exit("Expecting two image file names")
	}
	meter := t.newMeterLater(c.progress, 2)
	defer meter.stop()
	status = t.runCompare(c, format2, strict, meter)
	meter.end()
	return status
}

func (t *tool) runCompare(c common, format2 string, strict bool, meter *meter) int {
	opts := image.CompareOptions{Secrets: &t.secrets, NoLock: c.noLock, Untrusted: c.untrusted, Strict: strict, Progress: meter.update}
	var ok bool
	if opts.Cache, ok = t.cacheMode("source cache", c.srcCache, image.CacheWriteback); !ok {
		return exitNotOpened
	}
	a, b := c.image(c.rest[0]), c.image(c.rest[1])
	b.format = format2
	if !t.resolve(&a) || !t.resolve(&b) {
		return exitNotOpened
	}
	opts.FormatA, opts.FormatB = a.format, b.format
	r, err := image.Compare(t.ctx, a.name, b.name, opts)
	say := func(format string, args ...any) {
		if !c.quiet {
			t.printf(format, args...)
		}
	}
	common := min(r.SizeA, r.SizeB)
	var bad *image.CompareError
	switch {
	case errors.As(err, &bad):
		if bad.Tail {
			say("Warning: Image size mismatch!\n")
		}
		if bad.Status {
			t.errorf("Sector allocation test failed for %s", bad.Name)
			return exitStatusTest
		}
		t.errorf("Error while reading offset %d of %s: %s", bad.Offset, bad.Name, reasonText(bad.Err))
		return exitNotRead
	case err != nil:
		t.failOpen(err)
		return exitNotOpened
	case r.Kind == image.SizeDiffers:
		say("Strict mode: Image size mismatch!\n")
		return exitDiffer
	case r.Kind == image.StatusDiffers:
		say("Strict mode: Offset %d block status mismatch!\n", r.Offset)
		return exitDiffer
	case r.SizeA != r.SizeB && (r.Kind == image.NoDifference || r.Offset >= common):
		say("Warning: Image size mismatch!\n")
	}
	if r.Kind == image.ContentDiffers {
		say("Content mismatch at offset %d!\n", r.Offset)
		return exitDiffer
	}
	say("Images are identical.\n")
	return exitOK
}
