package store

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
)

// twins makes machines of one template whose own layers have the same content.
func twins(t *testing.T, s *Store, tm api.Template, list ...string) {
	t.Helper()
	if _, err := s.CreateMachines(t.Context(), tm, bare(list...), nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range list {
		f, err := os.OpenFile(s.Disk(machine(t, s, name)), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("the same"); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSameContentAtOnce: commits, clones and templates of machines with the same
// content, and imports of it, at one time.
func TestSameContentAtOnce(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, home.At(filepath.Join(dir, "h")))
	tm := importImage(t, s, writeImage(t, filepath.Join(dir, "i"), "x"), "base")
	list := []string{"m-0", "m-1", "m-2", "m-3", "m-4", "m-5"}
	twins(t, s, tm, list...)
	var group sync.WaitGroup
	keys := make([]string, len(list))
	for i, name := range list {
		id := machine(t, s, name).ID
		group.Go(func() {
			var err error
			switch i % 3 {
			case 0:
				var made api.Template
				made, _, err = s.CommitMachine(t.Context(), id, fmt.Sprintf("n-%d", i), false)
				keys[i] = made.Digest
			case 1:
				var made api.Template
				made, err = s.TemplateFromMachine(t.Context(), FromMachine{Machine: id, Name: fmt.Sprintf("n-%d", i)}, nil)
				keys[i] = made.Digest
			default:
				var m Machine
				m, _, err = s.CloneMachine(t.Context(), id, bare("c-"+name), nil)
				keys[i] = m.Digest
			}
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	group.Wait()
	for i, key := range keys {
		if key == "" || key != keys[0] {
			t.Errorf("layer %d: %q", i, key)
		}
	}
	if list, err := s.Layers(t.Context()); err != nil || len(list) != 2 {
		t.Errorf("%d layers, %v", len(list), err)
	}
	requireWhole(t, s)
}

// TestPublishWhileUnneeded: the last machine over a frozen layer goes while another
// machine's layer with the same content is published, and is held up before the file goes.
func TestPublishWhileUnneeded(t *testing.T) {
	for _, how := range []string{"template", "commit"} {
		t.Run(how, func(t *testing.T) {
			dir := t.TempDir()
			var mu sync.Mutex
			onStep := map[string]func(){}
			s, err := open(t.Context(), home.At(filepath.Join(dir, "h")), Options{Images: plainImages{}}, func(step string) {
				mu.Lock()
				f := onStep[step]
				delete(onStep, step)
				mu.Unlock()
				if f != nil {
					f()
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			tm := importImage(t, s, writeImage(t, filepath.Join(dir, "i"), "x"), "base")
			twins(t, s, tm, "a", "b")
			first, _, err := s.CloneMachine(t.Context(), machine(t, s, "a").ID, nil, nil)
			if err != nil {
				t.Fatal(err)
			}
			removed, going, published := make(chan error, 1), make(chan struct{}), make(chan struct{})
			remove := func() {
				mu.Lock()
				onStep["layer file removed"] = func() { close(going); <-published }
				mu.Unlock()
				go func() { removed <- s.RemoveMachine(context.WithoutCancel(t.Context()), first.ID) }()
				select {
				case <-going:
				case err := <-removed:
					removed <- err
				}
			}
			var made api.Template
			id := machine(t, s, "b").ID
			onStep["layer row"] = remove
			if how == "template" {
				made, err = s.TemplateFromMachine(t.Context(), FromMachine{Machine: id, Name: "two"}, nil)
			} else {
				made, _, err = s.CommitMachine(t.Context(), id, "two", false)
			}
			close(published)
			if err != nil || made.Digest != first.Digest || made.Name != "two" {
				t.Errorf("%+v, %v", made, err)
			}
			if err := <-removed; err != nil {
				t.Error(err)
			}
			if got, err := s.Template(t.Context(), "two"); err != nil || got.Kind != api.LayerTemplate {
				t.Errorf("%+v, %v", got, err)
			}
			requireWhole(t, s)
		})
	}
}

// TestUnneededOncePublished: a layer that loses the last that needed it while it is being
// published goes when that came to nothing.
func TestUnneededOncePublished(t *testing.T) {
	dir := t.TempDir()
	var remove func()
	s, err := open(t.Context(), home.At(filepath.Join(dir, "h")), Options{Images: plainImages{}}, func(step string) {
		if f := remove; step == "layer row" && f != nil {
			remove = nil
			f()
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	tm := importImage(t, s, writeImage(t, filepath.Join(dir, "i"), "x"), "base")
	twins(t, s, tm, "a", "b")
	first, _, err := s.CloneMachine(t.Context(), machine(t, s, "a").ID, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	remove = func() {
		if err := s.RemoveMachine(t.Context(), first.ID); err != nil {
			t.Error(err)
		}
	}
	if _, err := s.TemplateFromMachine(t.Context(), FromMachine{Machine: machine(t, s, "b").ID, Name: "base"}, nil); err == nil {
		t.Error("the name of another template is taken")
	}
	if _, err := os.Stat(s.home.LayerDisk(first.Digest)); !os.IsNotExist(err) {
		t.Errorf("left: %v", err)
	}
	requireWhole(t, s)
}
