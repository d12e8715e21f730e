package qemuimg

import (
	"context"
	"errors"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format/all"
	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/getopt"
)

const convertSyntax = "[--object objectdef] [--image-opts] [--target-image-opts] [--target-is-zero] [--bitmaps [--skip-broken-bitmaps]] [-U] [-C] [-c] [-p] [-q] [-n] [-f fmt] [-t cache] [-T src_cache] [-O output_fmt] [-B backing_file [-F backing_fmt]] [-o options] [-l snapshot_param] [-S sparse_size] [-r rate_limit] [-m num_coroutines] [-W] [--salvage] filename [filename2 [...]] output_filename"

// maxSparse is the largest -S, the stock tool's buffer.
const maxSparse = 16 << 20

// convertArgs is the command line of convert.
type convertArgs struct {
	common
	opts                           image.ConvertOptions
	snapshotName                   *image.SnapshotRef // of -l ID_OR_NAME
	hasSparse, targetOpts          bool
	bitmaps, skipBroken            bool
	progressJSON, progressShown    bool // --progress[=json]
	outFormat, backing, backingFmt string
	sources                        []string
	target                         string
}

func (t *tool) convert(args []string) int {
	var a convertArgs
	var status int
	var done bool
	long := []getopt.Long{
		longHelp, longObject, {Name: "source-image-opts", Val: optImageOpts}, longImageOpts, longForce,
		{Name: "target-image-opts", Val: optTargetImageOpts}, {Name: "salvage", Val: optSalvage}, {Name: "target-is-zero", Val: optTargetIsZero},
		{Name: "bitmaps", Val: optBitmaps}, {Name: "skip-broken-bitmaps", Val: optSkipBroken},
		{Name: "source-format", Arg: getopt.RequiredArgument, Val: 'f'}, {Name: "source-cache", Arg: getopt.RequiredArgument, Val: 'T'},
		{Name: "snapshot", Arg: getopt.RequiredArgument, Val: 'l'}, {Name: "target-format", Arg: getopt.RequiredArgument, Val: 'O'},
		{Name: "target-cache", Arg: getopt.RequiredArgument, Val: 't'}, {Name: "target-format-options", Arg: getopt.RequiredArgument, Val: 'o'},
		{Name: "backing", Arg: getopt.RequiredArgument, Val: 'B'}, {Name: "backing-format", Arg: getopt.RequiredArgument, Val: 'F'},
		{Name: "no-create", Val: 'n'}, {Name: "sparse-size", Arg: getopt.RequiredArgument, Val: 'S'}, {Name: "compress", Val: 'c'},
		{Name: "copy-range-offloading", Val: 'C'}, {Name: "parallel", Arg: getopt.RequiredArgument, Val: 'm'}, {Name: "oob-writes", Val: 'W'},
		{Name: "rate-limit", Arg: getopt.RequiredArgument, Val: 'r'}, longQuiet, longProgress,
	}
	if t.extended() {
		long[len(long)-1] = getopt.Long{Name: "progress", Arg: getopt.OptionalArgument, Val: optProgress}
	}
	a.common, status, done = t.parse(args, ":hf:O:B:b:CcF:o:l:S:pt:T:qnm:WUr:", long, func(o getopt.Option) bool { return t.convertOption(&a, o) })
	if done {
		return status
	}
	a.progress = (a.progress || a.progressShown) && !a.quiet
	a.opts.SourceFormat, a.opts.SourceNoLock, a.opts.SourceUntrusted = a.format, a.noLock, a.untrusted
	a.opts.Secrets = &t.secrets
	if len(a.rest) > 1 {
		a.sources, a.target = a.rest[:len(a.rest)-1], a.rest[len(a.rest)-1]
	}
	return t.checkConvert(a)
}

