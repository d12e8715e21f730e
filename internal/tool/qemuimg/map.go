package qemuimg

import (
	"strconv"

	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/getopt"
)

const mapSyntax = "[--object objectdef] [--image-opts] [-f fmt] [--start-offset=offset] [--max-length=len] [--output=ofmt] [-U] filename"

func (t *tool) mapVerb(args []string) int {
	var pic drawing
	start, length := int64(0), int64(-1)
	long := []getopt.Long{
		longHelp, longFormat, longOutput, longObject, longImageOpts, longForce,
		{Name: "start-offset", Arg: getopt.RequiredArgument, Val: 's'}, {Name: "max-length", Arg: getopt.RequiredArgument, Val: 'l'},
	}
	if t.extended() {
		long = append(long, getopt.Long{Name: "picture", Val: optPicture},
			getopt.Long{Name: "svg", Arg: getopt.RequiredArgument, Val: optSVG}, getopt.Long{Name: "png", Arg: getopt.RequiredArgument, Val: optPNG})
	}
	c, status, done := t.parse(args, ":f:s:l:hU", long, func(o getopt.Option) bool {
		ok := true
		switch o.Val {
		case 's':
			start, ok = t.number("start offset", o.Arg)
		case 'l':
			length, ok = t.number("max length", o.Arg)
		case optPicture:
			pic.terminal = true
		case optSVG:
			pic.svg = o.Arg
		case optPNG:
			pic.png = o.Arg
		}
		return ok
	})
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
	im, err := image.Open(t.ctx, src.name, image.Options{Format: src.format, NoLock: c.noLock, Untrusted: c.untrusted, Secrets: &t.secrets})
	if err != nil {
		return t.failOpen(err)
	}
	defer func() { _ = im.Close() }()
	if pic.wanted() {
		return t.draw(im, pic, start, length)
	}
	if mode == outputJSON {
		return t.printMapJSON(im, start, length)
	}
	return t.printMap(im, start, length)
}

// printMap is the human form: only what is stored.
func (t *tool) printMap(im *image.Image, start, length int64) int {
	t.printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File")
	for e, err := range im.Map(t.ctx, start, length) {
		switch {
		case err != nil:
			return t.failMap(err)
		case !e.Data || e.Zero && e.HasOffset:
		case !e.HasOffset:
			t.errorf("File contains external, encrypted or compressed clusters.")
			return exitFailed
		default:
			t.printf("%-16s%-16s%-16s%s\n", hex(e.Start), hex(e.Length), hex(e.Offset), e.Filename)
		}
	}
	return exitOK
}

// hex writes a number as C's "%#x" does: zero has no prefix.
func hex(n int64) string {
	if n == 0 {
		return "0"
	}
	return "0x" + strconv.FormatInt(n, 16)
}

// printMapJSON prints every run, on a line of its own.
func (t *tool) printMapJSON(im *image.Image, start, length int64) int {
	sep := "["
	write := func(e image.MapExtent) {
		t.printf("%s{ \"start\": %d, \"length\": %d, \"depth\": %d, \"present\": %t, \"zero\": %t, \"data\": %t", sep, e.Start, e.Length, e.Depth, e.Present, e.Zero, e.Data)
		if e.HasOffset {
			t.printf(", \"offset\": %d", e.Offset)
		}
		t.printf("}")
		sep = ",\n"
	}
	for e, err := range im.Map(t.ctx, start, length) {
		if err != nil {
			return t.failMap(err)
		}
		write(e)
	}
	if sep == "[" {
		write(image.MapExtent{Start: start}) // the stock tool prints an empty run
	}
	t.printf("]\n")
	return exitOK
}

func (t *tool) failMap(err error) int {
	t.errorf("Failed to read image metadata: %s", reasonText(err))
	return exitFailed
}
