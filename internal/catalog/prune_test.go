package catalog

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
)

// slotOf makes a folder of the cache with files, and says what is in it whole.
func slotOf(t *testing.T, dir, name string, files ...string) string {
	t.Helper()
	path := filepath.Join(dir, name+"-0123456789ab")
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, f := range append(files, "lock") {
		if err := os.WriteFile(filepath.Join(path, f), []byte("content"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// whole makes the image of a folder count as one that is complete.
func whole(t *testing.T, dir, name string) {
	t.Helper()
	st, err := os.Stat(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	s := &slot{dir: dir, name: name}
	if err := writeJSON(s.metaPath(), meta{Size: st.Size(), ModTime: st.ModTime().UnixNano()}); err != nil {
		t.Fatal(err)
	}
}

func TestPrune(t *testing.T) {
	dir := t.TempDir()
	done := slotOf(t, dir, "done.qcow2", "done.qcow2")
	whole(t, done, "done.qcow2")
	slotOf(t, dir, "part.qcow2", "part", "part.json", ".json.123")
	slotOf(t, dir, "changed.qcow2", "changed.qcow2", "meta.json")
	busy := slotOf(t, dir, "busy.qcow2", "part")
	mine := slotOf(t, dir, "mine.qcow2", "part", "notes.txt")
	slotOf(t, dir, "empty.qcow2")
	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/", filepath.Join(dir, "link-0123456789ab")); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Open(filepath.Join(busy, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Close() }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	prune := func(o PruneOptions) (string, []api.Pruned) {
		t.Helper()
		items, kept, err := Prune(t.Context(), dir, o)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Join(kept, " ") != strings.Join([]string{filepath.Join(dir, "link-0123456789ab"), filepath.Join(mine, "notes.txt"), other}, " ") {
			t.Errorf("kept: %q", kept)
		}
		var names []string
		for _, it := range items {
			names = append(names, it.Name)
		}
		return strings.Join(names, " "), items
	}
	if got, items := prune(PruneOptions{DryRun: true}); got != "changed.qcow2 part.qcow2" || items[0].Gone || items[0].Size == 0 {
		t.Errorf("would go: %q %+v", got, items)
	}
	if got, _ := prune(PruneOptions{All: true, OlderThan: time.Hour}); got != "" {
		t.Errorf("too young: %q", got)
	}
	if got, items := prune(PruneOptions{}); got != "changed.qcow2 part.qcow2" || !items[0].Gone || !items[1].Gone {
		t.Errorf("went: %q %+v", got, items)
	}
	if got, _ := prune(PruneOptions{All: true}); got != "done.qcow2" {
		t.Errorf("all: %q", got)
	}
	if got, _ := prune(PruneOptions{All: true}); got != "" {
		t.Errorf("again: %q", got)
	}
	for _, f := range []string{filepath.Join(busy, "part"), filepath.Join(mine, "part"), filepath.Join(mine, "notes.txt"), filepath.Join(done, "lock")} {
		if _, err := os.Stat(f); err != nil {
			t.Error(err)
		}
	}
	if items, kept, err := Prune(t.Context(), filepath.Join(dir, "nothing"), PruneOptions{}); len(items)+len(kept) > 0 || err != nil {
		t.Errorf("no cache: %v %v %v", items, kept, err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := Prune(ended, dir, PruneOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that has ended: %v", err)
	}
}
