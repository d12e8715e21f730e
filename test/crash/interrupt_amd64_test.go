package crash

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/block/blocktest"
)

// interrupter traces a program and, of its system calls on the files of a
// folder, has one in three end with EINTR before it did anything, as by a
// signal, and one in three read, write or copy only half of what it was to.
type interrupter struct {
	dir         string
	threads     map[int]*interrupted
	eintr, half int
}

// interrupted is what one thread is in.
type interrupted struct {
	calls int              // on the files of the folder
	regs  *unix.PtraceRegs // of the call that is changed, nil for none
	eintr bool
}

// syscallInfo is struct ptrace_syscall_info of linux/ptrace.h.
type syscallInfo struct {
	op   uint8 // 1 before the call, 2 behind it
	_    [23]byte
	nr   uint64 // before the call
	args [6]uint64
	_    uint64
}

// run runs a program to its end, which is its exit status. The thread that
// starts it is the one that traces it, and waits for its own children only.
func (in *interrupter) run(args, env []string, output *os.File) (int, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pid, err := syscall.ForkExec(args[0], args, &syscall.ProcAttr{
		Env: env, Files: []uintptr{0, output.Fd(), output.Fd()}, Sys: &syscall.SysProcAttr{Ptrace: true},
	})
	if err != nil {
		return 0, err
	}
	limit := time.AfterFunc(time.Minute, func() { _ = unix.Kill(pid, unix.SIGKILL) })
	defer limit.Stop()
	in.threads = map[int]*interrupted{}
	for {
		var ws unix.WaitStatus
		tid, err := unix.Wait4(-1, &ws, unix.WALL|unix.WNOTHREAD, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("wait: %w", err)
		}
		switch {
		case ws.Exited() && tid == pid:
			return ws.ExitStatus(), nil
		case ws.Signaled() && tid == pid:
			return 0, fmt.Errorf("ended by %v", ws.Signal())
		case !ws.Stopped():
			continue
		}
		// A thread may end by another's exit at any time.
		if err := in.stopped(tid, pid, ws); err != nil && err != unix.ESRCH {
			return 0, errors.Join(err, unix.Kill(pid, unix.SIGKILL))
		}
	}
}

// stopped lets a thread that stopped go on.
func (in *interrupter) stopped(tid, pid int, ws unix.WaitStatus) error {
	th := in.threads[tid]
	deliver := 0
	switch sig := ws.StopSignal(); {
	case th == nil: // new, at its first stop
		in.threads[tid] = &interrupted{}
		if tid == pid {
			const options = unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_EXITKILL
			if err := unix.PtraceSetOptions(tid, options); err != nil {
				return err
			}
		}
	case sig == unix.SIGTRAP|0x80:
		if err := in.syscall(th, tid, pid); err != nil {
			return err
		}
	case sig == unix.SIGTRAP: // a new thread is told of
	default:
		deliver = int(sig)
	}
	return unix.PtraceSyscall(tid, deliver)
}

// syscall changes a call that begins, or its result.
func (in *interrupter) syscall(th *interrupted, tid, pid int) error {
	if th.regs != nil { // behind the call
		var now unix.PtraceRegs
		if err := unix.PtraceGetRegs(tid, &now); err != nil {
			return err
		}
		now.Rdx, now.R8 = th.regs.Rdx, th.regs.R8
		if th.eintr {
			eintr := -int64(unix.EINTR)
			now.Rax = uint64(eintr)
		}
		th.regs = nil
		return unix.PtraceSetRegs(tid, &now)
	}
	var info syscallInfo
	const getSyscallInfo = 0x420e
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, getSyscallInfo, uintptr(tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0); errno != 0 {
		return errno
	}
	if info.op != 1 || !in.concerns(tid, pid, info) {
		return nil
	}
	th.calls++
	var regs unix.PtraceRegs
	if err := unix.PtraceGetRegs(tid, &regs); err != nil {
		return err
	}
	saved := regs
	switch th.calls % 3 {
	case 0:
		none := int64(-1)
		regs.Orig_rax = uint64(none)
		th.eintr = true
		in.eintr++
	case 1:
		length := &regs.Rdx
		switch info.nr {
		case unix.SYS_PREAD64, unix.SYS_PWRITE64:
		case unix.SYS_COPY_FILE_RANGE:
			length = &regs.R8
		default:
			return nil
		}
		if *length < 2 {
			return nil
		}
		*length /= 2
		th.eintr = false
		in.half++
	default:
		return nil
	}
	th.regs = &saved
	return unix.PtraceSetRegs(tid, &regs)
}