// convertOption takes over an option that only convert has.
func (t *tool) convertOption(a *convertArgs, o getopt.Option) (ok bool) {
	ok = true
	switch o.Val {
	case 'O':
		a.outFormat = o.Arg
	case 'B', 'b': // QEMU 10 calls it -b
		a.backing = o.Arg
	case 'C':
		a.opts.CopyRange = true
	case 'c':
		a.opts.Compress = true
	case 'F':
		a.backingFmt = o.Arg
	case 'l':
		ok = t.snapshotOption(o.Arg, &a.snapshotName, &a.opts.Snapshot)
	case 'S':
		ok = t.sparseOption(a, o.Arg)
	case 'n':
		a.opts.NoCreate = true
	case 'm':
		n, err := strconv.ParseInt(strings.TrimSpace(o.Arg), 0, 32)
		if ok = err == nil && n >= 1 && n <= 16; !ok {
			t.errorf("Invalid number of coroutines. Allowed number of coroutines is between 1 and 16")
		}
		a.opts.Workers = int(n)
	case 'W':
		a.opts.OutOfOrder = true
	case 'r':
		a.opts.RateLimit, ok = t.number("rate limit", o.Arg)
	case optTargetImageOpts:
		a.targetOpts = true
	case optSalvage:
		a.opts.Salvage = true
	case optTargetIsZero:
		a.opts.TargetZero = true
	case optBitmaps:
		a.bitmaps = true
	case optSkipBroken:
		a.skipBroken = true
	case optProgress:
		switch o.Arg {
		case "":
			a.progressShown = true
		case "json":
			a.progressJSON = true
		default:
			t.errorf("--progress takes json, or nothing, not '%s'", o.Arg)
			ok = false
		}
	}
	return ok
}

// snapshotOption reads -l: an ID or name, or snapshot.id= and snapshot.name=,
// which are exact. The last of each kind counts, and the exact one above the
// other.
func (t *tool) snapshotOption(arg string, named, exact **image.SnapshotRef) bool {
	if !strings.HasPrefix(arg, "snapshot.") {
		*named = &image.SnapshotRef{IDOrName: arg}
		return true
	}
	ref := &image.SnapshotRef{}
	for _, kv := range parseKeyvals(arg, "") {
		switch kv.key {
		case "snapshot.id":
			ref.ID = &kv.value
		case "snapshot.name":
			ref.Name = &kv.value
		default:
			t.errorf("Invalid parameter '%s'", kv.key)
			t.errorf("Failed in parsing snapshot param '%s'", arg)
			return false
		}
	}
	*exact = ref
	return true
}

func (t *tool) sparseOption(a *convertArgs, arg string) bool {
	n, ok := t.number("buffer size for sparse output", arg)
	if !ok {
		return false
	}
	if n%block.SectorSize != 0 || n > maxSparse {
		t.errorf("Invalid buffer size for sparse output specified. Valid sizes are multiples of %d up to %d. Select 0 to disable sparse detection (fully allocates output).", block.SectorSize, maxSparse)
		return false
	}
	a.hasSparse = true
	a.opts.Sparse, a.opts.NoSparse = n, n == 0
	return true
}

// checkConvert looks for options that do not go together, in the stock tool's
// order.
func (t *tool) checkConvert(a convertArgs) int {
	o := &a.opts
	if o.Snapshot == nil {
		o.Snapshot = a.snapshotName
	}
	if a.outFormat == "" && !a.targetOpts {
		a.outFormat = "raw"
	}
	bad := ""
	switch {
	case a.skipBroken && !a.bitmaps:
		bad = "Use of --skip-broken-bitmaps requires --bitmaps"
	case o.Compress && o.CopyRange:
		bad = "Cannot enable copy offloading when -c is used"
	case a.hasSparse && o.CopyRange:
		bad = "Cannot enable copy offloading when -S is used"
	case o.Salvage && o.CopyRange:
		bad = "Cannot use copy offloading in salvaging mode"
	case a.targetOpts && !o.NoCreate:
		bad = "--target-image-opts requires use of -n flag"
	}
	switch {
	case bad != "":
	case o.NoCreate && a.options.set:
		bad = "-o has no effect when skipping image creation"
	case o.TargetZero && !o.NoCreate:
		bad = "--target-is-zero requires use of -n flag"
	}
	if bad != "" {
		t.errorf("%s", bad)
		return exitFailed
	}
	if a.options.set && a.options.wantsHelp() {
		return t.creationHelp(a.target, a.outFormat)
	}
	if len(a.sources) == 0 {
		t.errorf("Must specify image file name")
		return exitFailed
	}
	var ok bool
	if o.SourceCache, ok = t.cacheMode("source cache", a.srcCache, image.CacheWriteback); !ok {
		return exitFailed
	}
	if !t.targetOptions(&a) {
		return exitFailed
	}
	return t.runConvert(a)
}

