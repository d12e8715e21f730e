package catalog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
)

// PruneOptions say what of the cache may go.
type PruneOptions struct {
	DryRun bool // only say what would
	All    bool // also images that are whole
	// OlderThan spares what was written more recently.
	OlderThan time.Duration
}

// slotName is the name of a source's folder: see source.folder.
var slotName = regexp.MustCompile(`^(.+)-[0-9a-f]{12}$`)

// Prune removes downloads from the cache in dir, or only says what it would: what is not
// whole, and with All what is. A folder stays, with its lock, as somebody may be about to take
// that. What is being fetched is not touched; what the cache has not made is returned
// in kept. A removal that fails is a note of its item.
func Prune(ctx context.Context, dir string, o PruneOptions) (items []api.Pruned, kept []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("image cache: %w", err)
	}
	for _, e := range entries {
		if err := context.Cause(ctx); err != nil {
			return items, kept, err
		}
		path := filepath.Join(dir, e.Name())
		m := slotName.FindStringSubmatch(e.Name())
		if m == nil || !e.IsDir() {
			kept = append(kept, path)
			continue
		}
		item, unknown, err := pruneSlot(path, m[1], o)
		if err != nil {
			return items, kept, fmt.Errorf("image cache: %w", err)
		}
		kept = append(kept, unknown...)
		if item != nil {
			items = append(items, *item)
		}
	}
	return items, kept, nil
}

// pruneSlot plans, and does, one folder. nil: nothing of it goes.
func pruneSlot(dir, name string, o PruneOptions) (*api.Pruned, []string, error) {
	files, unknown, err := slotFiles(dir, name)
	if err != nil || len(unknown) > 0 || len(files) == 0 {
		return nil, unknown, err
	}
	s := &slot{dir: dir, name: slotImage(name)}
	item := &api.Pruned{Kind: "download", Name: name, Path: dir, Why: "it was not finished"}
	if s.cached() != nil {
		if !o.All {
			return nil, nil, nil
		}
		item.Why = "it can be fetched again"
	}
	for _, f := range files {
		st, err := os.Lstat(f)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		if o.OlderThan > 0 && time.Since(st.ModTime()) < o.OlderThan {
			return nil, nil, nil
		}
		if sys, ok := st.Sys().(*syscall.Stat_t); ok {
			item.Size += sys.Blocks * 512
		}
	}
	free, err := s.tryLock()
	switch {
	case err != nil:
		item.Note = err.Error()
		return item, nil, nil
	case free == nil:
		return nil, nil, nil // it is being fetched
	}
	defer func() { _ = free.Close() }() // lets go of the lock
	if o.DryRun {
		return item, nil, nil
	}
	// The image's meta first: without it nothing else counts.
	slices.SortFunc(files, func(a, b string) int { return order(a) - order(b) })
	for _, f := range files {
		if err := remove(f); err != nil {
			item.Note = err.Error()
			return item, nil, nil
		}
	}
	item.Gone = true
	return item, nil, nil
}

func order(path string) int {
	if filepath.Base(path) == "meta.json" {
		return 0
	}
	return 1
}

// slotImage is what the image of a folder is called: see Fetcher.open.
func slotImage(name string) string {
	if slices.Contains(slotNames, name) {
		return "image-" + name
	}
	return name
}

// slotNames are the names that open gives no image.
var slotNames = []string{"lock", "part", "part.json", "meta.json", "unpacked"}

// slotFiles are the files of a folder that may go, and those that the cache has not
// made.
func slotFiles(dir, name string) (files, unknown []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch {
		case !e.Type().IsRegular():
			unknown = append(unknown, path)
		case e.Name() == "lock":
		case slices.Contains(slotNames, e.Name()), e.Name() == slotImage(name), strings.HasPrefix(e.Name(), ".json."):
			files = append(files, path)
		default:
			unknown = append(unknown, path)
		}
	}
	return files, unknown, nil
}

// tryLock takes the folder's lock; nil where somebody has it.
func (s *slot) tryLock() (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		if (&slot{dir: s.dir, lock: f}).locked() {
			return f, nil
		}
		err = syscall.EWOULDBLOCK // the folder went, and may be another's by now
	}
	_ = f.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, nil
	}
	return nil, err
}
