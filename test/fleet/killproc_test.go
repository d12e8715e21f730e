package fleet

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/home"
)

// process is one that serves a home, as /proc shows it.
type process struct {
	pid int
	dir string // where it works
}

// processes lists the running processes that accept says yes to. A zombie, which has
// nothing open any more, is none.
func processes(t testing.TB, accept func(pid int, exe string) (dir string, ok bool)) (list []process) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		exe, err := os.Readlink(filepath.Join("/proc", e.Name(), "exe"))
		if err != nil {
			continue // it has ended
		}
		if dir, ok := accept(pid, exe); ok {
			list = append(list, process{pid, dir})
		}
	}
	return list
}

// daemons lists the daemons of a home: there is one at most.
func (h testHome) daemons(t testing.TB) []process {
	t.Helper()
	program := filepath.Join(h.bin, "laminad")
	return processes(t, func(pid int, exe string) (string, bool) {
		if exe != program {
			return "", false
		}
		// A verb of lamina that runs in laminad's program has another name.
		args, err1 := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		env, err2 := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		mine := err1 == nil && err2 == nil && bytes.HasPrefix(args, []byte(program+"\x00")) &&
			slices.Contains(strings.Split(string(env), "\x00"), home.Env+"="+h.dir)
		return h.dir, mine
	})
}

// qemus lists the QEMU processes that work in folders of a home.
func (h testHome) qemus(t testing.TB) []process {
	t.Helper()
	return processes(t, func(pid int, exe string) (string, bool) {
		if !strings.HasPrefix(filepath.Base(exe), "qemu-system-") {
			return "", false
		}
		dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		return dir, err == nil && strings.HasPrefix(dir, h.dir+"/")
	})
}

// written lists the files below dir that a process has open for writing.
func (p process) written(dir string) (paths []string) {
	fds := fmt.Sprintf("/proc/%d/fd", p.pid)
	entries, err := os.ReadDir(fds)
	if err != nil {
		return nil // it has ended
	}
	for _, e := range entries {
		path, err := os.Readlink(filepath.Join(fds, e.Name()))
		if err != nil || !strings.HasPrefix(path, dir+"/") {
			continue
		}
		info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%s", p.pid, e.Name()))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(info)) {
			text, ok := strings.CutPrefix(line, "flags:")
			flags, err := strconv.ParseUint(strings.TrimSpace(text), 8, 64)
			if ok && err == nil && flags&unix.O_ACCMODE != unix.O_RDONLY {
				paths = append(paths, path)
			}
		}
	}
	return paths
}

// kill ends a process as kill -9 does, and returns when all of it is gone.
func (p process) kill(t testing.TB) {
	t.Helper()
	fd, err := unix.PidfdOpen(p.pid, 0)
	if err != nil {
		return // it has ended by itself
	}
	defer func() { _ = unix.Close(fd) }() // only looked at
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		return // as above
	}
	// A leader may be a zombie long before its last thread has let go of the files.
	for end := time.Now().Add(30 * time.Second); ; {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if err == nil && n == 1 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("process %d does not end after SIGKILL: %v", p.pid, err)
		}
	}
}
