// Package boot_test boots real guests from images that our own code made, on
// every disk bus, through the QEMU driver and the boot watcher.
package boot_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/guest/boot"
	"github.com/lamina-vm/lamina/internal/guest/seed"
	"github.com/lamina-vm/lamina/internal/guestimage"
	"github.com/lamina-vm/lamina/internal/guestimage/guesttest"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/internal/vm"
)

// slots bounds the guests that run at once, whatever -parallel says: three keep
// two cores busy, and are what the time limits of this package are meant for.
var slots = make(chan struct{}, 3)

// slot waits for a place to run a guest in; the test's end gives it back. Call
// it before anything else that registers a cleanup.
func slot(t *testing.T) {
	slots <- struct{}{}
	t.Cleanup(func() { <-slots })
}

var (
	buses = []vm.Bus{vm.BusIDE, vm.BusSATA, vm.BusVirtio, vm.BusVirtioSCSI}
	modes = []vm.Cache{vm.CacheNone, vm.CacheWriteback, vm.CacheWritethrough, vm.CacheDirectsync, vm.CacheUnsafe}
)

// TestDebian takes the Debian guest, with its real cloud-init, to login, runs
// a command over SSH, and stops it. It takes longest and so comes first.
func TestDebian(t *testing.T) {
	path := guestimage.Debian(t) // before the clock of the boot starts
	t.Parallel()
	slot(t)
	before := sum(t, path)
	disk := vm.Disk{Path: overlay(t, t.TempDir(), path, "qcow2", nil), Format: "qcow2", Bus: vm.BusVirtio}
	g := guesttest.Start(t, guesttest.Config{
		Disk:   disk,
		Memory: 768 << 20,
		Seed: &seed.Config{
			InstanceID: "i-debian",
			Hostname:   "deb-01",
			User:       "bob",
			UserData:   []byte("#cloud-config\nruncmd:\n- echo done >/run/told\n"),
		},
	})
	r := g.Login()
	t.Logf("login after %s", r.Took.Round(100*time.Millisecond))
	got := g.SSH("cloud-init status --wait >/dev/null; hostname; id -un; sudo cat /run/told; findmnt -no FSTYPE /")
	if want := "deb-01\nbob\ndone\next4\n"; got != want {
		t.Errorf("over SSH: %q, want %q", got, want)
	}
	g.Stop()
	qemutest.RequireClean(t, disk.Path)
	if after := sum(t, path); after != before {
		t.Errorf("the base image changed: sha256 %s, before %s", after, before)
	}
}

// TestSmallBoots takes the small guest to its login prompt on each bus from
// each kind of base image: every pair of a bus and an image, both depths of
// the chain with each bus and with each image, each cache mode with each bus.
func TestSmallBoots(t *testing.T) {
	t.Parallel()
	small := guestimage.SmallRaw(t)
	made := t.TempDir()
	for i, base := range bases {
		base.make(t, made, small)
		for j, bus := range buses {
			depth := 1
			if (i+j)%2 == 1 {
				depth = 8
			}
			cache := modes[(i+j)%len(modes)]
			name := fmt.Sprintf("%s/%s/depth=%d/cache=%s", base.name, bus, depth, cache)
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				slot(t)
				bootSmall(t, base, made, depth, vm.Disk{Bus: bus, Cache: cache}, fmt.Sprintf("m%d-%d", i, j))
			})
		}
	}
}

func bootSmall(t *testing.T, base base, made string, depth int, disk vm.Disk, host string) {
	before := sum(t, base.path(made))
	disk.Path = base.chain(t, made, depth)
	disk.Format = "qcow2"
	g := guesttest.Start(t, guesttest.Config{
		Disk: disk,
		Seed: &seed.Config{InstanceID: "i-" + host, Hostname: host, User: "bob"},
	})
	r := g.Login()
	if r.Via != "serial" {
		t.Errorf("login seen via %s, want serial", r.Via)
	}
	t.Logf("login after %s", r.Took.Round(100*time.Millisecond))
	log, err := os.ReadFile(g.SerialLog())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(log), host+" login:") {
		t.Errorf("the guest did not take its host name %s:\n%s", host, log)
	}
	// What the guest writes it can read again, past its own page cache.
	out := g.Console("dd if=/bin/busybox bs=64k of=/root/copy 2>/dev/null; sync; echo 3 >/proc/sys/vm/drop_caches; cmp /bin/busybox /root/copy && hostname")
	if out != host {
		t.Errorf("the guest says %q, want %q", out, host)
	}
	g.Stop()

	qemutest.RequireClean(t, disk.Path)
	if after := sum(t, base.path(made)); after != before {
		t.Errorf("the base image changed: sha256 %s, before %s", after, before)
	}
}

