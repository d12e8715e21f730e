package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

// appendTo writes behind what an image holds, as a guest does.
func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// workOnLayers is one operation on the machine m over the template one.
func workOnLayers(ctx context.Context, s *Store, work, dir string) error {
	m, err := s.Machine(ctx, "m")
	if err != nil {
		return err
	}
	switch work {
	case "template of machine":
		_, err = s.TemplateFromMachine(ctx, FromMachine{Machine: m.ID, Name: "made"}, nil)
	case "commit":
		_, _, err = s.CommitMachine(ctx, m.ID, "made", false)
	case "clone machine":
		_, _, err = s.CloneMachine(ctx, m.ID, bare("c-1", "c-2"), nil)
	case "freeze":
		err = freeze(ctx, s, m, true)
	case "abort":
		err = freeze(ctx, s, m, false)
	case "flatten":
		_, err = s.Flatten(ctx, m.ID, nil)
	case "rebase":
		_, err = s.Rebase(ctx, m.ID, "two", nil)
	case "stream":
		err = stream(ctx, s, m)
	case "scratch":
		if _, _, err = s.Scratch(ctx, m.ID); err == nil {
			err = s.RemoveScratch(ctx, m.ID)
		}
	case "unit":
		_, err = makeUnit(ctx, s, "two")
	case "restack":
		var list []Unit
		if list, err = s.Units(ctx); err == nil {
			_, err = s.Restack(ctx, m.ID, list[0].ID)
		}
	case "remove unit":
		var list []Unit
		if list, err = s.Units(ctx); err == nil {
			err = s.RemoveUnit(ctx, list[0].ID)
		}
	case "remove frozen":
		err = s.RemoveMachine(ctx, m.ID)
	case "export":
		err = s.Export(ctx, "one", api.ExportRequest{Path: filepath.Join(dir, "out", "exported"), Format: "raw"}, nil)
	case "prune":
		_, err = s.Prune(ctx, api.PruneRequest{Templates: true, All: true}, PruneOptions{})
	default:
		err = fmt.Errorf("no work %q", work)
	}
	return err
}

// freeze is what a daemon does with a running machine, with steps where QEMU acts.
func freeze(ctx context.Context, s *Store, m Machine, commit bool) error {
	f, err := s.BeginFreeze(ctx, m.ID, bare("c-1", "c-2"), nil)
	if err != nil {
		return err
	}
	for _, path := range []string{f.RAM, f.State} {
		s.step("QEMU writes " + path)
		if err := os.WriteFile(path, []byte(path), 0o600); err != nil {
			return err
		}
	}
	if !commit {
		return s.AbortFreeze(ctx, m.ID)
	}
	s.step("QEMU has switched")
	if err := appendTo(f.Overlay, " and on"); err != nil {
		return err
	}
	s.step("QEMU goes on")
	if _, _, err := s.CommitFreeze(ctx, m.ID); err != nil {
		return err
	}
	s.step("clones started")
	return s.EndFreeze(ctx, m.ID)
}

// stream is what QEMU does with the disk of a running machine to flatten it.
func stream(ctx context.Context, s *Store, m Machine) error {
	if err := s.BeginStream(ctx, m.ID); err != nil {
		return err
	}
	s.step("QEMU streams")
	content, err := shown(s.Disk(m))
	if err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(filepath.Dir(s.home.Data)), "streamed")
	if err := os.WriteFile(tmp, []byte(content), 0o600); err != nil {
		return err
	}
	if err := os.Rename(tmp, s.Disk(m)); err != nil {
		return err
	}
	s.step("QEMU has streamed")
	_, err = s.EndStream(ctx, m.ID, true)
	return err
}

// makeUnit is what a daemon does to warm a template.
func makeUnit(ctx context.Context, s *Store, template string) (Unit, error) {
	t, err := s.Template(ctx, template)
	if err != nil {
		return Unit{}, err
	}
	u, err := s.BeginUnit(ctx, t.Digest, 0)
	if err != nil {
		return u, err
	}
	for path, text := range map[string]string{u.RAM: "ram", u.State: "state"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return u, err
		}
	}
	s.step("QEMU has ended")
	if err := appendTo(u.Disk, " booted"); err != nil {
		return u, err
	}
	return s.CommitUnit(ctx, u.ID, UnitFacts{Frozen: vm.Frozen{RAM: u.RAM, State: u.State, Spec: vm.Spec{Disks: []vm.Disk{{Path: u.Disk}}},
		Key: vm.FrozenKey{QEMU: "7.2", CPUs: 1}}, BootTime: time.Second, Agent: "lamina"})
}

