package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
)

// The crash tests run this test binary again as a process that works on a
// store until it is killed.
const (
	envWork = "LAMINA_STORE_TEST_WORK" // what to do
	envHome = "LAMINA_STORE_TEST_HOME"
	envStep = "LAMINA_STORE_TEST_STEP" // the step at which to die, from 1; 0: none
)

func TestMain(m *testing.M) {
	if work := os.Getenv(envWork); work != "" {
		if err := workUntilKilled(work); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func workUntilKilled(work string) error {
	ctx := context.Background()
	die, err := strconv.ParseInt(os.Getenv(envStep), 10, 64)
	if err != nil {
		return err
	}
	var steps atomic.Int64
	dir := os.Getenv(envHome)
	s, err := open(ctx, home.At(filepath.Join(dir, "h")), Options{Images: plainImages{}}, func(string) {
		if steps.Add(1) == die {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	})
	if err != nil {
		return err
	}
	image := filepath.Join(dir, "image")
	for n := 0; ; n++ {
		switch work {
		case "import":
			_, _, err = s.Import(ctx, Import{Path: image, Name: "one"}, nil)
		case "clone":
			err = clone(ctx, s, "a", "b", "c", "d", "e", "f")
		case "remove":
			err = removeAll(ctx, s)
		case "remove with disks":
			err = removeAll(ctx, s, filepath.Join(dir, "disk"))
		case "remove template":
			err = s.RemoveTemplate(ctx, "one")
		case "define":
			_, err = s.Define(ctx, newDefinition(dir))
		case "install":
			err = install(ctx, s)
		case "undo":
			err = undoAll(ctx, s)
		case "everything":
			if _, _, err = s.Import(ctx, Import{Path: image, Name: "one"}, nil); err == nil {
				err = clone(ctx, s, fmt.Sprintf("m-%d", n), fmt.Sprintf("n-%d", n))
			}
			if err == nil {
				err = layersOf(ctx, s, dir, fmt.Sprintf("m-%d", n))
			}
			if err == nil && n%3 == 2 {
				_, err = s.Prune(ctx, api.PruneRequest{All: true}, PruneOptions{})
				err = errors.Join(err, removeAll(ctx, s), s.RemoveTemplate(ctx, "one"))
			}
		default:
			err = workOnLayers(ctx, s, work, dir)
		}
		if err != nil || work != "everything" {
			return errors.Join(err, s.Close())
		}
	}
}

// layersOf does to one machine what makes, moves and removes layers.
func layersOf(ctx context.Context, s *Store, dir, name string) error {
	m, err := s.Machine(ctx, name)
	if err != nil {
		return err
	}
	if err := appendTo(s.Disk(m), name); err != nil {
		return err
	}
	for i, f := range []func() error{
		func() error { _, _, err := s.CloneMachine(ctx, m.ID, bare(name+"-a", name+"-b"), nil); return err },
		func() error {
			if _, err := s.BeginFreeze(ctx, m.ID, bare(name+"-c"), nil); err != nil {
				return err
			}
			_, _, err := s.CommitFreeze(ctx, m.ID)
			return err
		},
		func() error { _, err := makeUnit(ctx, s, "one"); return err },
		func() error {
			return s.Export(ctx, "one", api.ExportRequest{Path: filepath.Join(dir, "exported"), Force: true}, nil)
		},
		func() error { _, err := s.Rebase(ctx, m.ID, "one", nil); return err },
		func() error { _, err := s.Flatten(ctx, m.ID, nil); return err },
		func() error {
			t, _, err := s.CommitMachine(ctx, m.ID, "", false)
			if err == nil {
				_, err = s.Rebase(ctx, m.ID, "one", nil)
			}
			if err == nil {
				err = s.RemoveTemplate(ctx, t.Name)
			}
			return err
		},
	} {
		if err := f(); err != nil {
			return fmt.Errorf("operation %d: %w", i, err)
		}
	}
	return nil
}

func clone(ctx context.Context, s *Store, names ...string) error {
	t, err := s.Template(ctx, "one")
	if err == nil {
		_, err = s.CreateMachines(ctx, t, newMachines(names...), nil)
	}
	return err
}

func removeAll(ctx context.Context, s *Store, also ...string) error {
	list, err := s.Machines(ctx)
	for _, m := range list {
		err = errors.Join(err, s.RemoveMachine(ctx, m.ID, also...))
	}
	return err
}

func worker(t *testing.T, dir, work string, step int) *exec.Cmd {
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), envWork+"="+work, envHome+"="+dir, envStep+"="+strconv.Itoa(step))
	cmd.Stderr = os.Stderr
	return cmd
}

// killedAt runs work in a process that is killed at the given step, and says
// whether it was.
func killedAt(t *testing.T, dir, work string, step int) bool {
	t.Helper()
	err := worker(t, dir, work, step).Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return true
	}
	if err != nil {
		t.Fatalf("%s: %v", work, err)
	}
	return false
}

