package qemuimg

import (
	"fmt"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/image"
)

// The picture of a chain is bounded, however long the chain.
func TestTreeDeep(t *testing.T) {
	t.Chdir(t.TempDir())
	const n = 2*maxTreeDepth + 10
	for i := range n {
		opts := image.CreateOptions{Format: "qcow2", Size: 1 << 20, Unchecked: true, NoFlush: true}
		if i > 0 {
			opts.BackingFile, opts.BackingFormat = fmt.Sprintf("%03d", i-1), "qcow2"
		}
		if err := image.Create(t.Context(), fmt.Sprintf("%03d", i), opts); err != nil {
			t.Fatal(err)
		}
	}
	type node struct {
		Filename, Problem string
		Overlays          []node
	}
	r := lamina(t, "tree --output=json")
	roots := decodeJSON[[]node](t, r.stdout)
	if r.status != exitFailed || len(roots) != 3 || roots[1].Filename != "256" || roots[2].Filename != "512" || !strings.HasPrefix(roots[1].Problem, "TOO DEEP: its backing file 255 ") {
		t.Fatalf("status %d, %d roots, %.500s", r.status, len(roots), r.stdout)
	}
	total := 0
	for _, x := range roots {
		for {
			total++
			if len(x.Overlays) == 0 {
				break
			}
			x = x.Overlays[0]
		}
	}
	if total != n {
		t.Errorf("%d images of %d", total, n)
	}
	if out := lamina(t, "tree").stdout; strings.Count(out, "\n") != n || len(out) > 1<<20 {
		t.Errorf("%d lines, %d bytes", strings.Count(out, "\n"), len(out))
	}
}
