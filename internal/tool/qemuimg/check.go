package qemuimg

import (
	"errors"
	"slices"
	"strings"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/getopt"
)

const checkSyntax = "[--object objectdef] [--image-opts] [-q] [-f fmt] [--output=ofmt] [-r [leaks | all]] [-T src_cache] [-U] filename"

// Exit statuses of check, beside exitOK and exitFailed.
const (
	exitCorrupt  = 2  // the image is corrupt
	exitLeaks    = 3  // the image has leaked clusters, and no other harm
	exitNoChecks = 63 // the format has nothing to check
)

// checkArgs is the command line of check.
type checkArgs struct {
	common
	src  source
	mode output
	opts image.CheckOptions
	// emit takes the JSON form; nil prints it.
	emit func(object)
}

func (t *tool) check(args []string) int {
	var a checkArgs
	var status int
	var done bool
	long := []getopt.Long{
		longHelp, longFormat, {Name: "repair", Arg: getopt.RequiredArgument, Val: 'r'}, longOutput, longObject, longImageOpts, longForce, longSrcCache, longQuiet,
	}
	a.common, status, done = t.parse(args, ":hf:r:T:qU", long, func(o getopt.Option) bool {
		switch o.Arg {
		case "leaks":
			a.opts.Repair = block.RepairLeaks
		case "all":
			a.opts.Repair = block.RepairAll
		default:
			t.exit("Unknown option value for -r (expecting 'leaks' or 'all'): %s", o.Arg)
			return false
		}
		return true
	})
	if done {
		return status
	}
	srcs, ok := t.images(a.common)
	if !ok {
		return exitFailed
	}
	if a.mode, ok = t.outputFormat(a.output, a.hasOutput); !ok {
		return exitFailed
	}
	if a.opts.Cache, ok = t.cacheMode("source cache", a.srcCache, image.CacheWriteback); !ok {
		return exitFailed
	}
	if len(srcs) == 1 {
		a.src = srcs[0]
		return t.runCheck(a)
	}
	return t.checkSeveral(a, srcs)
}

// checkSeveral checks one image after the other. The exit status is that of
// the worst.
func (t *tool) checkSeveral(a checkArgs, srcs []source) int {
	worst := 0
	order := []int{exitOK, exitNoChecks, exitLeaks, exitCorrupt, exitFailed}
	var reports []any
	a.emit = func(o object) { reports = append(reports, o) }
	for i, src := range srcs {
		if a.mode == outputHuman && !a.quiet {
			if i > 0 {
				t.printf("\n")
			}
			t.printf("image: %s\n", t.shown(src.name))
		}
		a.src = src
		worst = max(worst, slices.Index(order, t.runCheck(a)))
	}
	if a.mode == outputJSON && !a.quiet {
		t.printf("%s\n", writeJSON(reports))
	}
	return order[worst]
}

func (t *tool) runCheck(a checkArgs) int {
	if !t.resolve(&a.src) {
		return exitFailed
	}
	a.opts.NoLock, a.opts.Untrusted = a.noLock, a.untrusted
	a.opts.Secrets = &t.secrets
	if a.opts.NoLock && a.opts.Repair != block.RepairNone {
		t.errorf("Could not open '%s': force-share=on can only be used with read-only images", t.shown(a.src.name))
		return exitFailed
	}
	human := a.mode == outputHuman && !a.quiet
	a.opts.Format = a.src.format
	a.opts.Report = func(line string) {
		if strings.HasPrefix(line, "ERROR failed to read the snapshot table: ") || strings.HasPrefix(line, "ERROR snapshot table ") && !strings.HasSuffix(line, " is incomplete") {
			t.errorf("%s", line)
			return
		}
		t.flush()
		t.stderrf("%s\n", line)
	}
	a.opts.Fixed = func(r block.CheckResult) {
		if human {
			t.printf("The following inconsistencies were found and repaired:\n\n    %d leaked clusters\n    %d corruptions\n\nDouble checking the fixed image now...\n",
				r.LeaksFixed, r.CorruptionsFixed)
		}
	}
	r, err := image.Check(t.ctx, a.src.name, a.opts)
	r.Filename = t.shown(r.Filename)
	switch {
	case errors.Is(err, image.ErrNoCheck):
		t.errorf("This image format does not support checks")
		return exitNoChecks
	case errors.Is(err, image.ErrCheckFailed):
		t.errorf("Check failed: %s", reasonText(err))
		return exitFailed
	case err != nil:
		return t.failOpen(err)
	}
	switch {
	case human:
		t.printCheck(r)
	case a.quiet:
	case a.emit != nil:
		a.emit(checkJSON(r))
	default:
		t.printf("%s\n", writeJSON(checkJSON(r)))
	}
	switch {
	case r.CheckErrors > 0:
		return exitFailed
	case r.Corruptions > 0:
		return exitCorrupt
	case r.Leaks > 0:
		return exitLeaks
	}
	return exitOK
}

// printCheck is the human form.
func (t *tool) printCheck(r image.CheckReport) {
	if r.Corruptions == 0 && r.Leaks == 0 && r.CheckErrors == 0 {
		t.printf("No errors were found on the image.\n")
	}
	if r.Corruptions > 0 {
		t.printf("\n%d errors were found on the image.\nData may be corrupted, or further writes to the image may corrupt it.\n", r.Corruptions)
	}
	if r.Leaks > 0 {
		t.printf("\n%d leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data.\n", r.Leaks)
	}
	if r.CheckErrors > 0 {
		t.printf("\n%d internal errors have occurred during the check.\n", r.CheckErrors)
	}
	if r.TotalClusters != 0 && r.AllocatedClusters != 0 {
		part := func(n, of int64) float64 { return float64(n) * 100 / float64(of) }
		t.printf("%d/%d = %.2f%% allocated, %.2f%% fragmented, %.2f%% compressed clusters\n", r.AllocatedClusters, r.TotalClusters,
			part(r.AllocatedClusters, r.TotalClusters), part(r.FragmentedClusters, r.AllocatedClusters), part(r.CompressedClusters, r.AllocatedClusters))
	}
	if r.ImageEndOffset > 0 {
		t.printf("Image end offset: %d\n", r.ImageEndOffset)
	}
}

// checkJSON is the JSON form: counts that are zero are left out, but for that
// of check errors.
func checkJSON(r image.CheckReport) object {
	var o object
	add := func(key string, n int64) {
		if n != 0 {
			o.add(key, n)
		}
	}
	add("image-end-offset", r.ImageEndOffset)
	add("compressed-clusters", r.CompressedClusters)
	add("total-clusters", r.TotalClusters)
	add("corruptions-fixed", r.CorruptionsFixed)
	add("corruptions", r.Corruptions)
	o.add("check-errors", r.CheckErrors)
	add("leaks-fixed", r.LeaksFixed)
	add("leaks", r.Leaks)
	add("allocated-clusters", r.AllocatedClusters)
	o.add("filename", r.Filename)
	o.add("format", r.Format)
	add("fragmented-clusters", r.FragmentedClusters)
	return o
}
