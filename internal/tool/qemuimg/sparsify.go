package qemuimg

import (
	"context"
	"errors"
	"os/signal"
	"syscall"

	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/getopt"
)

const (
	sparsifySyntax = "[--object objectdef] [--image-opts] [-f fmt] [-t cache] [-p] [-q] [--untrusted] [--output=ofmt] filename"
	cpSyntax       = "[--object objectdef] [-f fmt] [-n] [-u] [-p] [-q] [--untrusted] filename target"
)

// sparsify gives back the space of zeros.
func (t *tool) sparsify(args []string) int {
	c, status, done := t.parse(args, ":hf:t:pq", []getopt.Long{
		longHelp, longFormat, longObject, longImageOpts, longCache, longProgress, longQuiet, longOutput,
	}, nil)
	if done {
		return status
	}
	src, ok := t.oneImage(c)
	if !ok {
		return exitFailed
	}
	mode, ok := t.outputFormat(c.output, c.hasOutput)
	if !ok || !t.resolve(&src) {
		return exitFailed
	}
	cache, ok := t.cacheMode("cache", c.cache, image.CacheWriteback)
	if !ok {
		return exitFailed
	}
	ctx, stop := t.interruptible()
	defer stop()
	m := t.newMeter(c.progress && mode == outputHuman, 1)
	defer m.stop()
	res, err := image.Sparsify(ctx, src.name, image.SparsifyOptions{Format: src.format, Cache: cache, Untrusted: c.untrusted, Secrets: &t.secrets, Progress: m.update})
	if res.ProbedRaw {
		t.warnProbed(src.name)
	}
	if err != nil {
		return t.failMetered(m, err)
	}
	m.finish()
	gained := res.Before - res.After
	switch {
	case mode == outputJSON:
		t.printf("%s\n", writeJSON(object{{"filename", t.shown(src.name)}, {"zeroed", res.Zeroed}, {"actual-size-before", res.Before}, {"actual-size", res.After}, {"gained", gained}}))
	case !c.quiet:
		t.printf("%s: %s of zeros given back; disk size: %s, was %s.\n", t.shown(src.name), humanSize(res.Zeroed), humanSize(res.After), humanSize(res.Before))
	}
	return exitOK
}

// cp copies an image file as it is.
func (t *tool) cp(args []string) int {
	var opts image.CopyOptions
	c, status, done := t.parse(args, ":hf:nupq", []getopt.Long{
		longHelp, longFormat, longObject, longProgress, longQuiet,
	}, func(o getopt.Option) bool {
		switch o.Val {
		case 'n':
			opts.NoReplace = true
		case 'u':
			opts.KeepNames = true
		}
		return true
	})
	if done {
		return status
	}
	if len(c.rest) != 2 {
		return t.exit("Expecting an image file name and a target")
	}
	ctx, stop := t.interruptible()
	defer stop()
	m := t.newMeter(c.progress, 1)
	defer m.stop()
	opts.Format, opts.Untrusted, opts.Secrets, opts.Progress = c.format, c.untrusted, &t.secrets, m.update
	res, err := image.Copy(ctx, c.rest[0], c.rest[1], opts)
	if err != nil {
		return t.failMetered(m, err)
	}
	m.finish()
	if c.quiet {
		return exitOK
	}
	if res.Shared {
		t.printf("%s: %s, which share their storage with %s.\n", res.Target, humanSize(res.Size), c.rest[0])
	} else {
		t.printf("%s: %s of data, %s of holes.\n", res.Target, humanSize(res.Data), humanSize(res.Size-res.Data))
	}
	return exitOK
}

// failMetered ends the line of the progress and reports why a verb failed.
func (t *tool) failMetered(m *meter, err error) int {
	m.end()
	var open *image.OpenError
	if errors.As(err, &open) {
		return t.failOpen(err)
	}
	t.errorf("%s", plainText(err))
	return exitFailed
}

// interruptible returns a context that ends when the user or the system asks
// the program to.
func (t *tool) interruptible() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(t.ctx, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
}
