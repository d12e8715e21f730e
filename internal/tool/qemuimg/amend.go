package qemuimg

import (
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/format/all"
	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/getopt"
)

const amendSyntax = "[--object objectdef] [--image-opts] [-p] [-q] [-f fmt] [-t cache] [--force] -o options filename"

func (t *tool) amend(args []string) int {
	force := false
	c, status, done := t.parse(args, ":ho:f:t:pq", []getopt.Long{
		longHelp, longObject, longImageOpts, longOptions, longFormat, longCache, longProgress, longQuiet, {Name: "force", Val: optForce},
	}, func(getopt.Option) bool {
		force = true
		return true
	})
	if done {
		return status
	}
	if !c.options.set {
		return t.exit("Must specify options (-o)")
	}
	meter := t.newMeterLater(c.progress, 1)
	defer meter.stop()
	defer meter.end()
	if c.format != "" && c.options.wantsHelp() {
		return t.amendHelp(c.format)
	}
	if len(c.rest) != 1 {
		t.errorf("Expecting one image file name")
		return exitFailed
	}
	src := c.image(c.rest[0])
	opts := image.AmendOptions{Force: force, Untrusted: c.untrusted, Secrets: &t.secrets, Progress: meter.update}
	var ok bool
	if opts.Cache, ok = t.cacheMode("cache", c.cache, image.CacheWriteback); !ok || !t.resolve(&src) {
		return exitFailed
	}
	opts.Format = src.format
	return t.runAmend(src.name, c.options, opts, meter)
}

func (t *tool) runAmend(name string, options optionList, opts image.AmendOptions, meter *meter) int {
	ctx := t.ctx
	plan, err := image.PlanAmend(ctx, name, opts)
	if err != nil {
		return t.failOpen(err)
	}
	if plan.ProbedRaw() {
		t.warnProbed(name)
	}
	status := exitFailed
	if options.wantsHelp() {
		status = t.amendHelp(plan.Format())
	} else if values, ok := t.amendValues(plan.Format(), &options); ok {
		opts.Values = values
		meter.update(0, 1)
		err := plan.Amend(ctx, opts)
		meter.again()
		if err == nil {
			status = exitOK
		} else {
			t.errorf("%s", causeText(err))
		}
	}
	if err := plan.Close(); err != nil && status == exitOK {
		t.errorf("%s", causeText(err))
		return exitFailed
	}
	return status
}

// amendOptions returns the options of a format that amend can change.
func amendOptions(drv format.Driver) []format.Option {
	if l, ok := drv.(format.AmendLister); ok {
		return l.AmendOptions()
	}
	var list []format.Option
	for _, o := range drv.Options() {
		if o.Amendable {
			list = append(list, o)
		}
	}
	return list
}

// amendHelp prints the options that can be changed.
func (t *tool) amendHelp(formatName string) int {
	drv := all.Find(formatName)
	if drv == nil {
		t.errorf("Unknown file format '%s'", formatName)
		return exitFailed
	}
	list := amendOptions(drv)
	if len(list) == 0 {
		t.errorf("Format driver '%s' does not support option amendment", formatName)
		return exitFailed
	}
	t.printf("Amend options for '%s':\n", formatName)
	for _, o := range list {
		t.printf("  %-22s - %s\n", o.Name+"=<"+string(o.Type)+">", o.Help)
	}
	return exitOK
}

// amendValues reads the option list.
func (t *tool) amendValues(formatName string, options *optionList) (map[string]string, bool) {
	drv := all.Find(formatName)
	list := amendOptions(drv)
	if len(list) == 0 {
		t.errorf("Format driver '%s' does not support option amendment", formatName)
		return nil, false
	}
	c := creation{drv: drv}
	bad := c.parseWith(options, list)
	if bad == "" {
		return c.values, true
	}
	t.errorf("%s", bad)
	if c.parseWith(options, append(list, drv.Options()...)) == "" {
		t.stderrf("This option is only supported for image creation\n")
	}
	return nil, false
}
