package generalise_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/guest/generalise"
	"github.com/lamina-vm/lamina/internal/guest/inspect"
	"github.com/lamina-vm/lamina/internal/guest/seed"
	"github.com/lamina-vm/lamina/internal/guestimage"
	"github.com/lamina-vm/lamina/internal/guestimage/guesttest"
	"github.com/lamina-vm/lamina/internal/vm"
)

// A boot with the user-data makes SSH host keys, has the script remove them, and
// powers off; the disk then says the same as the report.
func TestGuestGeneralisesItself(t *testing.T) {
	const token = "guest1"
	disk := filepath.Join(t.TempDir(), "disk.qcow2")
	if err := image.Overlay(t.Context(), disk, image.OverlayOptions{Base: guestimage.Small(t), BaseFormat: "qcow2"}); err != nil {
		t.Fatal(err)
	}
	start := func(c seed.Config) *guesttest.Guest {
		return guesttest.Start(t, guesttest.Config{Disk: vm.Disk{Path: disk, Format: "qcow2", Bus: vm.BusVirtio}, Seed: &c})
	}
	traces := func() inspect.Traces {
		r, err := inspect.LookFile(t.Context(), disk, "qcow2")
		if err != nil {
			t.Fatal(err)
		}
		if !r.Traces.Read {
			t.Fatalf("the system cannot be read: %s", r.Traces.Why)
		}
		return r.Traces
	}
	ud, err := generalise.UserData(token)
	if err != nil {
		t.Fatal(err)
	}
	g := start(seed.Config{InstanceID: "second", Hostname: "second", UserData: ud})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
	defer cancel()
	exit, err := g.Wait(ctx)
	console, _ := os.ReadFile(g.SerialLog())
	if err != nil || exit.State != vm.StateStopped {
		t.Fatalf("%+v, %v; console:\n%s", exit, err, console)
	}
	r, err := generalise.Parse(console, token)
	if err != nil || len(r.Failed) > 0 {
		t.Fatalf("%v: %+v; console:\n%s", err, r, console)
	}
	for _, s := range r.Steps {
		if s.Name == "ssh-host-keys" && s.Removed == 0 {
			t.Error("it found no SSH host keys")
		}
	}
	if left := traces().Left(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
