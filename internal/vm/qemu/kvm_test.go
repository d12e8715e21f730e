package qemu

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/vmtest"
)

// autoSpec is a machine that leaves the choice to the driver.
func autoSpec(t *testing.T) vm.Spec {
	s := vmtest.Spec(t)
	s.Accel = vm.AccelAuto
	return s
}

// TestFallback: a guest that stops with internal-error, and a QEMU that refuses
// KVM, run under TCG; the next start does not try KVM again, nor does that of
// another process.
func TestFallback(t *testing.T) {
	for behaviour, why := range map[string]string{
		"internal-soon": "internal-error",
		"kvm-refused":   "failed to initialize kvm: Permission denied",
	} {
		t.Run(behaviour, func(t *testing.T) {
			cache := t.TempDir()
			dir := t.TempDir()
			d := fakeDriver(t, behaviour, cache)
			for i, d := range []*Driver{d, d, fakeDriver(t, behaviour, cache)} {
				m := vmtest.Start(t, d, autoSpec(t), dir)
				if m.Info().Accel != vm.AccelTCG || m.Info().QEMU != "9.2.1" {
					t.Errorf("start %d: %+v", i, m.Info())
				}
				requireIn(t, m.Info().AccelNote, why)
				log := readFile(t, filepath.Join(dir, home.QEMULogFile))
				if tried := strings.Contains(log, `"kvm"`); tried != (i == 0) {
					t.Errorf("start %d: KVM tried: %v\n%s", i, tried, log)
				}
				if err := m.Kill(t.Context()); err != nil {
					t.Error(err)
				}
			}
			vmtest.RequireNoLeftovers(t, dir)
			explicit := autoSpec(t)
			explicit.Accel = vm.AccelKVM
			_, err := d.Start(t.Context(), explicit, dir)
			if !errors.Is(err, vm.ErrNoKVM) {
				t.Fatalf("KVM and nothing else: %v", err)
			}
			requireIn(t, err.Error(), why)
			vmtest.RequireNoLeftovers(t, dir)
		})
	}
}

// TestLateInternalError: the processor fails when the start is over. The
// machine ends, and the next start goes to TCG.
func TestLateInternalError(t *testing.T) {
	const later = 800 * time.Millisecond // than the failure
	t.Run("started", func(t *testing.T) { lateInternalError(t, false, 0) })
	t.Run("adopted", func(t *testing.T) { lateInternalError(t, true, 0) })
	t.Run("missed", func(t *testing.T) { lateInternalError(t, true, later) })
}

