package crash

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// rule says what an image may read as when the power fails within a verb.
type rule uint8

const (
	oldOrNew rule = iota // as before or as after the verb
	mixed                // each sector as before or as after
	target               // nothing yet, marked as unfinished, or as after
	refilled             // as before, marked as unfinished, or as after
	damaged              // as before, and the check may find what it found before
	resized              // of the old or the new size, and what both have as before
)

// watched is an image that a verb must keep whole.
type watched struct {
	imageFile
	rule rule
}

// verbCase is one use of a verb. Lines are of the tool; see command. Between
// setup and lines, the images named by fills get random content.
type verbCase struct {
	verb  string
	setup string
	fills []imageFile
	then  string // more setup
	lines string
	see   []watched
}

// mixes are the features of qcow2 images by their creation options.
var mixes = []string{
	"cluster_size=16k,extended_l2=on",
	"compat=0.10,cluster_size=512",
	"cluster_size=512",
	"cluster_size=512,refcount_bits=1",
	"cluster_size=1k,refcount_bits=64",
	"cluster_size=512,lazy_refcounts=on",
	"cluster_size=4k,refcount_bits=8",
	"compat=0.10,cluster_size=64k",
	"cluster_size=64k,compression_type=zstd",
}

// extraMixes are those of features that only some verbs can do.
var extraMixes = []string{
	"data_file=@d,cluster_size=4k",
	"data_file=@d,data_file_raw=on,cluster_size=4k",
}

// diskSize is the size of the disks of a mix: some L2 tables' worth of small
// clusters, some clusters of large ones.
func diskSize(mix string) int {
	if strings.Contains(mix, "cluster_size=64k") || strings.Contains(mix, "extended_l2") {
		return 640 << 10
	}
	return 72 << 10
}

func qcow2(name string) imageFile { return imageFile{name, "qcow2"} }

// tally counts the states by verb.
type tally struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *tally) add(verb string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[verb] += n
}

// report prints the counts and fails below the least for any verb or all.
func (c *tally) report(t *testing.T, least map[string]int, all int) {
	t.Helper()
	verbs := make([]string, 0, len(c.n))
	sum := 0
	for v, n := range c.n {
		verbs = append(verbs, v)
		sum += n
	}
	sort.Strings(verbs)
	for _, v := range verbs {
		t.Logf("%-20s %6d states", v, c.n[v])
	}
	t.Logf("%-20s %6d states", "all", sum)
	for v, n := range least {
		if c.n[v] < n {
			t.Errorf("%s: %d states, expected at least %d", v, c.n[v], n)
		}
	}
	if sum < all {
		t.Errorf("%d states in all, expected at least %d", sum, all)
	}
}

// prepare makes the files that the verb works on, in dir.
func (c verbCase) prepare(t *testing.T, dir string, r *rand.Rand) {
	t.Helper()
	if c.setup != "" {
		mustCommand(t, dir, c.setup)
	}
	for _, f := range c.fills {
		fill(t, dir, f, r, 0.5)
	}
	for step := range strings.SplitSeq(c.then, ";") {
		switch step = strings.TrimSpace(step); step {
		case "":
		case "write":
			fill(t, dir, c.fills[0], r, 0.3)
		case "zeros":
			fillZeros(t, dir, c.fills[0], r)
		case "leak":
			damageRefcounts(t, filepath.Join(dir, c.fills[0].name), true)
		case "norefs":
			damageRefcounts(t, filepath.Join(dir, c.fills[0].name), false)
		default:
			mustCommand(t, dir, step)
		}
	}
}

// run records the verb and checks every state.
func (c verbCase) run(t *testing.T, seed uint64, samples int) (states int) {
	dir := tempDir(t)
	r := rand.New(rand.NewPCG(seed, 1))
	c.prepare(t, dir, r)
	before := c.views(t, dir)
	w := recordFiles(t, dir, func(*world) { mustCommand(t, dir, c.lines) })
	after := c.views(t, dir)
	for at, disks := range w.states(r, samples) {
		states++
		s := &state{w, disks}
		ctx := s.context(t.Context())
		for i, f := range c.see {
			v, err := look(ctx, dir, f.imageFile)
			if err = f.judge(s, v, err, before[i], after[i]); err != nil {
				t.Fatalf("power loss after %d of %d events: %s: %v\n%s", at, w.set.Len(), f.name, err, c.story(w, at))
			}
		}
	}
	return states
}

// story lists the last events before a power loss.
func (c verbCase) story(w *world, at int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s; %s; %s\n", c.setup, c.then, c.lines)
	for i, e := range w.set.Log()[:at] {
		if i >= at-12 {
			fmt.Fprintf(&b, "  %d %s %s\n", i, w.names[e.Disk], e)
		}
	}
	return b.String()
}

