package lineage

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/api"
)

var tree = []api.LineageNode{
	{ID: strings.Repeat("a", 64), Kind: api.LayerTemplate, Names: []string{"debian:12", "web"}, DiskSize: 300 << 20, VirtualSize: 2 << 30, Warm: []string{"w1"}},
	{ID: "f1", Parent: strings.Repeat("a", 64), Kind: api.LayerFrozen, Depth: 1, DiskSize: 1 << 20},
	{ID: "m1", Parent: "f1", Machine: true, Names: []string{"one"}, State: api.Login, Depth: 2, DiskSize: 196 << 10, Advice: "9 layers deep: `lamina flatten one`"},
	{ID: "m2", Parent: "f1", Machine: true, Names: []string{"<two> & \"\x1b[2J\uffff"}, State: api.Stopped, Depth: 2},
	{ID: "m0", Parent: strings.Repeat("a", 64), Machine: true, Names: []string{"a-first"}, State: api.Defined, Depth: 1},
	{ID: strings.Repeat("b", 64), Kind: api.LayerTemplate, DiskSize: 1},
}

func TestText(t *testing.T) {
	var b strings.Builder
	if err := Text(&b, tree); err != nil {
		t.Fatal(err)
	}
	var names []string
	for l := range strings.Lines(b.String()) {
		names = append(names, strings.TrimRight(strings.SplitN(l, "  m", 2)[0], " \n"))
	}
	for i, want := range []string{"NAME ", "bbbbbbbbbbbb  ", "debian:12, web  ", "├─ f1  ", "│  ├─ <two> & ", "│  └─ one", "└─ a-first", "one: 9 layers deep"} {
		if i >= len(names) || !strings.HasPrefix(names[i]+" ", strings.TrimRight(want, " ")) {
			t.Fatalf("line %d of\n%s\nis not %q", i, b.String(), want)
		}
	}
	if strings.ContainsRune(b.String(), 0x1b) {
		t.Error("a name moves the cursor")
	}
}

// TestSVG: it is XML whatever the names are, and of a thousand nodes, or a
// hundred thousand, bounded.
func TestSVG(t *testing.T) {
	many := tree
	for i := range 5000 {
		many = append(many, api.LineageNode{ID: fmt.Sprint("x", i), Parent: "f1", Machine: true, Names: []string{strings.Repeat("é", 60) + fmt.Sprint(i)}})
	}
	for name, nodes := range map[string][]api.LineageNode{"none": nil, "few": tree, "many": many} {
		var b bytes.Buffer
		if err := SVG(&b, nodes); err != nil {
			t.Fatal(err)
		}
		if b.Len() > 2<<20 {
			t.Errorf("%s: %d bytes", name, b.Len())
		}
		if name == "many" && !strings.Contains(b.String(), "and 3006 more") {
			t.Error("it does not say how many are missing")
		}
		d := xml.NewDecoder(&b)
		for {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
}

// TestClip: a name stays in its box however wide its letters are, and names that
// differ at the end still do.
func TestClip(t *testing.T) {
	for _, name := range []string{strings.Repeat("W", 32), strings.Repeat("機", 40) + "1", strings.Repeat("i", 500), "machine-with-a-rather-long-name-number-17"} {
		got := clip(name, nameWidth)
		width := 0
		for _, r := range got {
			width += runeWidth(r)
		}
		if width > nameWidth || width < nameWidth-24 || !strings.Contains(got, "…") {
			t.Errorf("%q is %d pixels wide, of %d", got, width, nameWidth)
		}
		if end := name[len(name)-1:]; !strings.HasSuffix(got, end) {
			t.Errorf("%q does not end in %q", got, end)
		}
	}
	for _, name := range []string{"", "web-001", "debian:12, web"} {
		if got := clip(name, nameWidth); got != name {
			t.Errorf("%q became %q", name, got)
		}
	}
	if got := clip("web-001", 0); got != "…" {
		t.Errorf("of no room: %q", got)
	}
}

// TestBroken: what no store makes is drawn too, each node once.
func TestBroken(t *testing.T) {
	nodes := []api.LineageNode{{ID: "a", Parent: "b"}, {ID: "b", Parent: "a"}, {ID: "c", Parent: "gone"}, {ID: "d", Parent: "d"}, {ID: "a"}}
	rows := layout(nodes)
	if len(rows) != 4 {
		t.Errorf("%d rows of 4 nodes: %+v", len(rows), rows)
	}
}

func TestUnder(t *testing.T) {
	var got []string
	for _, n := range Under(tree, func(n api.LineageNode) bool { return n.ID == "f1" }) {
		got = append(got, n.ID[:2])
	}
	if strings.Join(got, " ") != "aa f1 m1 m2" {
		t.Errorf("under f1: %v", got)
	}
}