func lateInternalError(t *testing.T, adopted bool, alone time.Duration) {
	d, dir := fakeDriver(t, "internal-late", t.TempDir()), t.TempDir()
	m := vmtest.Start(t, d, autoSpec(t), dir)
	if m.Info().Accel != vm.AccelKVM || m.Info().AccelNote != "" {
		t.Errorf("info %+v", m.Info())
	}
	if adopted {
		if err := m.Release(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(alone)
		var err error
		if m, err = d.Adopt(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
	}
	e, err := m.Wait(t.Context())
	if err != nil || e.State != vm.StateCrashed {
		t.Errorf("exit %+v, %v", e, err)
	}
	requireIn(t, e.Reason, "internal-error", "TCG")
	vmtest.RequireNoLeftovers(t, dir)
	m = vmtest.Start(t, d, autoSpec(t), dir)
	if m.Info().Accel != vm.AccelTCG {
		t.Errorf("second start: %+v", m.Info())
	}
}

// TestKVMWorks: it is found once; later starts do not watch the guest as long.
func TestKVMWorks(t *testing.T) {
	d, dir := fakeDriver(t, "good", t.TempDir()), t.TempDir()
	for i := range 2 {
		begin := time.Now()
		m := vmtest.Start(t, d, autoSpec(t), dir)
		took := time.Since(begin)
		if m.Info().Accel != vm.AccelKVM || m.Info().AccelNote != "" {
			t.Errorf("info %+v", m.Info())
		}
		if watched := took >= d.kvmWatch; watched != (i == 0) {
			t.Errorf("start %d took %v", i, took)
		}
		if err := m.Kill(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// TestNotKVMsFault: what also fails under TCG is told as it is and teaches
// nothing about KVM.
func TestNotKVMsFault(t *testing.T) {
	d, dir := fakeDriver(t, "bad-option", t.TempDir()), t.TempDir()
	_, err := d.Start(t.Context(), autoSpec(t), dir)
	if err == nil || errors.Is(err, vm.ErrNoKVM) {
		t.Fatalf("bad option: %v", err)
	}
	requireIn(t, err.Error(), `start machine "tiny"`, "-device nonsense: not a device", home.QEMULogFile)
	if strings.Contains(err.Error(), "not important") {
		t.Errorf("warning in the error: %v", err)
	}
	spec := autoSpec(t)
	spec.Accel = vm.AccelKVM
	if _, err := d.Start(t.Context(), spec, dir); err == nil || errors.Is(err, vm.ErrNoKVM) {
		t.Errorf("KVM and nothing else: %v", err)
	}
	vmtest.RequireNoLeftovers(t, dir)
	t.Setenv(fakeEnv, "good")
	if m := vmtest.Start(t, d, autoSpec(t), dir); m.Info().Accel != vm.AccelKVM {
		t.Errorf("after that: %+v", m.Info())
	}
}

func TestNoKVMDevice(t *testing.T) {
	d := fakeDriver(t, "good", "")
	d.kvmDevice = "/dev/nothing"
	m := vmtest.Start(t, d, autoSpec(t), t.TempDir())
	if m.Info().Accel != vm.AccelTCG {
		t.Errorf("info %+v", m.Info())
	}
	requireIn(t, m.Info().AccelNote, "/dev/nothing", "kvm_intel")
	spec := autoSpec(t)
	spec.Accel = vm.AccelKVM
	if _, err := d.Start(t.Context(), spec, t.TempDir()); !errors.Is(err, vm.ErrNoKVM) {
		t.Errorf("KVM and nothing else: %v", err)
	}
}

// TestNoSeccomp: a QEMU without the sandbox runs without it.
func TestNoSeccomp(t *testing.T) {
	d, dir := fakeDriver(t, "no-seccomp", ""), t.TempDir()
	m := vmtest.Start(t, d, autoSpec(t), dir)
	if err := m.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	vmtest.Start(t, d, autoSpec(t), dir)
	if strings.Contains(readFile(t, filepath.Join(dir, home.QEMULogFile)), "sandbox") {
		t.Error("the second start tried it again")
	}
}

// TestPortRace: a chosen port that another process took is chosen anew, a
// bounded number of times.
func TestPortRace(t *testing.T) {
	d, dir := fakeDriver(t, "port-race", ""), t.TempDir()
	spec := vmtest.Spec(t)
	spec.NICs = []vm.NIC{{Forwards: []vm.Forward{{GuestPort: 22}}}}
	m := vmtest.Start(t, d, spec, dir)
	raced := readFile(t, filepath.Join(dir, "raced"))
	got := m.Info().Forwards
	if len(got) != 1 || got[0].HostPort == 0 || strings.Contains(raced, got[0].String()) {
		t.Errorf("first %q, then %v", raced, got)
	}
	t.Setenv(fakeEnv, "port-always")
	if _, err := d.Start(t.Context(), spec, t.TempDir()); err == nil || !strings.Contains(err.Error(), portTaken) {
		t.Errorf("no port at all: %v", err)
	}
}

func TestKVMMemory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "yet")
	m := newKVMMemory(dir)
	if _, known := m.recall("h1", ""); known {
		t.Error("something is known of a new host")
	}
	bad := kvmVerdict{Reason: "no"}
	if err := m.learn("h1", "", bad); err != nil {
		t.Fatal(err)
	}
	if err := m.learn("h1", "Nehalem", kvmVerdict{Works: true}); err != nil {
		t.Fatal(err)
	}
	other := newKVMMemory(dir)
	if v, known := other.recall("h1", ""); !known || v != bad {
		t.Errorf("recalled %+v, %v", v, known)
	}
	if v, known := other.recall("h1", "Nehalem"); !known || !v.Works {
		t.Errorf("recalled %+v, %v", v, known)
	}
	if _, known := other.recall("h2", ""); known {
		t.Error("another host's verdict was taken")
	}
	if err := os.WriteFile(m.path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, known := newKVMMemory(dir).recall("h1", ""); known {
		t.Error("a damaged file was taken")
	}
}

// TestKVMMemoryAfterBoot: what was found before the host was booted is what is likely,
// while nothing else has changed.
func TestKVMMemoryAfterBoot(t *testing.T) {
	dir := t.TempDir()
	bad := kvmVerdict{Reason: "no"}
	if err := newKVMMemory(dir).learn("boot1 6.1 qemu", "", bad); err != nil {
		t.Fatal(err)
	}
	for _, boot := range []string{"boot2", "boot3"} { // nothing of it is tried in the second
		m := newKVMMemory(dir)
		if _, known := m.recall(boot+" 6.1 qemu", ""); known {
			t.Errorf("%s: KVM is not tried", boot)
		}
		if v, known := m.likely(boot+" 6.1 qemu", ""); !known || v != bad {
			t.Errorf("%s: likely %+v, %v", boot, v, known)
		}
		if err := m.learn(boot+" 6.1 qemu", "Nehalem", bad); err != nil {
			t.Fatal(err)
		}
	}
	if v, known := newKVMMemory(dir).likely("boot4 6.2 qemu", ""); known {
		t.Errorf("another kernel: %+v", v)
	}
	m := newKVMMemory(dir)
	if err := m.learn("boot4 6.1 qemu", "", kvmVerdict{Works: true}); err != nil {
		t.Fatal(err)
	}
	if v, known := m.likely("boot4 6.1 qemu", ""); !known || !v.Works {
		t.Errorf("it works by now: %+v, %v", v, known)
	}
	v := m.verdicts
	v.Processor = "another"
	if e := v.afterBoot("boot5 6.1 qemu", processor()).Earlier; len(e) > 0 || processor() == "" {
		t.Errorf("another processor: %v", e)
	}
}

// TestKeyAfterBoot: the key of a machine that leaves the choice to the driver is that of
// TCG right after a boot of a host whose KVM was found not to run guests; a start tries KVM all the
// same, and a machine that was frozen under KVM is not refused.
func TestKeyAfterBoot(t *testing.T) {
	cache := t.TempDir()
	d := fakeDriver(t, "good", cache)
	spec := autoSpec(t)
	binary, err := d.binaryOf(spec)
	if err != nil {
		t.Fatal(err)
	}
	accel := func(recall func(host, cpu string) (kvmVerdict, bool)) vm.Accel {
		t.Helper()
		a, err := d.likelyAccel(binary, spec, recall)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	if a := accel(d.kvm.likely); a != vm.AccelKVM {
		t.Errorf("nothing known: %s", a)
	}
	host, err := hostKey(binary)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(host, " ")
	if err := newKVMMemory(cache).learn("boot0 "+rest, cpuKey(spec), kvmVerdict{Reason: "no"}); err != nil {
		t.Fatal(err)
	}
	d = fakeDriver(t, "good", cache)
	if a := accel(d.kvm.likely); a != vm.AccelTCG {
		t.Errorf("after a boot: %s", a)
	}
	if a := accel(d.kvm.recall); a != vm.AccelKVM {
		t.Errorf("of a machine that was frozen under KVM: %s", a)
	}
	if m := vmtest.Start(t, d, spec, t.TempDir()); m.Info().Accel != vm.AccelKVM {
		t.Errorf("a start did not try KVM: %+v", m.Info())
	}
	if a := accel(d.kvm.likely); a != vm.AccelKVM {
		t.Errorf("KVM works by now: %s", a)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestPassingFailure: what passes by itself, such as the lock of an image that
// somebody looks at, is not taken for a KVM that does not work here.
func TestPassingFailure(t *testing.T) {
	dir := t.TempDir()
	d := fakeDriver(t, "locked-once", t.TempDir())
	for _, want := range []vm.Accel{vm.AccelTCG, vm.AccelKVM} {
		m := vmtest.Start(t, d, autoSpec(t), dir)
		if got := m.Info(); got.Accel != want || (got.AccelNote == "") != (want == vm.AccelKVM) {
			t.Errorf("%s (%s), want %s", got.Accel, got.AccelNote, want)
		}
		if err := m.Kill(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
