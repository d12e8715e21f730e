package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/home"
)

// process is a QEMU process, a child or not. Signals go through its pidfd, so
// that they can never hit another process that got the same number.
type process struct {
	identity
	fd    *os.File
	child *exec.Cmd     // nil for an adopted one
	done  chan struct{} // closed when it has ended (and, a child, is reaped)
}

// identity tells a process from every other one that this host has run or
// will run: numbers are reused, the pair with the start time is not.
type identity struct {
	PID       int    `json:"pid"`
	StartTime uint64 `json:"startTime"` // clock ticks after boot
	BootID    string `json:"bootID"`
}

// identify reads the identity of a running process.
func identify(pid int) (identity, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return identity{}, err
	}
	start, err := startTime(stat)
	if err != nil {
		return identity{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	boot, err := bootID()
	return identity{pid, start, boot}, err
}

// startTime is the 22nd field of proc_pid_stat(5). The second one, the program's
// name in parentheses, may itself hold spaces and parentheses.
func startTime(stat []byte) (uint64, error) {
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return 0, errors.New("no program name")
	}
	fields := bytes.Fields(stat[i+1:])
	const index = 22 - 3 // the first field after the name is the 3rd
	if len(fields) <= index {
		return 0, fmt.Errorf("%d fields after the name, expected more than %d", len(fields), index)
	}
	return strconv.ParseUint(string(fields[index]), 10, 64)
}

// bootID changes with every boot of the host.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// spawn starts a program in dir, in a session of its own, with nothing of ours
// open but the log and the given files (its descriptors 3, 4, ...): it lives on
// when we end, and needs nobody to read from it. env is added to ours.
func spawn(path string, args []string, dir string, log *os.File, env []string, files []*os.File) (*process, error) {
	cmd := exec.Command(path, args...)
	cmd.ExtraFiles = files
	if len(env) > 0 {
		cmd.Env = append(os.Environ(), env...)
	}
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p, err := watch(cmd.Process.Pid)
	if err != nil {
		err = errors.Join(err, cmd.Process.Kill())
		_ = cmd.Wait() // says that it was killed
		return nil, err
	}
	p.child = cmd
	go p.wait()
	return p, nil
}

// adopt returns the process with the given identity, os.ErrNotExist if it has
// ended.
func adopt(id identity) (*process, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	if id.PID <= 0 || id.BootID != boot {
		return nil, os.ErrNotExist
	}
	p, err := watch(id.PID)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrNotExist) {
		return nil, os.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	// Compared after the pidfd was opened: now both mean the same process.
	if p.identity != id || p.ended() {
		return nil, errors.Join(os.ErrNotExist, p.fd.Close())
	}
	go p.wait()
	return p, nil
}

// watch opens a pidfd of a running process.
func watch(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("pidfd_open %d: %w", pid, err)
	}
	f := os.NewFile(uintptr(fd), fmt.Sprintf("pidfd of %d", pid))
	id, err := identify(pid)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &process{identity: id, fd: f, done: make(chan struct{})}, nil
}

// wait closes done when the process has ended. It parks in the runtime's
// poller, so that many machines do not hold as many threads.
func (p *process) wait() {
	rc, err := p.fd.SyscallConn()
	if err == nil {
		err = rc.Read(func(fd uintptr) bool { return readable(int(fd)) })
	}
	if err != nil {
		return // let go of
	}
	if p.child != nil {
		_ = p.child.Wait() // its result is in ProcessState
	}
	close(p.done)
	_ = p.fd.Close()
}

// readable says whether a pidfd's process has ended.
func readable(fd int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err == nil && n == 1
}

// ended asks the kernel, as done is closed a little later.
func (p *process) ended() bool {
	ended := true // a closed pidfd means that wait saw the end
	rc, err := p.fd.SyscallConn()
	if err == nil {
		_ = rc.Control(func(fd uintptr) { ended = readable(int(fd)) })
	}
	return ended
}

// letGo stops watching. A child is watched on, as somebody must reap it.
func (p *process) letGo() error {
	if p.child != nil {
		return nil
	}
	err := p.fd.Close()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// signal sends a signal; a process that has ended is no error.
func (p *process) signal(sig unix.Signal) error {
	rc, err := p.fd.SyscallConn()
	if err == nil {
		var sent error
		err = rc.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
		err = errors.Join(err, sent)
	}
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	select {
	case <-p.done: // wait has closed the pidfd
		return nil
	default:
		return err
	}
}

// kill ends the process at once and waits until it is gone.
func (p *process) kill(ctx context.Context) error {
	if err := p.signal(unix.SIGKILL); err != nil {
		return fmt.Errorf("kill QEMU process %d: %w", p.PID, err)
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("QEMU process %d was killed and does not end: %w", p.PID, ctx.Err())
	}
}

// status says how a child ended, "" where only its parent could know.
func (p *process) status() string {
	if p.child == nil || p.child.ProcessState == nil {
		return ""
	}
	return p.child.ProcessState.String()
}

// faults are the signals that a process gets for what it did itself. SIGKILL
// is not among them: the kernel sends it when the host has no memory left, and
// people send it.
var faults = []syscall.Signal{syscall.SIGABRT, syscall.SIGSEGV, syscall.SIGBUS, syscall.SIGILL,
	syscall.SIGFPE, syscall.SIGTRAP, syscall.SIGSYS}

// failed says whether a child ended with an error or by a fault of its own.
func (p *process) failed() bool {
	if p.child == nil || p.child.ProcessState == nil {
		return false
	}
	status, ok := p.child.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case !ok:
		return false
	case status.Signaled():
		return slices.Contains(faults, status.Signal())
	}
	return status.Exited() && status.ExitStatus() != 0
}

// succeeded says whether a child ended with status 0.
func (p *process) succeeded() bool {
	return p.child != nil && p.child.ProcessState != nil && p.child.ProcessState.Success()
}

// findStray finds QEMU processes that work in dir for the machine with the
// given UUID: those that were started just before their starter was killed,
// when they were not on record yet.
func findStray(dir, uuid string) ([]identity, error) {
	return findProcesses(dir, "-uuid", uuid)
}

// findAny finds the QEMU processes that work in dir, of whatever machine.
func findAny(dir string) ([]identity, error) {
	return findProcesses(dir, "-pidfile", home.PIDFile)
}

// findProcesses finds the processes that work in dir and have two arguments,
// one after the other.
func findProcesses(dir, option, value string) ([]identity, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	needle := []byte("\x00" + option + "\x00" + value + "\x00")
	var found []identity
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || !bytes.Contains(cmdline, needle) {
			continue // ended meanwhile, or another program
		}
		cwd, err := os.Readlink(filepath.Join("/proc", e.Name(), "cwd"))
		if err != nil || cwd != dir {
			continue
		}
		if id, err := identify(pid); err == nil {
			found = append(found, id)
		}
	}
	return found, nil
}