// concerns reports whether a call is one that signals can interrupt, on a file
// of the folder.
func (in *interrupter) concerns(tid, pid int, info syscallInfo) bool {
	switch info.nr {
	case unix.SYS_OPENAT:
		var path [4096]byte
		n, _ := unix.PtracePeekData(tid, uintptr(info.args[1]), path[:len(in.dir)+1])
		return string(path[:n]) == in.dir+"/"
	case unix.SYS_PREAD64, unix.SYS_PWRITE64, unix.SYS_COPY_FILE_RANGE, unix.SYS_FALLOCATE, unix.SYS_FTRUNCATE,
		unix.SYS_FDATASYNC, unix.SYS_FSYNC, unix.SYS_FCNTL, unix.SYS_IOCTL:
		if info.nr == unix.SYS_FCNTL && info.args[1] != unix.F_OFD_SETLK && info.args[1] != unix.F_OFD_GETLK {
			return false // only flags, which do not wait
		}
		to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, info.args[0]))
		return err == nil && strings.HasPrefix(to, in.dir)
	}
	return false
}

// interrupt runs the verb under an interrupter: it does what it does without.
func (c verbCase) interrupt(t *testing.T, seed uint64) *interrupter {
	dir := tempDir(t)
	c.prepare(t, dir, rand.New(rand.NewPCG(seed, 5)))
	start := readTree(t, dir)
	mustCommand(t, dir, c.lines)
	after := c.views(t, dir)
	start.restore(t, dir)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{self}
	for _, a := range strings.Fields(strings.ReplaceAll(c.lines, "@", dir+"/")) {
		if a == "''" {
			a = ""
		}
		args = append(args, a)
	}
	output, err := os.Create(filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = output.Close() }()
	in := &interrupter{dir: dir}
	status, err := in.run(args, append(os.Environ(), asTool+"=1", memoryLimit+"="), output)
	if err != nil || status != 0 {
		said, _ := os.ReadFile(output.Name())
		t.Fatalf("status %d, %v\n%s", status, err, said)
	}
	for i, now := range c.views(t, dir) {
		if f := c.see[i]; f.rule != damaged && !bytes.Equal(now.disk, after[i].disk) || len(now.snapshots) != len(after[i].snapshots) {
			t.Errorf("%s reads wrong", f.name)
		}
		for name, p := range after[i].snapshots {
			if !bytes.Equal(now.snapshots[name], p) {
				t.Errorf("snapshot %s of %s reads wrong", name, c.see[i].name)
			}
		}
	}
	return in
}

// TestInterrupted has signals interrupt the system calls of every verb, and
// reads and writes be short: nobody notices.
func TestInterrupted(t *testing.T) {
	seed := blocktest.Seed(t)
	var mu sync.Mutex
	var eintr, half int
	t.Run("verbs", func(t *testing.T) {
		for i, c := range append(faultCases(), cryptFaultCases()...) {
			t.Run(fmt.Sprintf("%d %s", i, c.lines), func(t *testing.T) {
				t.Parallel()
				in := c.interrupt(t, seed+uint64(i))
				if in.eintr == 0 {
					t.Error("nothing was interrupted")
				}
				mu.Lock()
				defer mu.Unlock()
				eintr += in.eintr
				half += in.half
			})
		}
	})
	t.Logf("%d calls interrupted, %d short", eintr, half)
	if eintr < 1000 || half < 1000 {
		t.Errorf("only %d calls interrupted, %d short", eintr, half)
	}
}
