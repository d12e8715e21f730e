package qemuimg

import (
	"errors"
	"syscall"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/getopt"
)

const rebaseSyntax = "[--object objectdef] [--image-opts] [-U] [-q] [-f fmt] [-t cache] [-T src_cache] [-p] [-u] [-c] -b backing_file [-F backing_fmt] filename"

func (t *tool) rebase(args []string) int {
	opts := image.RebaseOptions{Secrets: &t.secrets}
	hasBacking := false
	c, status, done := t.parse(args, ":hf:F:B:b:upt:T:qUc", []getopt.Long{
		longHelp, longObject, longImageOpts, longForce, longFormat, longCache, longQuiet, longProgress,
		{Name: "backing-cache", Arg: getopt.RequiredArgument, Val: 'T'}, {Name: "compress", Val: 'c'}, {Name: "backing-unsafe", Val: 'u'},
		{Name: "backing", Arg: getopt.RequiredArgument, Val: 'b'}, {Name: "backing-format", Arg: getopt.RequiredArgument, Val: 'F'},
	}, func(o getopt.Option) bool {
		switch o.Val {
		case 'F', 'B': // QEMU 10 calls it -B
			opts.BackingFormat = o.Arg
		case 'b':
			opts.Backing, hasBacking = o.Arg, true
		case 'u':
			opts.Unsafe = true
		case 'c':
			opts.Compress = true
		}
		return true
	})
	if done {
		return status
	}
	if len(c.rest) != 1 {
		return t.exit("Expecting one image file name")
	}
	if !opts.Unsafe && !hasBacking {
		return t.exit("Must specify backing file (-b) or use unsafe mode (-u)")
	}
	meter := t.newMeter(c.progress, 1)
	defer meter.stop()
	status = t.runRebase(c, opts, meter)
	meter.end()
	return status
}

func (t *tool) runRebase(c common, opts image.RebaseOptions, meter *meter) int {
	var ok bool
	if opts.Cache, ok = t.cacheMode("cache", c.cache, image.CacheWriteback); !ok {
		return exitFailed
	}
	if opts.SourceCache, ok = t.cacheMode("source cache", c.srcCache, image.CacheWriteback); !ok {
		return exitFailed
	}
	src := c.image(c.rest[0])
	if !t.resolve(&src) {
		return exitFailed
	}
	opts.Format, opts.NoLock, opts.Progress = src.format, c.noLock, meter.update
	opts.Opened = func(probedRaw bool) {
		if probedRaw {
			t.warnProbed(src.name)
		}
	}
	if err := image.Rebase(t.ctx, src.name, opts); err != nil {
		return t.failRebase(err)
	}
	meter.finish()
	return exitOK
}

// failRebase reports why a rebase failed.
func (t *tool) failRebase(err error) int {
	var (
		unknown *image.UnknownFormatError
		open    *image.OpenError
		next    *image.NewBackingError
		change  *image.ChangeBackingError
		step    *image.RebaseError
	)
	switch {
	case errors.As(err, &next):
		t.errorf("Could not open new backing file '%s': %s", next.Name, causeText(next.Err))
	case errors.As(err, &change):
		t.errorf("Could not change the backing file to '%s': %s", change.Name, changeText(change.Err))
	case errors.As(err, &open):
		return t.failOpen(err)
	case errors.As(err, &unknown):
		t.errorf("Invalid format name: '%s'", unknown.Format)
	case errors.Is(err, image.ErrNoCompression):
		t.errorf("Compression not supported for this file format")
	case errors.As(err, &step):
		switch step.Step {
		case image.StepMap:
			t.errorf("error while reading image metadata: %s", reasonText(step.Err))
		case image.StepReadOld:
			t.errorf("error while reading from old backing file")
		case image.StepReadNew:
			t.errorf("error while reading from new backing file")
		default:
			t.errorf("Error while writing to COW image: %s", reasonText(step.Err))
		}
	default:
		t.errorf("%s", causeText(err))
	}
	return exitFailed
}

// changeText says why another backing file could not be recorded.
func changeText(err error) string {
	switch {
	case errors.Is(err, format.ErrHeaderFull):
		return "No space left in the file header"
	case errors.Is(err, image.ErrBackingFormatMissing):
		return image.ErrBackingFormatMissing.Error()
	case errors.Is(err, image.ErrNoBackingChange):
		return errnoText(syscall.ENOTSUP)
	case errors.Is(err, block.ErrUnsupported):
		return errnoText(syscall.EINVAL)
	}
	return reasonText(err)
}