// TestBootsThatFail has one guest for each way in which a boot stops: the
// watcher must say where, why and what to try.
func TestBootsThatFail(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		variant guestimage.Variant
		bus     vm.Bus
		kind    string
		stage   boot.Stage
		via     string
		cause   string // a part of it
		remedy  string // a part of one
	}{
		{guestimage.VariantNoBootable, vm.BusVirtio, boot.KindNoBootable, boot.StageFirmware, "screen", "boot", "image"},
		{guestimage.VariantNoInitrd, vm.BusSATA, boot.KindNoRoot, boot.StageKernel, "serial", "root", "bus"},
		{guestimage.VariantNoVirtio, vm.BusVirtio, boot.KindNoRoot, boot.StageKernel, "serial", "root", "bus"},
		{guestimage.VariantPrompt, vm.BusIDE, boot.KindLoader, boot.StageBootLoader, "serial", "waits for somebody to type", "console"},
	} {
		t.Run(string(tc.variant), func(t *testing.T) {
			t.Parallel()
			slot(t)
			g := guesttest.Start(t, guesttest.Config{Disk: vm.Disk{
				Path: guestimage.SmallVariant(t, tc.variant), Format: "raw", Bus: tc.bus,
			}})
			r := g.Watch()
			if r.Via != tc.via {
				t.Errorf("seen via %q, want %q", r.Via, tc.via)
			}
			requireProblem(t, r, tc.kind, tc.stage, tc.cause, tc.remedy)
		})
	}
	// A driver that lacks one bus boots on another: the advice is sound.
	t.Run("nodriver on another bus", func(t *testing.T) {
		t.Parallel()
		slot(t)
		guesttest.Start(t, guesttest.Config{Disk: vm.Disk{
			Path: guestimage.SmallVariant(t, guestimage.VariantNoVirtio), Format: "raw", Bus: vm.BusSATA,
		}}).Login()
	})
}

// TestMetadataWait has guests without a seed that ask for a metadata service.
func TestMetadataWait(t *testing.T) {
	t.Parallel()
	for _, v := range []guestimage.Variant{guestimage.VariantEC2, guestimage.VariantCirros} {
		t.Run(string(v), func(t *testing.T) {
			t.Parallel() // without a slot: it sleeps most of the time
			g := guesttest.Start(t, guesttest.Config{Disk: vm.Disk{
				Path: guestimage.SmallVariant(t, v), Format: "raw", Bus: vm.BusVirtio,
			}})
			note, r := g.WatchWait()
			if !strings.Contains(note, "metadata service") {
				t.Errorf("note %q, want one of the metadata service", note)
			}
			requireProblem(t, r, boot.KindMetadata, boot.StageCloudInit, "metadata", "seed")
		})
	}
}

func requireProblem(t *testing.T, r boot.Result, kind string, stage boot.Stage, cause, remedy string) {
	t.Helper()
	p := r.Problem
	if p == nil {
		t.Fatalf("no problem: %+v", r)
	}
	t.Logf("%s at %s after %s: %s\ntry: %s", p.Kind, p.Stage, r.Took.Round(time.Second), p.Cause, strings.Join(p.Remedy, "\n     "))
	if p.Kind != kind || p.Stage != stage {
		t.Errorf("%s at %s, want %s at %s; last lines:\n%s", p.Kind, p.Stage, kind, stage, strings.Join(p.Last, "\n"))
	}
	if !strings.Contains(p.Cause, cause) {
		t.Errorf("cause %q does not say %q", p.Cause, cause)
	}
	if !strings.Contains(strings.Join(p.Remedy, "\n"), remedy) {
		t.Errorf("no remedy says %q: %q", remedy, p.Remedy)
	}
	if len(p.Last) == 0 {
		t.Error("the last lines are missing")
	}
}

// sum returns the SHA-256 of a file.
func sum(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}
