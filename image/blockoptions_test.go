package image

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/block"
)

// TestBlockOptionNames holds that options survive being written as a name, and
// that names are written as stock writes them (the order is its dictionary's).
func TestBlockOptionNames(t *testing.T) {
	for _, c := range []struct {
		flat           map[string]any
		name, filename string
	}{
		{map[string]any{"driver": "qcow2", "file.filename": "a"}, `json:{"driver": "qcow2", "file": {"filename": "a"}}`, "a"},
		{map[string]any{"driver": "file", "filename": "a"}, `json:{"driver": "file", "filename": "a"}`, "a"},
		{
			map[string]any{"driver": "raw", "offset": int64(512), "size": "1k", "file.driver": "file", "file.filename": "a", "file.locking": "off"},
			`json:{"offset": 512, "driver": "raw", "size": "1k", "file": {"locking": "off", "driver": "file", "filename": "a"}}`,
			`json:{"offset": 512, "driver": "raw", "size": "1k", "file": {"driver": "file", "filename": "a"}}`,
		},
		{map[string]any{"file.filename": "a\"\\\x01é\xff", "backing": nil}, `json:{"backing": null, "file": {"filename": "a\"\\\u0001é` + "\xff" + `"}}`, "a\"\\\x01é\xff"},
	} {
		o, err := ParseBlockOptions(maps.Clone(c.flat))
		if err != nil {
			t.Fatal(err)
		}
		if o.Name() != c.name || o.Filename() != c.filename {
			t.Errorf("%v: name %s, file name %s", c.flat, o.Name(), o.Filename())
		}
		loc, err := parseName(o.Name())
		if err != nil {
			t.Fatalf("%s: %v", o.Name(), err)
		}
		if loc.opts.Name() != o.Name() {
			t.Errorf("%s becomes %s", o.Name(), loc.opts.Name())
		}
	}
}

// FuzzBlockOptions: any text after json: is a value or an error, and a value
// means the same when it is written again.
func FuzzBlockOptions(f *testing.F) {
	for _, s := range []string{
		`{"driver":"qcow2","file":{"filename":"a"}}`, `{'driver':'raw','size':-1.5e3,"file.filename":"\ud83d\ude00\n"}`, `{"a":[1,{"b":null}],"file":{"filename":""}}`,
		`{"backing":null,"file":{"file":{"file":{"driver":"file","filename":"x"}}}}`, `{`, `[[[[[`, `{"a":1,"a":2}`, strings.Repeat(`{"file":`, 100),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		loc, err := parseName("json:" + text)
		if err != nil {
			if loc.opts != nil && loc.path != "" {
				t.Errorf("a value and an error: %v", err)
			}
			if !errors.Is(err, block.ErrUnsupported) && !errors.Is(err, block.ErrUnknownFormat) {
				t.Errorf("%v matches no sentinel", err)
			}
			return
		}
		name := loc.opts.Name()
		again, err := parseName(name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if again.path != loc.path || again.format != loc.format || again.opts.Name() != name {
			t.Errorf("%s becomes %s", name, again.opts.Name())
		}
	})
}
