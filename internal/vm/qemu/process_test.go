package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/vmtest"
)

// startRequest tells a starter what to do.
type startRequest struct {
	Spec vm.Spec
	Dir  string
	// Freeze is done to the machine once its starter has told of it.
	Freeze *vm.FreezeRequest
}

// starter is another process that starts a machine, says how, and waits to be
// killed.
func starter(request string) int {
	var r startRequest
	if err := json.Unmarshal([]byte(request), &r); err != nil {
		fmt.Println(err)
		return 1
	}
	m, err := New(Options{}).Start(context.Background(), r.Spec, r.Dir)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	if err := json.NewEncoder(os.Stdout).Encode(m.Info()); err != nil {
		return 1
	}
	if r.Freeze != nil {
		if _, err := m.(vm.Freezer).Freeze(context.Background(), *r.Freeze); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	time.Sleep(time.Minute)
	return 1
}

// runStarter runs a starter, the test binary or a copy, under other
// credentials unless cred is nil.
func runStarter(t *testing.T, binary string, r startRequest, cred *syscall.Credential) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary)
	cmd.Env = append(os.Environ(), starterEnv+"="+string(b))
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may be dead already
		_ = cmd.Wait()
	})
	return cmd, bufio.NewReader(out)
}

// noStrays ends what a failed test leaves running in dir.
func noStrays(t *testing.T, dir, uuid string) {
	t.Helper()
	t.Cleanup(func() {
		if err := killStray(context.Background(), dir, uuid); err != nil {
			t.Error(err)
		}
	})
}

// readInfo reads what a starter says.
func readInfo(t *testing.T, r *bufio.Reader) vm.RunInfo {
	t.Helper()
	line, err := r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var info vm.RunInfo
	if err := json.Unmarshal([]byte(line), &info); err != nil {
		t.Fatalf("the starter says %s", line)
	}
	return info
}

