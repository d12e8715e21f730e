package vmtest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/internal/vm"
)

// testFreeze freezes a machine at its end and lets two go on from there at once, each
// over an overlay of its own of the frozen disk, which stays as it is.
func testFreeze(t *testing.T, newDriver maker) {
	d := newDriver(t)
	spec := Spec(t)
	spec.GenerationID = vm.NewUUID()
	m := Start(t, d, spec, t.TempDir())
	WaitSerial(t, m, Ready)
	dir := t.TempDir()
	r := vm.FreezeRequest{RAM: filepath.Join(dir, "ram"), State: filepath.Join(dir, "state"), End: true}
	res, err := m.(vm.Freezer).Freeze(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	f := res.Frozen
	if st, err := os.Stat(f.RAM); err != nil || st.Size() != spec.Memory || res.Total <= 0 || res.Total > spec.Memory {
		t.Errorf("RAM %v, %v; %+v", st, err, res)
	}
	if key, err := newDriver(t).(vm.Thawer).FrozenKey(t.Context(), f.Spec); err != nil || key != f.Key {
		t.Errorf("key %+v, %v; frozen with %+v", key, err, f.Key)
	}
	disk := f.Spec.Disks[0].Path
	before, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	var machines []vm.Machine
	for i := range 2 {
		spec := f.Spec.Clone()
		spec.Name, spec.UUID, spec.GenerationID = fmt.Sprintf("clone-%d", i), vm.NewUUID(), vm.NewUUID()
		spec.Disks[0].Path = filepath.Join(dir, spec.Name)
		qemutest.Img(t, "create", "-f", "qcow2", "-b", disk, "-F", spec.Disks[0].Format, spec.Disks[0].Path)
		spec.Disks[0].Format = "qcow2"
		clone, err := newDriver(t).(vm.Thawer).Thaw(t.Context(), spec, f, filepath.Join(dir, "m", spec.Name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { kill(t, clone) })
		machines = append(machines, clone)
	}
	for _, m := range machines {
		requireState(t, m, vm.StateRunning)
		Send(t, m, "x") // which it echoes
		Send(t, m, PowerOff)
		if e, err := m.Wait(t.Context()); err != nil || e.Cause != vm.CauseShutdown {
			t.Errorf("exit %+v, %v", e, err)
		}
	}
	if after, err := os.ReadFile(disk); err != nil || string(after) != string(before) {
		t.Errorf("the frozen disk has changed, %v", err)
	}
}