// targetOptions fills what concerns the target.
func (t *tool) targetOptions(a *convertArgs) bool {
	o := &a.opts
	for i, name := range a.sources {
		s := source{name: name, format: o.SourceFormat, imageOpts: a.imageOpts, noLock: o.SourceNoLock}
		if !t.resolve(&s) {
			return false
		}
		a.sources[i] = s.name
	}
	if a.targetOpts {
		s := source{name: a.target, format: a.outFormat, imageOpts: true}
		if !t.resolve(&s) {
			return false
		}
		a.target = s.name
		a.outFormat = ""
	}
	return true
}

// creationOptions reads -o, -B, -F and -t. It returns what is wrong with them.
func creationOptions(a *convertArgs) string {
	o := &a.opts
	drv := all.Find(a.outFormat)
	switch {
	case drv != nil || a.targetOpts:
	case o.NoCreate:
		return "Could not open '" + a.target + "': Unknown driver '" + a.outFormat + "'"
	default:
		return "Unknown file format '" + a.outFormat + "'"
	}
	o.Format = a.outFormat
	o.BackingFile, o.BackingFormat = a.backing, a.backingFmt
	if !o.NoCreate {
		c := creation{drv: drv}
		if bad := c.parse(&a.options); bad != "" {
			return bad
		}
		if o.BackingFile == "" {
			o.BackingFile = c.values["backing_file"]
		}
		if o.BackingFormat == "" {
			o.BackingFormat = c.values["backing_fmt"]
		}
		delete(c.values, "size")
		o.Values = c.values
		hasBacking := findOption(drv.Options(), "backing_file") != nil
		prealloc := c.values["preallocation"]
		switch {
		case o.BackingFile != "" && !hasBacking:
			return "Backing file not supported for file format '" + a.outFormat + "'"
		case o.BackingFormat != "" && !hasBacking:
			return "Backing file format not supported for file format '" + a.outFormat + "'"
		case o.BackingFile != "" && o.BackingFormat == "":
			return "Use of backing file requires explicit backing format"
		case o.Compress && prealloc != "" && prealloc != "off":
			return "Compression and preallocation not supported at the same time"
		}
	}
	if o.TargetZero && o.BackingFile != "" {
		return "Cannot use --target-is-zero when the destination image has a backing file"
	}
	if len(a.sources) > 1 && o.BackingFile != "" {
		return "Having a backing file for the target makes no sense when concatenating multiple input images"
	}
	o.Cache = image.CacheUnsafe
	if a.cache != "" {
		var err error
		if o.Cache, err = image.ParseCacheMode(a.cache); err != nil {
			return "Invalid cache option: " + a.cache
		}
	}
	return ""
}

