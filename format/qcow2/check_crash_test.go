package qcow2

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/blocktest"
	"github.com/lamina-vm/lamina/block/fault"
	"github.com/lamina-vm/lamina/block/record"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// repairable are damages that a repair heals without a change of the content.
func repairable(t *testing.T) map[string]*memory.Disk {
	a := dissect(t, stockImage(t, "cluster_size=4096"))
	rt, rb := int64(a.h.refTableOffset), a.blocks[0]
	images := map[string]*memory.Disk{}
	for name, patches := range map[string][]patch{
		"leaks":               {be16(rb+2*30, 7), be16(rb+2*31, 9)},
		"refcounts too low":   {be16(rb, 0), be16(rb+2*20, 0)},
		"block gone":          {be64(rt, 0)},
		"block reserved bits": {be64(rt, uint64(rb)|1)},
		"flags":               {be64(int64(a.h.l1Offset), a.at(int64(a.h.l1Offset))&^entryCopied)},
		"dirty":               {be64(offIncompatFeatures, incompatDirty), be16(rb+2*30, 0)},
	} {
		b, err := os.ReadFile(damaged(t, a.content, 0, patches...))
		if err != nil {
			t.Fatal(err)
		}
		d := memory.NewFile()
		if _, err := d.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
		images[name] = d
	}
	return images
}

// content reads the whole disk in an image's bytes.
func content(t testing.TB, d *memory.Disk) []byte {
	t.Helper()
	n, err := Driver{}.Open(t.Context(), d.ReadOnly(), format.OpenOptions{ForCheck: true})
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, n.Size())
	if _, err := n.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

func repair(t *testing.T, w block.Writer) (block.CheckResult, error) {
	t.Helper()
	n, err := Driver{}.Open(t.Context(), w, format.OpenOptions{Writable: true, ForCheck: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = n.Close() }()
	return n.(block.Checker).Check(t.Context(), block.CheckOptions{Repair: block.RepairAll})
}

// requireHealable holds that a repair leaves a whole image with the content
// that it had.
func requireHealable(t *testing.T, d *memory.Disk, want []byte) {
	t.Helper()
	blocktest.RequireAt(t, memory.NewBytes(content(t, d)), 0, want)
	if _, err := repair(t, d); err != nil {
		t.Fatal(err)
	}
	d = d.Reopen()
	n, err := Driver{}.Open(t.Context(), d, format.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	res, err := n.(block.Checker).Check(t.Context(), block.CheckOptions{})
	if err != nil || res.Corruptions+res.Leaks+res.CheckErrors > 0 {
		t.Fatalf("after the repair: %+v, %v", res, err)
	}
	blocktest.RequireContent(t, n, want)
}

// corruptions counts what a check finds, as errors, in an image's bytes.
func corruptions(t *testing.T, d *memory.Disk) int64 {
	t.Helper()
	n, err := Driver{}.Open(t.Context(), d.ReadOnly(), format.OpenOptions{ForCheck: true})
	if err != nil {
		t.Fatal(err)
	}
	res, err := n.(block.Checker).Check(t.Context(), block.CheckOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return res.Corruptions + res.CheckErrors
}

// TestRepairPowerLoss cuts the power at every write of a repair, with what no
// barrier covered lost, reordered or torn: the image is no worse than before,
// its content is right all the time, and repairing again heals it.
func TestRepairPowerLoss(t *testing.T) {
	r := rand.New(rand.NewPCG(newSeed(t), 6))
	for name, base := range repairable(t) {
		t.Run(name, func(t *testing.T) {
			want, before := content(t, base), corruptions(t, base)
			rec := record.Wrap(base.Clone())
			if _, err := repair(t, rec); err != nil {
				t.Fatal(err)
			}
			log := rec.Log()
			if len(log) == 0 {
				t.Fatal("nothing was repaired")
			}
			for n, d := range log.Prefixes(base) {
				requireHealable(t, d, want)
				for range 3 {
					d := log.Crash(base, n, r)
					if now := corruptions(t, d); now > before {
						t.Fatalf("after %d of %d events there are %d corruptions, before the repair %d", n, len(log), now, before)
					}
					requireHealable(t, d, want)
				}
			}
		})
	}
}

// TestRepairFaults makes each write and flush of a repair fail: it is said,
// and the next repair heals the image.
func TestRepairFaults(t *testing.T) {
	for name, base := range repairable(t) {
		want := content(t, base)
		for _, op := range []fault.Op{fault.Write, fault.Flush} {
			for after := 0; ; after++ {
				d := base.Clone()
				f := fault.Wrap(d, fault.Rule{Op: op, After: after, Err: syscall.ENOSPC})
				res, err := repair(t, f)
				if f.Count(op) <= after {
					break // it needs no more of them
				}
				what := fmt.Sprintf("%s, %s %d", name, op, after)
				if err == nil && res.Corruptions+res.Leaks+res.CheckErrors == 0 {
					t.Errorf("%s: the fault was not said: %+v", what, res)
				}
				if err != nil && !errors.Is(err, syscall.ENOSPC) {
					t.Errorf("%s: %v", what, err)
				}
				requireHealable(t, d.Reopen(), want)
			}
		}
	}
}