// TestSurvivesStarter: the machine runs on when the process that started it is
// killed, and another one adopts it.
func TestSurvivesStarter(t *testing.T) {
	dir, spec := t.TempDir(), vmtest.Spec(t).WithDefaults()
	noStrays(t, dir, spec.UUID)
	cmd, out := runStarter(t, os.Args[0], startRequest{Spec: spec, Dir: dir}, nil)
	info := readInfo(t, out)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	m, err := New(Options{}).Adopt(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Kill(context.WithoutCancel(t.Context())) }()
	if m.Info().PID != info.PID {
		t.Errorf("adopted process %d, started %d", m.Info().PID, info.PID)
	}
	vmtest.WaitSerial(t, m, vmtest.Ready)
	// Killed behind our back, by nobody's child: what Adopt holds sees it.
	if err := unix.Kill(info.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	e, err := m.Wait(t.Context())
	if err != nil || e.State != vm.StateCrashed {
		t.Errorf("exit %+v, %v", e, err)
	}
	vmtest.RequireNoLeftovers(t, dir)
}

// TestKilledStart kills the starter at many instants: what it leaves is a
// machine to adopt, or nothing.
func TestKilledStart(t *testing.T) {
	spec := vmtest.Spec(t).WithDefaults()
	d := New(Options{})
	for i := range 12 {
		dir := t.TempDir()
		noStrays(t, dir, spec.UUID)
		cmd, _ := runStarter(t, os.Args[0], startRequest{Spec: spec, Dir: dir}, nil)
		time.Sleep(time.Duration(i) * 10 * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		m, err := d.Adopt(ctx, dir)
		cancel()
		switch {
		case err == nil:
			if s, err := m.State(t.Context()); err != nil || s != vm.StateRunning {
				t.Errorf("instant %d: state %s, %v", i, s, err)
			}
			if err := m.Kill(t.Context()); err != nil {
				t.Error(err)
			}
		case !errors.Is(err, vm.ErrNotRunning):
			t.Errorf("instant %d: %v", i, err)
		}
		vmtest.RequireNoLeftovers(t, dir)
		if ids, err := findStray(dir, spec.UUID); err != nil || len(ids) != 0 {
			t.Errorf("instant %d: processes %v are left, %v", i, ids, err)
		}
	}
}

// TestOrdinaryUser starts a machine as a user without access to /dev/kvm.
func TestOrdinaryUser(t *testing.T) {
	spec := vmtest.Spec(t).WithDefaults()
	spec.Accel = vm.AccelAuto
	dir, err := os.MkdirTemp("", "lamina-user")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	noStrays(t, filepath.Join(dir, "m"), spec.UUID)
	disk := filepath.Join(dir, "guest.raw")
	if err := os.Rename(spec.Disks[0].Path, disk); err != nil {
		t.Fatal(err)
	}
	spec.Disks[0].Path = disk
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r := startRequest{Spec: spec, Dir: filepath.Join(dir, "m")}
	if os.Geteuid() != 0 {
		checkUserMachine(t, self, r, nil)
		return
	}
	// A copy, as the test binary lies in a folder of root's alone.
	shared := filepath.Join(dir, "starter")
	if err := os.WriteFile(shared, []byte(readFile(t, self)), 0o755); err != nil {
		t.Fatal(err)
	}
	const nobody = 65534
	for _, p := range []string{dir, disk} {
		if err := os.Chown(p, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	checkUserMachine(t, shared, r, &syscall.Credential{Uid: nobody, Gid: nobody})
}

func checkUserMachine(t *testing.T, binary string, r startRequest, cred *syscall.Credential) {
	t.Helper()
	cmd, out := runStarter(t, binary, r, cred)
	info := readInfo(t, out)
	if cred != nil {
		if info.Accel != vm.AccelTCG {
			t.Errorf("info %+v", info)
		}
		requireIn(t, info.AccelNote, "no access to /dev/kvm", "group kvm")
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	m, err := New(Options{}).Adopt(t.Context(), r.Dir)
	if err != nil {
		t.Fatal(err)
	}
	vmtest.WaitSerial(t, m, vmtest.Ready)
	if err := m.Kill(t.Context()); err != nil {
		t.Error(err)
	}
	vmtest.RequireNoLeftovers(t, r.Dir)
}

// TestReusedPID: a record whose number now belongs to another process neither
// adopts nor harms it.
func TestReusedPID(t *testing.T) {
	sleeper := exec.Command("sleep", "60")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = sleeper.Process.Kill()
		_ = sleeper.Wait()
	})
	id, err := identify(sleeper.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*identity){
		"another start": func(i *identity) { i.StartTime-- },
		"another boot":  func(i *identity) { i.BootID = "x" },
	} {
		dir := t.TempDir()
		stale := id
		change(&stale)
		if err := (record{Process: stale, Spec: vmtest.Spec(t)}).write(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, home.QMPSocket), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := New(Options{}).Adopt(t.Context(), dir); !errors.Is(err, vm.ErrNotRunning) {
			t.Errorf("%s: %v", name, err)
		}
		vmtest.RequireNoLeftovers(t, dir)
	}
	if now, err := identify(sleeper.Process.Pid); err != nil || now != id {
		t.Errorf("the other process: %+v, %v", now, err)
	}
}

// TestStray: a QEMU that was started and not noted is found by its machine and
// its folder, and ended.
func TestStray(t *testing.T) {
	dir, spec := t.TempDir(), vmtest.Spec(t).WithDefaults()
	if err := (record{Spec: spec}).write(dir); err != nil {
		t.Fatal(err)
	}
	c := config{spec: spec, accel: vm.AccelTCG, isBlockDevice: isBlockDevice}
	log, err := os.Create(filepath.Join(dir, home.QEMULogFile))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	binary, err := findBinary("")
	if err != nil {
		t.Fatal(err)
	}
	p, err := spawn(binary, c.args(), dir, log, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(Options{}).Adopt(t.Context(), dir); !errors.Is(err, vm.ErrNotRunning) {
		t.Errorf("adopt: %v", err)
	}
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		t.Error("the stray process lives")
		_ = p.kill(t.Context())
	}
	vmtest.RequireNoLeftovers(t, dir)
}

// TestDamagedRecord: after a power loss a record may be empty, or hold zeros.
// The machine can be started for all that, unless a process is there.
func TestDamagedRecord(t *testing.T) {
	for _, text := range []string{"", "{", "\x00\x00\x00\x00"} {
		dir := t.TempDir()
		path := filepath.Join(dir, home.RunFile)
		damage := func() {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		damage()
		// As far as can be told from outside this is a QEMU.
		cmd := exec.Command("sh", "-c", "read x", "-pidfile", home.PIDFile, "-S")
		cmd.Dir = dir
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		_, err = New(Options{}).Adopt(t.Context(), dir)
		if err == nil || errors.Is(err, vm.ErrNotRunning) {
			t.Errorf("%q: a process is there: %v", text, err)
		} else {
			requireIn(t, err.Error(), path, fmt.Sprint("process ", cmd.Process.Pid))
		}
		_ = in.Close()
		_ = cmd.Wait() // status 1: its input has ended
		if _, err := New(Options{}).Adopt(t.Context(), dir); !errors.Is(err, vm.ErrNotRunning) {
			t.Errorf("%q: %v", text, err)
		}
		vmtest.RequireNoLeftovers(t, dir)
	}
}

// TestDeafQEMU: a QEMU that never answers is ended when the caller gives up.
func TestDeafQEMU(t *testing.T) {
	d, dir := fakeDriver(t, "deaf", ""), t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := d.Start(ctx, vmtest.Spec(t), dir); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("start: %v", err)
	}
	vmtest.RequireNoLeftovers(t, dir)
}

func TestStartTime(t *testing.T) {
	fields := " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21"
	for stat, want := range map[string]uint64{
		"12 (qemu)" + fields:      4242,
		"12 (a) S 9 (b)" + fields: 4242,
	} {
		if got, err := startTime([]byte(stat)); err != nil || got != want {
			t.Errorf("%q: %d, %v", stat, got, err)
		}
	}
	for _, stat := range []string{"", "12 qemu", "12 (qemu) S 1 2"} {
		if _, err := startTime([]byte(stat)); err == nil {
			t.Errorf("%q: no error", stat)
		}
	}
}

func TestNoBinary(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	old := elsewhere
	elsewhere = nil
	defer func() { elsewhere = old }()
	_, err := New(Options{}).Start(t.Context(), vmtest.Spec(t), t.TempDir())
	if !errors.Is(err, exec.ErrNotFound) {
		t.Fatalf("no QEMU: %v", err)
	}
	requireIn(t, err.Error(), "qemu-system-x86 (Debian", "Fedora")
	if _, err := New(Options{Binary: "/no/qemu"}).Start(t.Context(), vmtest.Spec(t), t.TempDir()); err == nil {
		t.Error("a binary that is not there was run")
	}
}