// layered makes the store that the operations work on: template one, two if need be, a machine
// m over a frozen layer over one, and its clone.
func layered(t *testing.T, dir, work string) {
	if err := os.MkdirAll(filepath.Join(dir, "out"), 0o700); err != nil {
		t.Fatal(err)
	}
	reopen(t, dir, func(s *Store) {
		importImage(t, s, writeImage(t, filepath.Join(dir, "one"), "one"), "one")
		if slices.Contains([]string{"rebase", "unit", "remove unit", "prune"}, work) {
			importImage(t, s, writeImage(t, filepath.Join(dir, "two"), "two"), "two")
		}
		if err := clone(t.Context(), s, "m"); err != nil {
			t.Fatal(err)
		}
		m := machine(t, s, "m")
		if err := appendTo(s.Disk(m), " m's own"); err != nil {
			t.Fatal(err)
		}
		others := []string{"other"}
		if work == "remove frozen" {
			others = nil
		}
		m, _, err := s.CloneMachine(t.Context(), m.ID, newMachines(others...), nil)
		if err == nil {
			err = appendTo(s.Disk(m), " later")
		}
		if work == "remove unit" || work == "prune" {
			_, e := makeUnit(t.Context(), s, "two")
			err = errors.Join(err, e)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
}

// contents is what each machine shows.
func contents(t *testing.T, s *Store) map[string]string {
	list, err := s.Machines(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, m := range list {
		content, err := shown(s.Disk(m))
		if err != nil {
			t.Error(err)
		}
		out[m.Name] = strings.ReplaceAll(content, "\x00", "")
	}
	return out
}

// TestLayersKilledAtEachStep kills a process at each step of the operations on
// layers. What machines show is what it was, or what QEMU has written since; all clones
// are there or none; and the operation can be done again.
func TestLayersKilledAtEachStep(t *testing.T) {
	t.Parallel()
	for work, minSteps := range map[string]int{
		"template of machine": 7, "commit": 8, "clone machine": 10, "freeze": 12, "abort": 6,
		"flatten": 4, "rebase": 5, "stream": 3, "scratch": 1, "unit": 7, "remove unit": 5, "remove frozen": 5, "export": 3, "prune": 5,
	} {
		t.Run(work, func(t *testing.T) {
			t.Parallel()
			for step := 1; ; step++ {
				dir := t.TempDir()
				layered(t, dir, work)
				killed := killedAt(t, dir, work, step)
				exported, err := os.ReadFile(filepath.Join(dir, "out", "exported"))
				if err == nil && !strings.HasPrefix(string(exported), "one\x00") {
					t.Errorf("killed at step %d: half an export: %.100q", step, exported)
				}
				went := wentOn(t, dir)
				reopen(t, dir, func(s *Store) { checkAfter(t, s, work, step, killed, went) })
				if entries, err := os.ReadDir(filepath.Join(dir, "out")); err != nil || len(entries) > 1 || len(entries) == 1 && entries[0].Name() != "exported" {
					t.Errorf("killed at step %d: %v, %v", step, entries, err)
				}
				if !killed {
					if step <= minSteps {
						t.Errorf("only %d steps", step-1)
					}
					return
				}
			}
		})
	}
}

// wentOn says whether a guest has written to a new layer.
func wentOn(t *testing.T, dir string) bool {
	files, err := filepath.Glob(filepath.Join(home.At(filepath.Join(dir, "h")).Machines(), "*", "disk-2.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(files, func(path string) bool {
		b, err := os.ReadFile(path)
		return err == nil && strings.HasSuffix(string(b), " and on")
	})
}

func checkAfter(t *testing.T, s *Store, work string, step int, killed, went bool) {
	at := fmt.Sprintf("killed at step %d", step)
	got := contents(t, s)
	want := map[string]string{"m": "one m's own later", "other": "one m's own"}
	if work == "remove frozen" {
		delete(want, "other")
		if _, ok := got["m"]; !ok {
			delete(want, "m")
		}
	}
	if went {
		want["m"] += " and on"
	}
	if got["c-1"] != got["c-2"] || got["c-1"] != "" && got["c-1"] != "one m's own later" || !killed && got["c-1"] == "" && (work == "freeze" || work == "clone machine") {
		t.Errorf("%s: the clones show %q and %q", at, got["c-1"], got["c-2"])
	}
	delete(got, "c-1")
	delete(got, "c-2")
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: machines show %q, want %q", at, got, want)
	}
	if made, err := s.Template(t.Context(), "made"); err == nil {
		content, err := shown(s.layerPath(made.Digest, made.Parent))
		if err != nil || strings.ReplaceAll(content, "\x00", "") != "one m's own later" {
			t.Errorf("%s: the template shows %q, %v", at, content, err)
		}
	} else if !killed && strings.Contains(work, "template") {
		t.Error(err)
	}
	if units, err := s.Units(t.Context()); err != nil || !killed && (work == "unit") != (len(units) == 1) {
		t.Errorf("%s: %d units, %v", at, len(units), err)
	}
	if work == "prune" || work == "remove unit" || work == "remove frozen" || work == "export" {
		return
	}
	// Again, as far as it is not done.
	for _, name := range []string{"c-1", "c-2"} {
		if m, err := s.Machine(t.Context(), name); err == nil {
			if err := s.RemoveMachine(t.Context(), m.ID); err != nil {
				t.Error(err)
			}
		}
	}
	if err := workOnLayers(t.Context(), s, work, ""); err != nil && !errors.Is(err, ErrExists) {
		t.Errorf("%s: again: %v", at, err)
	}
}
