package crash

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/blocktest"
	"github.com/lamina-vm/lamina/block/fault"
	"github.com/lamina-vm/lamina/internal/underlay"
)

// faultKind is a way in which requests fail.
type faultKind struct {
	name  string
	op    fault.Op
	err   error
	short int64
	grow  bool // only what makes the file longer
	stays bool // all later ones fail too
}

var faultKinds = []faultKind{
	{name: "EIO reading", op: fault.Read, err: syscall.EIO},
	{name: "short read", op: fault.Read, err: syscall.EIO, short: 100},
	{name: "EIO writing", op: fault.Write, err: syscall.EIO},
	{name: "short write", op: fault.Write, err: syscall.EIO, short: 512},
	{name: "ENOSPC", op: fault.Write, err: syscall.ENOSPC, grow: true},
	{name: "ENOSPC from then on", op: fault.Write, err: syscall.ENOSPC, grow: true, stays: true},
	{name: "EIO zeroing", op: fault.Zero, err: syscall.EIO},
	{name: "EIO discarding", op: fault.Discard, err: syscall.EIO},
	{name: "fsync", op: fault.Flush, err: syscall.EIO},
	{name: "ENOSPC resizing", op: fault.Resize, err: syscall.ENOSPC},
}

// fileTree is the content of a folder.
type fileTree map[string][]byte

func readTree(t *testing.T, dir string) fileTree {
	t.Helper()
	tree := fileTree{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if tree[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return tree
}

// restore makes dir hold the tree again.
func (tree fileTree) restore(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	for name, b := range tree {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// injector makes the n-th request of a kind on any file of a folder fail.
type injector struct {
	kind   faultKind
	n      int64
	count  atomic.Int64
	struck atomic.Bool
}

func (in *injector) wrap(_ string, node block.Node) block.Node {
	w, ok := node.(block.Writer)
	if !ok {
		return node
	}
	return fault.Wrap(w, fault.Rule{Op: in.kind.op, Err: in.kind.err, Short: in.kind.short, Where: func(off, n int64) bool {
		if n == 0 && in.kind.op == fault.Read || in.kind.grow && off+n <= node.Size() {
			return false
		}
		k := in.count.Add(1) - 1
		hit := k == in.n || in.kind.stays && k > in.n
		if hit {
			in.struck.Store(true)
		}
		return hit
	}})
}

// faultCases are the verbs over few mixes: every fault of each is tried.
func faultCases() []verbCase {
	chosen := map[string]bool{}
	var out []verbCase
	for _, c := range cases() {
		// One mix each of a verb's command lines.
		key := c.verb + c.lines + c.then
		for _, m := range append(mixes, extraMixes...) {
			key = strings.ReplaceAll(key, m, "MIX")
		}
		key += fmt.Sprint(strings.Contains(c.setup+c.lines, "data_file"), strings.Contains(c.setup, "@dst"))
		if strings.Contains(c.lines, "secret") || chosen[key] {
			continue
		}
		chosen[key] = true
		out = append(out, c)
	}
	return out
}

// faults tries every fault of a verb and returns how many struck.
func (c verbCase) faults(t *testing.T, seed uint64) (runs int) {
	dir := tempDir(t)
	r := rand.New(rand.NewPCG(seed, 3))
	c.prepare(t, dir, r)
	start := readTree(t, dir)
	before := c.views(t, dir)
	mustCommand(t, dir, c.lines)
	after := c.views(t, dir)
	for _, kind := range faultKinds {
		for n := int64(0); ; n++ {
			start.restore(t, dir)
			in := &injector{kind: kind, n: n}
			err := c.runFaulty(t, dir, in)
			if !in.struck.Load() {
				break
			}
			runs++
			if e := c.judgeFault(t, dir, kind, err, start, before, after); e != nil {
				t.Fatalf("%s, number %d: %v\nthe tool: %v\n%s; %s; %s", kind.name, n, e, err, c.setup, c.then, c.lines)
			}
		}
	}
	return runs
}

// runFaulty runs the verb with a fault, no longer than a minute.
func (c verbCase) runFaulty(t *testing.T, dir string, in *injector) error {
	t.Helper()
	defer underlay.Under(dir, in.wrap)()
	done := make(chan error, 1)
	go func() { done <- command(dir, c.lines) }()
	select {
	case err := <-done:
		return err
	case <-time.After(time.Minute):
		t.Fatalf("%s, number %d: the tool hangs: %s", in.kind.name, in.n, c.lines)
		return nil
	}
}

// judgeFault looks at what a fault left, now that it is gone.
func (c verbCase) judgeFault(t *testing.T, dir string, kind faultKind, runErr error, start fileTree, before, after []view) error {
	now := readTree(t, dir)
	for i, f := range c.see {
		untouched := start[f.name] != nil && bytes.Equal(now[f.name], start[f.name])
		source := f.format == "raw" && f.rule == oldOrNew
		if untouched && (source || runErr != nil) {
			continue
		}
		if source {
			return fmt.Errorf("%s was changed", f.name)
		}
		v, err := look(t.Context(), dir, f.imageFile)
		if runErr == nil {
			// What could be done without, was.
			if err != nil {
				return fmt.Errorf("success, but %s: %w", f.name, err)
			}
			if !bytes.Equal(v.disk, after[i].disk) {
				return fmt.Errorf("success, but %s reads wrong", f.name)
			}
			continue
		}
		if errors.Is(err, os.ErrNotExist) && f.rule == target {
			continue
		}
		s := &state{w: &world{names: []string{f.name}}}
		if b, ok := now[f.name]; ok && len(b) > 0 {
			s.disks = append(s.disks, loadFile(t, filepath.Join(dir, f.name)))
		} else {
			s.disks = append(s.disks, nil)
		}
		if err := f.judge(s, v, err, before[i], after[i]); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	if runErr == nil && kind.op == fault.Flush {
		return errors.New("success although a flush failed")
	}
	return nil
}

// TestFaults makes every request of every verb fail, one after the other: the
// tool says so, the source stays as it is, and the image is whole, as before
// or as after.
func TestFaults(t *testing.T) {
	seed := blocktest.Seed(t)
	var mu sync.Mutex
	runs := map[string]int{}
	t.Run("verbs", func(t *testing.T) {
		for i, c := range faultCases() {
			t.Run(fmt.Sprintf("%d %s", i, c.lines), func(t *testing.T) {
				t.Parallel()
				n := c.faults(t, seed+uint64(i))
				mu.Lock()
				defer mu.Unlock()
				runs[c.verb] += n
			})
		}
	})
	t.Logf("faults that struck: %v", runs)
	for verb, n := range runs {
		if n < 20 {
			t.Errorf("%s: only %d faults struck", verb, n)
		}
	}
}
