package boot_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/guest/generalise"
	"github.com/lamina-vm/lamina/internal/guest/inspect"
	"github.com/lamina-vm/lamina/internal/guest/seed"
	"github.com/lamina-vm/lamina/internal/guestimage"
	"github.com/lamina-vm/lamina/internal/guestimage/guesttest"
	"github.com/lamina-vm/lamina/internal/vm"
)

// TestGeneraliseByUserData boots with the user-data: the boot makes SSH host
// keys, the script removes them and switches off.
func TestGeneraliseByUserData(t *testing.T) {
	t.Parallel()
	base := guestimage.Small(t)
	slot(t)
	path := overlay(t, t.TempDir(), base, "qcow2", nil)
	ud, err := generalise.UserData("userdata1")
	if err != nil {
		t.Fatal(err)
	}
	g := guesttest.Start(t, guesttest.Config{
		Disk: vm.Disk{Path: path, Format: "qcow2", Bus: vm.BusVirtio},
		Seed: &seed.Config{InstanceID: "generalise", Hostname: "gen", UserData: ud},
	})
	off(t, g)
	console, err := os.ReadFile(g.SerialLog())
	if err != nil {
		t.Fatal(err)
	}
	general(t, console, "userdata1", path)
}

// TestGeneraliseByAgent has an agent run the script: the report comes back, and
// the guest goes off by itself.
func TestGeneraliseByAgent(t *testing.T) {
	t.Parallel()
	base := guestimage.Small(t)
	slot(t)
	path := overlay(t, t.TempDir(), base, "qcow2", nil)
	g := guesttest.Start(t, guesttest.Config{
		Disk: vm.Disk{Path: path, Format: "qcow2", Bus: vm.BusVirtio}, Agents: true, NoNIC: true,
	})
	c := dialAgent(t, g)
	// The end of the boot would make the keys again: the SSH server comes last. The
	// machine-id is what this guest does not make by itself.
	said(t, c, "n=0; until pidof nc >/dev/null; do n=$((n + 1)); [ $n -lt 200 ] || exit 1; sleep 1; done; echo 0123456789abcdef0123456789abcdef >/etc/machine-id")
	script, err := generalise.Script(generalise.Options{Token: "agent1", PowerOff: true, Detach: true})
	if err != nil {
		t.Fatal(err)
	}
	output := said(t, c, script)
	off(t, g)
	general(t, []byte(output), "agent1", path)
}

// off waits for the guest to switch itself off.
func off(t *testing.T, g *guesttest.Guest) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	if exit, err := g.Wait(ctx); err != nil || exit.State != vm.StateStopped {
		console, e := os.ReadFile(g.SerialLog())
		t.Fatalf("%+v, %v; console:\n%s", exit, errors.Join(err, e), console)
	}
}

// general holds that the report, and the disk, say that it was done.
func general(t *testing.T, output []byte, token, disk string) {
	t.Helper()
	r, err := generalise.Parse(output, token)
	if err != nil || len(r.Failed) > 0 {
		t.Fatalf("%v: %+v; output:\n%s", err, r, output)
	}
	if i := slices.IndexFunc(r.Steps, func(s generalise.Step) bool { return s.Name == "ssh-host-keys" }); i < 0 || r.Steps[i].Removed == 0 {
		t.Errorf("no SSH host keys were found: %+v", r.Steps)
	}
	if err := inspect.CheckGeneral(t.Context(), disk, "qcow2"); err != nil {
		t.Error(err)
	}
}
