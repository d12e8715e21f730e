package qemuimg

import (
	"errors"
	"strings"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/image"
)

// source is an image as the command line names it.
type source struct {
	name, format string
	imageOpts    bool
	noLock       bool
}

// resolve turns `--image-opts` into a name, which says the same in the form
// json:{...}. It reports whether that worked, else it has said why.
func (t *tool) resolve(s *source) bool {
	if !s.imageOpts {
		return true
	}
	if s.format != "" {
		t.errorf("--image-opts and --format are mutually exclusive")
		return false
	}
	flat := map[string]any{}
	for _, kv := range parseKeyvals(s.name, "file") {
		flat[kv.key] = kv.value
	}
	if share, ok := flat["force-share"]; ok && s.noLock && share != "on" {
		t.errorf("--force-share/-U conflicts with image options")
		return false
	}
	if backing, ok := flat["backing"]; ok && backing == "" {
		t.errorf(`warning: Use of "backing": "" is deprecated; use "backing": null instead`)
	}
	o, err := image.ParseBlockOptions(flat)
	if err != nil {
		t.errorf("Could not open '%s': %s", s.name, causeText(err))
		return false
	}
	if t.spelled == nil {
		t.spelled = map[string]string{}
	}
	name := o.Name()
	t.spelled[name] = s.name
	s.name = name
	return true
}

// shown returns how the command line spelled a name that resolve made.
func (t *tool) shown(name string) string {
	if s, ok := t.spelled[name]; ok {
		return s
	}
	return name
}

// openText is the function of that name, with the image spelled as on the
// command line.
func (t *tool) openText(err error) string {
	text := openText(err)
	var open *image.OpenError
	if errors.As(err, &open) {
		text = strings.Replace(text, "'"+open.Name+"'", "'"+t.shown(open.Name)+"'", 1)
	}
	return text
}

// warnProbed says that a raw image that is written was not said to be raw.
func (t *tool) warnProbed(name string) {
	name = image.Filename(name)
	t.flush()
	t.stderrf("WARNING: Image format was not specified for '%s' and probing guessed raw.\n"+
		"         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be restricted.\n"+
		"         Specify the 'raw' format explicitly to remove the restrictions.\n", name)
}

// failOpen reports an image that could not be opened.
func (t *tool) failOpen(err error) int {
	var chain *image.OpenError
	var shared *image.SharedDataError
	if errors.Is(err, block.ErrBackingLoop) && errors.As(err, &chain) && !errors.As(err, &shared) {
		t.errorf("Backing file '%s' creates an infinite loop.", t.shown(chain.Name))
		return exitFailed
	}
	t.errorf("%s", t.openText(err))
	return exitFailed
}