// reopen opens the store that a killed process left, checks it, runs f on it,
// checks it again and closes it.
func reopen(t *testing.T, dir string, f func(*Store)) {
	t.Helper()
	s, err := Open(t.Context(), home.At(filepath.Join(dir, "h")), Options{Images: plainImages{}})
	if err != nil {
		t.Fatal(err)
	}
	requireWhole(t, s)
	if f != nil {
		f(s)
		requireWhole(t, s)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestKilledAtEachStep kills a process at each step of each operation: the
// next start finds or makes a whole store, all machines of a request or none,
// and the operation can be done again.
func TestKilledAtEachStep(t *testing.T) {
	for _, c := range []struct {
		work           string
		template       bool // there before
		machines       int
		minSteps       int
		wantMachines   []int // how many may be left, whatever the step
		wantNoTemplate bool  // may be gone
	}{
		{work: "import", minSteps: 6, wantMachines: []int{0}, wantNoTemplate: true},
		{work: "clone", template: true, minSteps: 12, wantMachines: []int{0, 6}},
		{work: "remove", template: true, machines: 2, minSteps: 6, wantMachines: []int{0, 1, 2}},
		{work: "remove template", template: true, minSteps: 2, wantMachines: []int{0}, wantNoTemplate: true},
	} {
		t.Run(c.work, func(t *testing.T) {
			for step := 1; ; step++ {
				dir := t.TempDir()
				writeImage(t, filepath.Join(dir, "image"), "content")
				reopen(t, dir, func(s *Store) {
					if c.template {
						importImage(t, s, filepath.Join(dir, "image"), "one")
					}
					for i := range c.machines {
						if err := clone(t.Context(), s, fmt.Sprintf("old-%d", i)); err != nil {
							t.Fatal(err)
						}
					}
				})
				killed := killedAt(t, dir, c.work, step)
				reopen(t, dir, func(s *Store) {
					left := len(machineNames(t, s))
					ok := false
					for _, n := range c.wantMachines {
						ok = ok || n == left
					}
					if !ok {
						t.Errorf("killed at step %d: %d machines", step, left)
					}
					_, err := s.Template(t.Context(), "one")
					if err != nil && !(c.wantNoTemplate && errors.Is(err, ErrNotFound)) {
						t.Errorf("killed at step %d: %v", step, err)
					}
					importImage(t, s, filepath.Join(dir, "image"), "one")
					if err := removeAll(t.Context(), s); err != nil {
						t.Error(err)
					}
					if err := clone(t.Context(), s, "a", "b", "c", "d", "e", "f"); err != nil {
						t.Errorf("killed at step %d: again: %v", step, err)
					}
				})
				if !killed {
					if step <= c.minSteps {
						t.Errorf("only %d steps", step-1)
					}
					return
				}
			}
		})
	}
}

// TestKilledAtAnyInstant kills a process that imports, clones and removes at
// moments that no step names.
func TestKilledAtAnyInstant(t *testing.T) {
	dir := t.TempDir()
	writeImage(t, filepath.Join(dir, "image"), "content")
	for range 20 {
		cmd := worker(t, dir, "everything", 0)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20*time.Millisecond + rand.N(200*time.Millisecond))
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("the worker ended by itself: %v", err)
		}
		reopen(t, dir, func(s *Store) {
			if err := removeAll(t.Context(), s); err != nil {
				t.Error(err)
			}
		})
		left, err := filepath.Glob(filepath.Join(dir, ".*.tmp"))
		if err != nil || len(left) > 0 {
			t.Errorf("left: %q, %v", left, err)
		}
	}
}
