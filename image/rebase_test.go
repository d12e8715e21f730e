package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/blocktest"
	"github.com/lamina-vm/lamina/block/fault"
	"github.com/lamina-vm/lamina/block/record"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/internal/underlay"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// layerKinds are the images that random chains are made of.
var layerKinds = []map[string]string{
	{"cluster_size": "512"}, {"cluster_size": "4k", "compat": "0.10"}, {"cluster_size": "4k", "refcount_bits": "8"},
	{"cluster_size": "64k"}, {"cluster_size": "512", "lazy_refcounts": "on"}, {"cluster_size": "16k", "extended_l2": "on"},
	{"cluster_size": "2k", "compat": "0.10"},
}

// randomChain makes images name0 (the base), name1, ... each on the one before
// and of a size of its own, with random content, and returns their paths.
func randomChain(t *testing.T, r *rand.Rand, dir, name string, n int) []string {
	t.Helper()
	var paths []string
	for i := range n {
		path := filepath.Join(dir, fmt.Sprintf("%s%d", name, i))
		opts := CreateOptions{Format: "qcow2", Size: (20 + r.Int64N(180)) << 10, Values: layerKinds[r.IntN(len(layerKinds))]}
		if i == 0 && r.IntN(2) == 0 {
			opts.Format, opts.Values = "raw", nil
		}
		if i > 0 {
			opts.BackingFile, opts.BackingFormat = filepath.Base(paths[i-1]), formatOf(t, paths[i-1])
		}
		if err := Create(t.Context(), path, opts); err != nil {
			t.Fatalf("%v: %v", opts, err)
		}
		writeRandom(t, r, path)
		paths = append(paths, path)
	}
	return paths
}

