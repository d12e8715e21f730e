package qcow2

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/record"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// crashOps is the number of operations of one recorded run.
const crashOps = 60

// crashRun is a recorded run of random operations.
type crashRun struct {
	m    *model
	base *memory.Disk
	rec  *record.Disk
	// versions holds the content after each operation; at says how many
	// events there were then, flushed which operations were flushes.
	versions [][]byte
	snaps    [][]modelSnapshot
	at       []int
	flushed  []bool
}

func recordRun(t *testing.T, c geometryCase, seed uint64) *crashRun {
	m := newModel(t, c, seed)
	m.keeps = 6
	if err := m.img.Close(); err != nil {
		t.Fatal(err)
	}
	m.file = m.file.Reopen()
	run := &crashRun{m: m, base: m.file.Clone(), rec: record.Wrap(m.file)}
	m.fixed = true
	m.img = run.open(t, run.rec)
	run.note(true)
	for range crashOps {
		size, snaps := len(m.want), m.changes
		m.step()
		if len(m.want) != size || m.changes != snaps {
			run.note(true) // changes of the size and of snapshots are durable
			continue
		}
		if m.r.IntN(6) == 0 {
			if err := m.img.Flush(); err != nil {
				t.Fatal(err)
			}
			run.note(true)
			continue
		}
		run.note(false)
	}
	if err := m.img.Close(); err != nil {
		t.Fatal(err)
	}
	run.note(false)
	return run
}

func (run *crashRun) note(flushed bool) {
	run.versions = append(run.versions, append([]byte(nil), run.m.want...))
	run.snaps = append(run.snaps, slices.Clone(run.m.snaps))
	run.at = append(run.at, run.rec.Len())
	run.flushed = append(run.flushed, flushed)
}

func (run *crashRun) open(t *testing.T, file block.Node) *Image {
	t.Helper()
	opts := format.OpenOptions{Writable: true, Filename: "crash", Values: run.m.c.runtime()}
	if run.m.c.backing > 0 {
		opts.Opener = modelOpener{run.m.back}
	}
	n, err := (Driver{}).Open(context.Background(), file, opts)
	if err != nil {
		t.Fatal(err)
	}
	return n.(*Image)
}

// check checks the disk that a power loss after n events left.
func (run *crashRun) check(n int, disk *memory.Disk) error {
	opts := format.OpenOptions{Writable: true, Filename: "crash", Values: run.m.c.runtime()}
	if run.m.c.backing > 0 {
		opts.Opener = modelOpener{run.m.back}
	}
	node, err := (Driver{}).Open(context.Background(), disk, opts)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	img := node.(*Image)
	if err := requireSound(disk, run.m.opener()); err != nil {
		return err
	}
	// The last flush before n, and the operation that was going on at n.
	first, last := 0, len(run.at)-1
	for i, at := range run.at {
		if at <= n && run.flushed[i] {
			first = i
		}
		if at >= n {
			last = i
			break
		}
	}
	if err := requireSnapshots(disk, run.m.opener(), run.snaps[first:last+1]); err != nil {
		return fmt.Errorf("operations %d to %d: %w", first, last, err)
	}
	allowed := run.versions[first : last+1]
	got := make([]byte, img.Size())
	if _, err := img.ReadAt(got, 0); err != nil {
		return err
	}
	for i, b := range got {
		ok := false
		for _, v := range allowed {
			// What a shrink cuts off may be anything until it is done.
			if i >= len(v) || v[i] == b {
				ok = true
				break
			}
		}
		if !ok {
			return fmt.Errorf("byte %d is %#x, neither flushed nor written since (operations %d to %d)", i, b, first, last)
		}
	}
	return nil
}

// requireSound fails unless a check finds no error. Leaks are allowed; of an
// image that was not closed with lazy refcounts only the repair is.
func requireSound(disk *memory.Disk, opener format.Opener) error {
	n, err := Driver{}.Open(context.Background(), disk.ReadOnly(), format.OpenOptions{ForCheck: true, Opener: opener, Secrets: testKeys, Values: testKeyValues(disk)})
	if err != nil {
		return err
	}
	img := n.(*Image)
	var lines []string
	res, err := img.Check(context.Background(), block.CheckOptions{Report: func(line string) { lines = append(lines, line) }})
	switch {
	case err != nil:
		return err
	case img.hdr.incompat&incompatDirty != 0:
		return nil
	case res.Corruptions+res.CheckErrors > 0:
		return fmt.Errorf("check: %+v\n%s", res, excerpt(lines))
	}
	return nil
}

// requireRefcounts fails if a refcount is lower than the references to its
// cluster. Leaks are allowed.
func requireRefcounts(img *Image) error {
	refs, err := img.countReferences()
	if err != nil {
		return err
	}
	img.mu.Lock()
	defer img.mu.Unlock()
	for chunk := range refs.counts.chunks {
		for c := chunk * countChunk; c < (chunk+1)*countChunk; c++ {
			want := refs.of(c)
			if want == 0 {
				continue
			}
			have, err := img.refcount(c)
			if err != nil {
				return err
			}
			if have < want {
				return fmt.Errorf("cluster at offset %#x has refcount %d and %d references", c<<img.g.clusterBits, have, want)
			}
		}
	}
	return nil
}

// TestCrash replays every prefix of the recorded changes, and of each a
// sample of what a disk may do to what no barrier covers.
func TestCrash(t *testing.T) {
	seed := newSeed(t)
	for _, c := range []geometryCase{
		{"512", 40 << 10, map[string]string{"cluster_size": "512"}, 0},
		{"512-64-backing", 40 << 10, map[string]string{"cluster_size": "512", "refcount_bits": "64"}, 30 << 10},
		{"512-v2-longer-backing", 40 << 10, map[string]string{"cluster_size": "512", "compat": "0.10"}, 60 << 10},
		{"4k-1", 128 << 10, map[string]string{"cluster_size": "4k", "refcount_bits": "1"}, 0},
		{"16k-extended", 200 << 10, map[string]string{"cluster_size": "16k", "extended_l2": "on"}, 0},
		{"16k-extended-64-backing", 200 << 10, map[string]string{"cluster_size": "16k", "extended_l2": "on", "refcount_bits": "64"}, 300 << 10},
		{"16k-extended-metadata", 160 << 10, map[string]string{"cluster_size": "16k", "extended_l2": "on", "preallocation": "metadata"}, 100 << 10},
		{"512-no-unref", 40 << 10, map[string]string{"cluster_size": "512"}, 30 << 10},
		{"512-lazy", 40 << 10, map[string]string{"cluster_size": "512", "lazy_refcounts": "on"}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			states := 0
			for k := range uint64(3) {
				run := recordRun(t, c, seed+k)
				r := rand.New(rand.NewPCG(seed, k))
				log := run.rec.Log()
				for n, disk := range log.Prefixes(run.base) {
					if err := run.check(n, disk); err != nil {
						t.Fatalf("run %d, after %d of %d events: %v", k, n, len(log), err)
					}
					if err := run.check(n, log.Crash(run.base, n, r)); err != nil {
						t.Fatalf("run %d, power loss after %d of %d events: %v", k, n, len(log), err)
					}
					states += 2
				}
			}
			t.Logf("%d states", states)
		})
	}
}
