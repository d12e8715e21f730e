package qemuimg

import (
	"encoding/json"
	"errors"
	"strings"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/image"
)

// source is an image as the command line names it.
type source struct {
	name, format string
	imageOpts    bool
}

// resolve turns `--image-opts` into name and format. It reports whether that
// worked, else it has said why.
func (t *tool) resolve(s *source) bool {
	if !s.imageOpts {
		return true
	}
	if s.format != "" {
		t.errorf("--image-opts and --format are mutually exclusive")
		return false
	}
	options := map[string]string{}
	for _, kv := range parseKeyvals(s.name, "") {
		options[kv.key] = kv.value
	}
	if !strings.Contains(s.name, "=") {
		t.errorf("Could not open '%s': Cannot find device='%s' nor node-name='%s'", s.name, s.name, s.name)
		return false
	}
	if name, ok := withKeys(options); ok {
		s.name = name
		return true
	}
	name, format, err := image.FromBlockOptions(options)
	if err != nil {
		t.errorf("Could not open '%s': %v", s.name, err)
		return false
	}
	s.name, s.format = name, format
	return true
}

// withKeys returns the json: name of block options that name a key.
func withKeys(options map[string]string) (string, bool) {
	for k := range options {
		if strings.HasSuffix(k, "key-secret") {
			b, err := json.Marshal(options)
			return "json:" + string(b), err == nil
		}
	}
	return "", false
}

// warnProbed says that a raw image that is written was not said to be raw.
func (t *tool) warnProbed(name string) {
	t.flush()
	t.stderrf("WARNING: Image format was not specified for '%s' and probing guessed raw.\n"+
		"         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be restricted.\n"+
		"         Specify the 'raw' format explicitly to remove the restrictions.\n", name)
}

// failOpen reports an image that could not be opened.
func (t *tool) failOpen(err error) int {
	var chain *image.OpenError
	if errors.Is(err, block.ErrBackingLoop) && errors.As(err, &chain) {
		t.errorf("Backing file '%s' creates an infinite loop.", chain.Name)
		return exitFailed
	}
	t.errorf("%s", openText(err))
	return exitFailed
}