// views looks at all images that there are.
func (c verbCase) views(t *testing.T, dir string) []view {
	t.Helper()
	out := make([]view, len(c.see))
	for i, f := range c.see {
		if _, err := os.Stat(filepath.Join(dir, f.name)); err != nil {
			continue
		}
		var err error
		if out[i], err = look(t.Context(), dir, f.imageFile); err != nil {
			found := new(corruptError)
			if f.rule != damaged || !errors.As(err, &found) {
				t.Fatalf("%s: %v", f.name, err)
			}
			out[i].corruptions = found.n
		}
	}
	return out
}

// judge says whether an image, of which look gave v and err, is as it may be.
func (f watched) judge(s *state, v view, err error, before, after view) error {
	switch f.rule {
	case target:
		d := s.disk(f.name)
		if d == nil || d.Size() == 0 || errors.Is(err, block.ErrUnfinished) {
			return nil
		}
		if errors.Is(err, block.ErrNotFormat) || f.format == "luks" && headless(d) {
			return nil // no header yet
		}
		if err == nil && before.disk != nil && bytes.Equal(v.disk, before.disk) {
			return nil
		}
		if err == nil && !bytes.Equal(v.disk, after.disk) {
			return errors.New("the target is not complete and does not say so")
		}
		return err
	case refilled:
		if errors.Is(err, block.ErrUnfinished) {
			return nil
		}
	}
	if found := new(corruptError); f.rule == damaged && errors.As(err, &found) {
		if found.n > before.corruptions {
			return fmt.Errorf("the check found %d errors before: %w", before.corruptions, err)
		}
		err = nil
	}
	if err != nil {
		return err
	}
	switch {
	case f.rule == resized:
		if len(v.disk) != len(before.disk) && len(v.disk) != len(after.disk) {
			return fmt.Errorf("the disk has %d bytes, neither %d nor %d", len(v.disk), len(before.disk), len(after.disk))
		}
		n := min(len(before.disk), len(after.disk))
		if !bytes.Equal(v.disk[:n], before.disk[:n]) || len(v.disk) > len(before.disk) && !bytes.Equal(v.disk, after.disk) {
			return errors.New("the content is damaged")
		}
	case f.rule == mixed:
		if off := mixedAt(v.disk, before.disk, after.disk); off >= 0 {
			return fmt.Errorf("the sector at %d reads neither as before nor as after", off)
		}
	case !bytes.Equal(v.disk, before.disk) && !bytes.Equal(v.disk, after.disk):
		return fmt.Errorf("the disk of %d bytes reads neither as before (%d bytes) nor as after (%d bytes)", len(v.disk), len(before.disk), len(after.disk))
	}
	for name, p := range v.snapshots {
		old, inOld := before.snapshots[name]
		now, inNew := after.snapshots[name]
		if !(inOld && bytes.Equal(p, old)) && !(inNew && bytes.Equal(p, now)) {
			return fmt.Errorf("snapshot %s reads neither as before nor as after", name)
		}
	}
	for name := range before.snapshots {
		_, stays := after.snapshots[name]
		if _, ok := v.snapshots[name]; stays && !ok {
			return fmt.Errorf("snapshot %s is lost", name)
		}
	}
	return nil
}

// headless reports whether a file begins with zeros.
func headless(d *memory.Disk) bool {
	var head [8]byte
	_, err := d.ReadAt(head[:], 0)
	return err == nil && head == [8]byte{}
}

// mixedAt returns the first sector that is in neither disk, or -1.
func mixedAt(p, a, b []byte) int {
	if len(p) != len(a) && len(p) != len(b) {
		return min(len(p), len(a), len(b))
	}
	in := func(q []byte, off, end int) bool {
		return end <= len(q) && bytes.Equal(p[off:end], q[off:end])
	}
	for off := 0; off < len(p); off += block.SectorSize {
		end := min(off+block.SectorSize, len(p))
		if !in(a, off, end) && !in(b, off, end) {
			return off
		}
	}
	return -1
}

// damageRefcounts makes clusters of an image leak, or takes the refcounts of
// some of those in use away.
func damageRefcounts(t *testing.T, path string, leak bool) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	be := binary.BigEndian
	table := be.Uint64(b[48:])
	block := be.Uint64(b[table:])
	bits := 16
	if be.Uint32(b[4:]) == 3 {
		bits = 1 << be.Uint32(b[96:])
	}
	cluster := 1 << be.Uint32(b[20:])
	first, last := 4, len(b)/cluster-1 // clusters behind the header, and the last one
	if leak {
		b = append(b, make([]byte, 3*cluster)...)
		first, last = last+1, last+3
	}
	if max := 8 * cluster / bits; last >= max {
		last = max - 1
	}
	for c := first; c <= last; c++ {
		at := int(block) + c*bits/8
		switch {
		case leak && bits < 8:
			b[at] |= 1 << (c * bits % 8)
		case leak:
			b[at+bits/8-1] = 1
		case bits < 8:
			b[at] &^= 1 << (c * bits % 8)
		default:
			clear(b[at : at+bits/8])
		}
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