func (t *tool) runConvert(a convertArgs) int {
	ctx, stop := signal.NotifyContext(t.ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	bad := creationOptions(&a)
	if bad != "" {
		// The stock tool opens the sources before it looks at these.
		if t.sourcesOpen(ctx, a) {
			t.errorf("%s", bad)
		}
		return exitFailed
	}
	a.opts.Bitmaps, a.opts.SkipBrokenBitmaps = a.bitmaps, a.skipBroken
	a.opts.SkippedBitmap = func(name string) { t.errorf("warning: Skipping inconsistent bitmap '%s'", name) }
	meter := t.newMeter(a.progress, 1)
	defer meter.stop()
	a.opts.Progress = meter.update
	var events *progressEvents
	if a.progressJSON {
		events = &progressEvents{t: t}
		a.opts.Progress = events.update
	}
	a.opts.Unreadable = func(off int64, err error) {
		if !a.quiet {
			t.errorf("warning: error while reading offset %d: %s", off, reasonText(err))
		}
	}
	if err := image.Convert(ctx, a.sources, a.target, a.opts); err != nil {
		meter.end()
		events.end("failed", err)
		return t.failConvert(a, err)
	}
	meter.finish()
	events.end("completed", nil)
	return exitOK
}

// sourcesOpen reports the first source that does not open, or the snapshot.
func (t *tool) sourcesOpen(ctx context.Context, a convertArgs) bool {
	var first *image.Image
	var err error
	for i, name := range a.sources {
		var im *image.Image
		im, err = image.Open(ctx, name, image.Options{Format: a.opts.SourceFormat, NoLock: a.opts.SourceNoLock, Untrusted: a.opts.SourceUntrusted, Secrets: &t.secrets})
		if err != nil {
			break
		}
		defer func() { _ = im.Close() }() // nothing was written
		if i == 0 {
			first = im
		}
	}
	if ref := a.opts.Snapshot; err == nil && ref != nil {
		var node block.Node
		if len(a.sources) > 1 && ref == a.snapshotName {
			err = image.ErrManySnapshots
		} else if node, err = first.OpenSnapshot(ctx, *ref); err == nil {
			err = node.Close()
		}
	}
	if err != nil {
		t.failConvert(a, err)
	}
	return err == nil
}

func (t *tool) failConvert(a convertArgs, err error) int {
	var (
		target *image.TargetError
		open   *image.OpenError
		cp     *image.CopyError
		snap   *image.SnapshotError
		bitmap *image.CopyBitmapError
	)
	switch {
	case errors.Is(err, context.Canceled) && a.opts.NoCreate:
		t.errorf("convert was interrupted; the target is not complete")
	case errors.Is(err, context.Canceled):
		t.errorf("convert was interrupted; the unfinished target was removed")
	case errors.As(err, &bitmap):
		t.failCopyBitmap(bitmap)
	case errors.Is(err, image.ErrBitmapSources):
		t.errorf("Copying bitmaps only possible with single source")
	case errors.Is(err, image.ErrSourceBitmaps):
		t.errorf("Source lacks bitmap support")
	case errors.Is(err, image.ErrTargetBitmaps):
		t.errorf("Format driver '%s' does not support bitmaps", a.outFormat)
	case errors.As(err, &target):
		text := ""
		if a.opts.BackingFormat != "" && a.opts.BackingFile == "" {
			text = "Backing format cannot be used without backing file"
		} else {
			text = createText(target.Err, target.Format, a.opts.Values["preallocation"])
		}
		t.errorf("%s: error while converting %s: %s", target.Name, target.Format, text)
	case errors.As(err, &cp):
		verb := "reading"
		if cp.Writing {
			verb = "writing"
		}
		if cp.Status {
			t.errorf("error while reading block status at offset %d: %s", cp.Offset, reasonText(cp.Err))
			break
		}
		t.errorf("error while %s at byte %d: %s", verb, cp.Offset, reasonText(cp.Err))
	case errors.As(err, &open):
		return t.failOpen(err)
	case errors.Is(err, image.ErrTargetTooSmall):
		t.errorf("output file is smaller than input file")
	case errors.Is(err, image.ErrCompressEncrypted):
		t.errorf("Compression and encryption not supported at the same time")
	case errors.Is(err, image.ErrNoCompression):
		t.errorf("Compression not supported for this file format")
	case errors.Is(err, image.ErrManySnapshots):
		t.errorf("No support for concatenating multiple snapshot")
	case errors.As(err, &snap):
		t.errorf("Failed to load snapshot: %s", snapshotText(snap))
	default:
		t.errorf("%s", plainText(err))
	}
	return exitFailed
}

// snapshotText says in the stock tool's words why a snapshot could not be
// opened.
func snapshotText(e *image.SnapshotError) string {
	switch {
	case errors.Is(e.Err, image.ErrNoSnapshot):
		return "Can't find snapshot"
	case errors.Is(e.Err, image.ErrSnapshotFormat):
		return "Block format '" + e.Format + "' used by device '' does not support temporarily loading internal snapshots"
	}
	return causeText(e.Err)
}
