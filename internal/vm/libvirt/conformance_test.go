package libvirt

import (
	"testing"

	"github.com/lamina-vm/lamina/internal/libvirttest"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/vmtest"
)

func TestMain(m *testing.M) { libvirttest.Main(m) }

func TestConformance(t *testing.T) {
	d := libvirttest.Shared(t)
	// libvirt keeps a machine's memory in a file of its own format (save), which one
	// machine goes on from, once.
	vmtest.Run(t, func(*testing.T) vm.Driver { return NewDriver(d.URI) }, "Freeze")
}

// TestAutoOnThisHost: whatever this host has, the guest runs, and a note says
// why it is not on KVM.
func TestAutoOnThisHost(t *testing.T) {
	spec := vmtest.Spec(t)
	spec.Name, spec.Accel = "auto", vm.AccelAuto
	m := vmtest.Start(t, NewDriver(libvirttest.Shared(t).URI), spec, t.TempDir())
	vmtest.WaitSerial(t, m, vmtest.Ready)
	info := m.Info()
	if (info.Accel == vm.AccelKVM) != (info.AccelNote == "") {
		t.Errorf("info %+v", info)
	}
	t.Logf("%s %s", info.Accel, info.AccelNote)
}