func formatOf(t *testing.T, path string) string {
	t.Helper()
	im, err := Open(t.Context(), path, Options{NoBacking: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = im.Close() }()
	return im.Format()
}

// writeRandom changes random ranges of an image in random ways.
func writeRandom(t *testing.T, r *rand.Rand, path string) {
	t.Helper()
	im, err := Open(t.Context(), path, Options{Writable: true, Format: formatOf(t, path)})
	if err != nil {
		t.Fatal(err)
	}
	size := im.Node().Size()
	for range 12 {
		off := r.Int64N(size)
		n := min(1+r.Int64N(12<<10), size-off)
		var err error
		switch r.IntN(5) {
		case 0:
			err = im.Node().(block.Zeroer).WriteZeroes(off, n, block.ZeroFlags(r.IntN(2)))
		case 1:
			err = im.Node().(block.Discarder).Discard(off, n)
		default:
			p := bytes.Repeat([]byte{byte(r.Uint32())}, int(n))
			for i := 0; i < len(p); i += 1 + r.IntN(64) {
				p[i] = byte(r.Uint32())
			}
			_, err = im.Node().(block.Writer).WriteAt(p, off)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
}

// read returns what an image reads as, under ctx.
func read(ctx context.Context, path string) (_ []byte, err error) {
	im, err := Open(ctx, path, Options{NoLock: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, im.Close()) }()
	p := make([]byte, im.Node().Size())
	_, err = im.Node().ReadAt(p, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return p, err
}

// mustRead is read for what has to work.
func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	p, err := read(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// requireStock has the stock tools read and check an image.
func requireStock(t *testing.T, path string, want []byte) {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	qemutest.Img(t, "convert", "-O", "raw", path, raw)
	got, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the stock tool reads something else")
	}
	if r := qemutest.Run(t, "qemu-img", "check", path); r.Status != 0 && r.Status != 63 {
		t.Errorf("stock check: %s%s", r.Stdout, r.Stderr)
	}
}

// standIn is a disk in memory in the place of a file.
type standIn struct {
	*memory.Disk
	file block.Node
}

func (s standIn) Close() error { return errors.Join(s.Disk.Close(), s.file.Close()) }

// inMemory returns a context under which the files of that name are the disks.
func inMemory(disks map[string]*memory.Disk) context.Context {
	return underlay.With(context.Background(), func(path string, n block.Node) block.Node {
		if d := disks[path]; d != nil {
			disks[path] = d.Reopen()
			return standIn{disks[path], n}
		}
		return n
	})
}

// loadFile returns the bytes of a file as a disk in memory.
func loadFile(t *testing.T, path string) *memory.Disk {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := memory.NewFile()
	if _, err := d.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return d
}

// taped records several files, and how far each was whenever one of them was
// about to be written.
type taped struct {
	paths []string
	base  []*memory.Disk // what each held
	tapes []*record.Disk
	at    [][]int
}

// tape records the changes that run makes to files.
func tape(t *testing.T, run func(ctx context.Context) error, paths ...string) (*taped, error) {
	t.Helper()
	p := &taped{paths: paths, tapes: make([]*record.Disk, len(paths))}
	disks := map[string]*memory.Disk{}
	for _, path := range paths {
		d := loadFile(t, path)
		p.base = append(p.base, d.Clone())
		disks[path] = d
	}
	ctx := underlay.With(context.Background(), func(path string, n block.Node) block.Node {
		for i, name := range paths {
			if name == path {
				// A file is opened more than once; only the last time writes.
				disks[path] = disks[path].Reopen()
				p.tapes[i] = record.Wrap(standIn{disks[path], n})
				return step{p.tapes[i], p}
			}
		}
		return n
	})
	err := run(ctx)
	p.note()
	for i, path := range paths {
		d := disks[path].Reopen()
		b := make([]byte, d.Size())
		if _, err := d.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(paths[i], b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return p, err
}

// note notes how far each tape is.
func (p *taped) note() {
	var at []int
	for _, t := range p.tapes {
		at = append(at, t.Len())
	}
	p.at = append(p.at, at)
}

// step notes where the tapes are before each change of one of them.
type step struct {
	*record.Disk
	p *taped
}

func (s step) WriteAt(b []byte, off int64) (int, error) { s.p.note(); return s.Disk.WriteAt(b, off) }
func (s step) Flush() error                             { s.p.note(); return s.Disk.Flush() }

// eachState calls check, with a context under which the files are as a power
// loss left them, for every moment. It returns how many there were.
func (p *taped) eachState(r *rand.Rand, check func(ctx context.Context) error) (states int, err error) {
	for _, at := range p.at {
		for k := range 3 {
			disks := map[string]*memory.Disk{}
			for i, tape := range p.tapes {
				if k == 0 {
					disks[p.paths[i]] = tape.Log().Prefix(p.base[i], at[i])
				} else {
					disks[p.paths[i]] = tape.Log().Crash(p.base[i], at[i], r)
				}
			}
			if err := check(inMemory(disks)); err != nil {
				return states, fmt.Errorf("after %v of %d moments: %w", at, len(p.at), err)
			}
			states++
		}
	}
	return states, nil
}

// requireRead returns a check that an image reads as want and that a check
// finds nothing but leaks in all of paths.
func requireRead(top string, want []byte, paths ...string) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		got, err := read(ctx, top)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("%s reads differently", filepath.Base(top))
		}
		for _, path := range paths {
			im, err := Open(ctx, path, Options{Writable: true, NoBacking: true, NoLock: false})
			if err != nil {
				return err
			}
			c, ok := block.As[block.Checker](im.Node())
			if ok {
				var res block.CheckResult
				var lines []string
				res, err = c.Check(ctx, block.CheckOptions{Report: func(l string) { lines = append(lines, l) }})
				if err == nil && res.Corruptions+res.CheckErrors > 0 {
					err = fmt.Errorf("check of %s: %+v: %s", filepath.Base(path), res, strings.Join(lines, "; "))
				}
			}
			if err := errors.Join(err, im.Close()); err != nil {
				return err
			}
		}
		return nil
	}
}

// faults runs a change with the n-th request of each kind to one of the files
// failing, on fresh copies, until none strikes; check looks at what is left.
func faults(t *testing.T, paths []string, run func(ctx context.Context) error, check func(ctx context.Context) error) (runs int) {
	t.Helper()
	base := map[string]*memory.Disk{}
	for _, path := range paths {
		base[path] = loadFile(t, path)
	}
	for _, bad := range paths {
		for _, op := range []fault.Op{fault.Write, fault.Flush, fault.Read} {
			for n := 0; ; n++ {
				disks := map[string]*memory.Disk{}
				for path, d := range base {
					disks[path] = d.Clone()
				}
				struck := 0
				ctx := underlay.With(context.Background(), func(path string, node block.Node) block.Node {
					d := disks[path]
					if d == nil {
						return node
					}
					disks[path] = d.Reopen()
					if path != bad {
						return standIn{disks[path], node}
					}
					return &counted{Disk: fault.Wrap(standIn{disks[path], node}, fault.Rule{Op: op, After: n - struck, Err: syscall.ENOSPC}), op: op, n: &struck}
				})
				err := run(ctx)
				if struck <= n {
					break
				}
				runs++
				if err == nil {
					t.Fatalf("%s: %v %d failed, and there was no error", filepath.Base(bad), op, n)
				}
				left := map[string]*memory.Disk{}
				for path, d := range disks {
					left[path] = d.Reopen()
				}
				if err := check(inMemory(left)); err != nil {
					t.Fatalf("%s: %v %d failed: %v", filepath.Base(bad), op, n, err)
				}
			}
		}
	}
	return runs
}

// counted adds up the requests of a disk that is opened more than once.
type counted struct {
	*fault.Disk
	op fault.Op
	n  *int
}

func (c *counted) Close() error { *c.n += c.Count(c.op); return c.Disk.Close() }

// TestRebaseRandom rebases the tops of random chains onto their own layers,
// onto others, and onto nothing. What they read as stays, also where the power
// fails or a request does.
func TestRebaseRandom(t *testing.T) {
	seed := blocktest.Seed(t)
	states, runs := 0, 0
	for i := range uint64(24) {
		r := rand.New(rand.NewPCG(seed, i))
		dir := t.TempDir()
		chain := randomChain(t, r, dir, "a", 1+r.IntN(4))
		if formatOf(t, chain[len(chain)-1]) == "raw" {
			continue
		}
		top := chain[len(chain)-1]
		other := randomChain(t, r, dir, "b", 1+r.IntN(3))
		backing := append(append([]string{""}, chain[:len(chain)-1]...), other...)
		opts := RebaseOptions{Backing: backing[r.IntN(len(backing))], Compress: r.IntN(3) == 0}
		if opts.Backing != "" {
			opts.BackingFormat = formatOf(t, opts.Backing)
			opts.Backing = filepath.Base(opts.Backing)
		}
		want := mustRead(t, top)
		check := requireRead(top, want, top)
		if i%4 == 0 {
			runs += faults(t, []string{top}, func(ctx context.Context) error { return Rebase(ctx, top, opts) }, check)
		}
		tape, err := tape(t, func(ctx context.Context) error { return Rebase(ctx, top, opts) }, top)
		if err != nil {
			t.Fatalf("chain %d: %+v: %v", i, opts, err)
		}
		n, err := tape.eachState(r, check)
		if err != nil {
			t.Fatalf("chain %d: %+v: %v", i, opts, err)
		}
		states += n
		if err := check(t.Context()); err != nil {
			t.Fatalf("chain %d: %+v: %v", i, opts, err)
		}
		if i%3 == 0 {
			requireStock(t, top, want)
		}
		// Nothing of what is not below any more is needed.
		needed := map[string]bool{}
		im, err := Open(t.Context(), top, Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range im.Layers() {
			needed[l.Name] = true
		}
		if err := im.Close(); err != nil {
			t.Fatal(err)
		}
		for _, path := range append(chain, other...) {
			if !needed[path] {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got := mustRead(t, top); !bytes.Equal(got, want) {
			t.Fatalf("chain %d: %+v: the content depends on a file that is not below", i, opts)
		}
	}
	t.Logf("%d states, %d faults", states, runs)
}

// TestCommitRandom commits the tops of random chains to their backing file or
// deeper. What the top reads as stays, at every moment of a power loss and
// whatever request fails, and afterwards the base reads so too.
func TestCommitRandom(t *testing.T) {
	seed := blocktest.Seed(t)
	states, runs := 0, 0
	for i := range uint64(24) {
		r := rand.New(rand.NewPCG(seed, i))
		dir := t.TempDir()
		chain := randomChain(t, r, dir, "a", 2+r.IntN(3))
		top := chain[len(chain)-1]
		depth := 1
		opts := CommitOptions{Keep: r.IntN(3) == 0}
		if r.IntN(2) == 0 {
			depth = 1 + r.IntN(len(chain)-1)
			opts.Base, opts.HasBase = filepath.Base(chain[len(chain)-1-depth]), true
		}
		base := chain[len(chain)-1-depth]
		if formatOf(t, base) == "raw" {
			opts.Keep = opts.Keep || r.IntN(2) == 0
		}
		want := mustRead(t, top)
		check := requireRead(top, want, top, base)
		run := func(ctx context.Context) error { return Commit(ctx, top, opts) }
		if i%4 == 0 {
			runs += faults(t, []string{top, base}, run, check)
		}
		tape, err := tape(t, run, top, base)
		if err != nil {
			t.Fatalf("chain %d: %+v: %v", i, opts, err)
		}
		n, err := tape.eachState(r, check)
		if err != nil {
			t.Fatalf("chain %d: %+v: %v", i, opts, err)
		}
		states += n
		if err := check(t.Context()); err != nil {
			t.Fatal(err)
		}
		got := mustRead(t, base)
		if len(got) < len(want) || !bytes.Equal(got[:len(want)], want) {
			t.Fatalf("chain %d: %+v: the base reads differently", i, opts)
		}
		if i%3 == 0 {
			requireStock(t, top, want)
			requireStock(t, base, got)
		}
		if !opts.Keep && !opts.HasBase && ownBytes(t, top) > 0 {
			t.Errorf("chain %d: the overlay still holds %d bytes", i, ownBytes(t, top))
		}
	}
	t.Logf("%d states, %d faults", states, runs)
}

// ownBytes returns how much of the disk an image itself holds.
func ownBytes(t *testing.T, path string) int64 {
	t.Helper()
	im, err := Open(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = im.Close() }()
	n := int64(0)
	for e, err := range im.Node().Extents(0, im.Node().Size()) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Depth == 0 && e.Kind != block.Unallocated {
			n += e.Length
		}
	}
	return n
}
