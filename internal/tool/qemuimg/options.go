package qemuimg

import (
	"slices"
	"strings"

	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/getopt"
)

// Values of long options without a letter, above every letter.
const (
	optOutput = 256 + iota
	optChain
	optObject
	optImageOpts
	optTargetImageOpts
	optPrealloc
	optShrink
	optForceShrink
	optFixGPT
	optUntrusted
	optPicture
	optSVG
	optPNG
	optUsage
	optProgress
	optTargetIsZero
	optSalvage
	optBitmaps
	optSkipBroken
	optFlushInterval
	optNoDrain
	optPattern
	optForce
	optAdd
	optRemove
	optClear
	optEnable
	optDisable
	optMerge
)

// Long options that several verbs have. QEMU 10 gave many of the letters a
// long name; those are taken too.
var (
	longHelp      = getopt.Long{Name: "help", Val: 'h'}
	longFormat    = getopt.Long{Name: "format", Arg: getopt.RequiredArgument, Val: 'f'}
	longOutput    = getopt.Long{Name: "output", Arg: getopt.RequiredArgument, Val: optOutput}
	longObject    = getopt.Long{Name: "object", Arg: getopt.RequiredArgument, Val: optObject}
	longImageOpts = getopt.Long{Name: "image-opts", Val: optImageOpts}
	longUntrusted = getopt.Long{Name: "untrusted", Val: optUntrusted}
	longForce     = getopt.Long{Name: "force-share", Val: 'U'}
	longQuiet     = getopt.Long{Name: "quiet", Val: 'q'}
	longProgress  = getopt.Long{Name: "progress", Val: 'p'}
	longOptions   = getopt.Long{Name: "options", Arg: getopt.RequiredArgument, Val: 'o'}
	longCache     = getopt.Long{Name: "cache", Arg: getopt.RequiredArgument, Val: 't'}
	longSrcCache  = getopt.Long{Name: "cache", Arg: getopt.RequiredArgument, Val: 'T'}
)

// common is the part of a verb's command line that looks alike in all of them.
// A verb has only those of the options that it lists.
type common struct {
	format    string // -f
	imageOpts bool   // --image-opts
	noLock    bool   // -U
	untrusted bool   // --untrusted
	quiet     bool   // -q
	progress  bool   // -p
	cache     string // -t, "" where not given
	srcCache  string // -T, "" where not given
	output    string // --output
	hasOutput bool
	badObject bool       // a bad --object ended the verb
	options   optionList // -o of a format

	// rest is the operands.
	rest []string
}

// parse reads the command line of a verb: the options of [common] that short
// and long list, and with own those that only this verb has; own reports
// whether the option was good, else it has said why. Where done is set the
// verb ends with status: the help was printed, or something was wrong.
func (t *tool) parse(args []string, short string, long []getopt.Long, own func(getopt.Option) bool) (c common, status int, done bool) {
	return t.parseBut("", args, short, long, own)
}

// parseBut is parse for a verb in which the letters in not are its own, as they
// mean something else.
func (t *tool) parseBut(not string, args []string, short string, long []getopt.Long, own func(getopt.Option) bool) (c common, status int, done bool) {
	switch args[0] {
	case "create", "commit", "rebase": // they are about images that name others
	default:
		long = t.more(long, longUntrusted)
	}
	p := getopt.New(args, short, long)
	for o, err := range p.All() {
		switch {
		case err != nil && !strings.HasPrefix(short, ":"):
			// So the stock tool's measure, with glibc's words.
			t.stderrf("%s: %v\n", args[0], err)
			return c, t.help(), true
		case err != nil:
			return c, t.badOption(err), true
		}
		ok := true
		switch val := o.Val; {
		case strings.ContainsRune(not, val):
			ok = own(o)
		case val == 'h':
			return c, t.help(), true
		case val == 'f':
			c.format = o.Arg
		case val == 'U':
			c.noLock = true
		case val == 'q':
			c.quiet = true
		case val == 'p':
			c.progress = true
		case val == 't':
			c.cache = o.Arg
		case val == 'T':
			c.srcCache = o.Arg
		case val == 'o':
			if ok = c.options.add(o.Arg); !ok {
				t.errorf("Invalid option list: %s", o.Arg)
			}
		case val == optOutput:
			c.output, c.hasOutput = o.Arg, true
		case val == optObject:
			ok = t.object(o.Arg)
			c.badObject = !ok
		case val == optImageOpts:
			c.imageOpts = true
		case val == optUntrusted:
			c.untrusted = true
		default:
			ok = own(o)
		}
		if !ok {
			return c, exitFailed, true
		}
	}
	c.rest = p.Rest()
	// Progress is not shown where nothing is to be said.
	c.progress = c.progress && !c.quiet
	return c, exitOK, false
}

// more adds options that the stock tool does not have.
func (t *tool) more(long []getopt.Long, own ...getopt.Long) []getopt.Long {
	if !t.extended() {
		return long
	}
	return slices.Concat(long, own)
}

// oneImage returns the image of a verb that works on one.
func (t *tool) oneImage(c common) (source, bool) {
	if len(c.rest) != 1 {
		t.exit("Expecting one image file name")
		return source{}, false
	}
	return c.image(c.rest[0]), true
}

// images returns the images of a verb that works on one after the other; the
// stock tool takes only one.
func (t *tool) images(c common) ([]source, bool) {
	if len(c.rest) <= 1 || !t.extended() {
		src, ok := t.oneImage(c)
		return []source{src}, ok
	}
	var list []source
	for _, name := range c.rest {
		list = append(list, c.image(name))
	}
	return list, true
}

// image is the operand name with the options that belong to it.
func (c common) image(name string) source {
	return source{name: name, format: c.format, imageOpts: c.imageOpts, noLock: c.noLock}
}

// output is the value of --output.
type output uint8

const (
	outputHuman output = iota
	outputJSON
)

// outputFormat reads --output; given says whether it was there.
func (t *tool) outputFormat(arg string, given bool) (output, bool) {
	switch {
	case !given || arg == "human":
		return outputHuman, true
	case arg == "json":
		return outputJSON, true
	}
	t.errorf("--output must be used with human or json as argument.")
	return outputHuman, false
}

// cacheMode reads -t or -T; what is "cache" or "source cache".
func (t *tool) cacheMode(what, arg string, standard image.CacheMode) (image.CacheMode, bool) {
	if arg == "" {
		return standard, true
	}
	m, err := image.ParseCacheMode(arg)
	if err != nil {
		t.errorf("Invalid %s option: %s", what, arg)
		return "", false
	}
	return m, true
}
