// Package e2e runs the real programs, lamina and laminad, with real guests:
// the command lines that a person types, as root and as an ordinary user.
package e2e

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/lamina-vm/lamina/internal/guestimage"
	"github.com/lamina-vm/lamina/internal/programs"
	"github.com/lamina-vm/lamina/internal/scripttest"
)

// bin is the folder of the programs.
var bin string

func TestMain(m *testing.M) { programs.Main(m, &bin) }

// nobody is the ordinary user, and group, that root becomes.
const nobody = 65534

// oneGuest lets one script at a time have guests: they need the cores.
var oneGuest sync.Mutex

// TestMachines runs the scripts as whoever runs the tests.
func TestMachines(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	runScripts(t, files, false)
}

// TestOrdinaryUser runs the main script once more as an ordinary user. Where
// the tests run as one, TestMachines is that already.
func TestOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Logf("TestMachines ran as user %d", os.Geteuid())
		return
	}
	runScripts(t, []string{"testdata/machine.txtar"}, true)
}

func runScripts(t *testing.T, files []string, drop bool) {
	small := guestimage.Small(t)
	testscript.Run(t, testscript.Params{
		Files: files,
		Setup: func(env *testscript.Env) error {
			oneGuest.Lock()
			env.Defer(oneGuest.Unlock)
			return setup(env, small, drop)
		},
		Cmds:                commands(),
		RequireExplicitExec: true,
	})
}

// setup makes the folder that a script works in, with the image small.qcow2
// and a home of its own. With drop the programs that the script runs as lamina
// and as asuser run as an ordinary user; $OWNER is who they run as.
func setup(env *testscript.Env, small string, drop bool) error {
	dir, err := os.MkdirTemp("", "lamina-e2e-")
	if err != nil {
		return err
	}
	env.Defer(func() { cleanUp(env, dir) })
	path := filepath.Join(dir, "path")
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	become, owner := "", os.Geteuid()
	if drop {
		owner = nobody
		become = fmt.Sprintf("setpriv --reuid=%d --regid=%d --clear-groups ", nobody, nobody)
	}
	for name, text := range map[string]string{
		"lamina": "exec " + become + filepath.Join(bin, "lamina") + ` "$@"`,
		"asuser": "exec " + become + `"$@"`,
	} {
		if err := os.WriteFile(filepath.Join(path, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			return err
		}
	}
	if err := copyFile(filepath.Join(dir, "small.qcow2"), small); err != nil {
		return err
	}
	for _, d := range []string{"user", "user/.ssh"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			return err
		}
	}
	if drop {
		for _, d := range []string{"", "user", "user/.ssh"} {
			if err := os.Chown(filepath.Join(dir, d), nobody, nobody); err != nil {
				return err
			}
		}
	}
	env.Setenv("OWNER", strconv.Itoa(owner))
	env.Setenv("HOME", filepath.Join(dir, "user"))
	env.Setenv("LAMINA_HOME", filepath.Join(dir, "home"))
	env.Setenv("XDG_RUNTIME_DIR", "")
	env.Setenv("PATH", path+":"+bin+":"+os.Getenv("PATH"))
	env.Cd = dir
	return nil
}

func copyFile(to, from string) error {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	w, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	return err
}

// cleanUp ends what a failed script left running, and removes its folder.
func cleanUp(env *testscript.Env, dir string) {
	for _, args := range [][]string{{"rm", "-f", "*"}, {"daemon", "stop"}} {
		cmd := exec.Command(filepath.Join(dir, "path", "lamina"), args...)
		cmd.Env = env.Vars
		_ = cmd.Run() // most often there is nothing left
	}
	for _, pid := range processes(filepath.Join(dir, "home")) {
		if p, err := os.FindProcess(pid); err == nil {
			_ = p.Kill()
		}
	}
	_ = os.RemoveAll(dir)
}

// processes returns the processes whose command line names a folder.
func processes(dir string) []int {
	list, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil
	}
	var pids []int
	for _, f := range list {
		b, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(b), dir+"/") {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func commands() map[string]func(*testscript.TestScript, bool, []string) {
	cmds := scripttest.Commands()
	cmds["dialog"] = dialog
	cmds["nothing-left"] = nothingLeft
	cmds["within"] = within
	cmds["kill-daemon"] = killDaemon
	return cmds
}

// stays are the files that a home keeps when the last machine and template
// are gone.
var stays = []string{"autostarted", "cache/kvm.json", "id_ed25519", "id_ed25519.pub", "laminad.log", "laminad.lock", "run/start.lock",
	"run/laminad.sock", "state.db", "state.db-shm", "state.db-wal"}

// nothingLeft requires that no process of the home but the daemon runs, and
// that no file is there beyond those that stay. With the argument "templates"
// the templates may stay.
func nothingLeft(ts *testscript.TestScript, neg bool, args []string) {
	dir := ts.Getenv("LAMINA_HOME")
	for _, pid := range processes(dir) {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		ts.Fatalf("process %d is left: %q", pid, b)
	}
	err := filepath.WalkDir(dir, func(name string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, name)
		template := len(args) > 0 && args[0] == "templates" && strings.HasPrefix(rel, "templates/")
		switch {
		case e.IsDir() && strings.HasPrefix(rel, "machines/"):
			return fmt.Errorf("the folder %s is left", rel)
		case !e.IsDir() && !slices.Contains(stays, rel) && !template:
			return fmt.Errorf("the file %s is left", rel)
		}
		return nil
	})
	ts.Check(err)
}

// within runs a program and requires it to end with status 0 within a time:
// within 1s PROGRAM ARG...
func within(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: within TIME PROGRAM ARG...")
	}
	limit, err := time.ParseDuration(args[0])
	ts.Check(err)
	begun := time.Now()
	ts.Check(ts.Exec(args[1], args[2:]...))
	took := time.Since(begun)
	ts.Logf("took %v", took)
	if took > limit {
		ts.Fatalf("took %v, at most %v is allowed", took, limit)
	}
}

// killDaemon kills the home's daemon as a crash would.
func killDaemon(ts *testscript.TestScript, neg bool, args []string) {
	ts.Check(ts.Exec("lamina", "version", "--json"))
	text := ts.ReadFile("stdout")
	_, rest, found := strings.Cut(text, `"pid": `)
	if !found {
		ts.Fatalf("no daemon runs: %s", text)
	}
	digits, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
	pid, err := strconv.Atoi(digits)
	ts.Check(err)
	p, err := os.FindProcess(pid)
	ts.Check(err)
	ts.Check(p.Kill())
}
