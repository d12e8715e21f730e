package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
)

// defaultMinFree is what is kept free where nobody has said otherwise; of a small
// file system a twentieth.
const defaultMinFree = 512 << 20

func minFree(set, total int64) int64 {
	if set > 0 {
		return set
	}
	return min(defaultMinFree, total/20)
}

// readLimits returns what a person has set; zeros are defaults.
func readLimits(h home.Home) (l api.SpaceLimits, err error) {
	b, err := os.ReadFile(h.SpaceLimits())
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &l)
	}
	if err == nil {
		err = checkLimits(l)
	}
	if err != nil {
		return api.SpaceLimits{}, fmt.Errorf("the bounds of space in %s: %w", h.SpaceLimits(), err)
	}
	return l, nil
}

func checkLimits(l api.SpaceLimits) error {
	if l.MinFree < 0 || l.Quota < 0 {
		return api.Errorf(api.CodeInvalid, "space: %d bytes to be kept free and a quota of %d: neither can be negative", l.MinFree, l.Quota)
	}
	return nil
}

// writeLimits replaces them, durably and as a whole.
func writeLimits(h home.Home, l api.SpaceLimits) error {
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	path := h.SpaceLimits()
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (d *Daemon) getSpace(w http.ResponseWriter, _ *http.Request) error {
	s, err := d.space()
	if err != nil {
		return err
	}
	answer(w, s)
	return nil
}

func (d *Daemon) putSpace(w http.ResponseWriter, r *http.Request) error {
	req, err := request[api.SpaceLimits](w, r)
	if err != nil {
		return err
	}
	if err := checkLimits(req); err != nil {
		return err
	}
	if err := d.guard.setLimits(req); err != nil {
		return err
	}
	d.log.Info("bounds of space set", "minFree", req.MinFree, "quota", req.Quota)
	return d.getSpace(w, r)
}

// space is what the home takes and has now.
func (d *Daemon) space() (api.Space, error) {
	u := measure(d.home)
	free, total, err := d.guard.statfs(d.home.Data)
	if err != nil {
		return api.Space{}, err
	}
	limits := d.guard.bounds()
	limits.MinFree = minFree(limits.MinFree, total)
	s := api.Space{Limits: limits, Free: free, Total: total, Used: u.total(), Templates: u.templates,
		Warm: u.warm, Machines: u.machines, Downloads: u.downloads}
	for _, m := range d.list() {
		if m.running() != nil && m.last().Paused != "" {
			s.Paused = append(s.Paused, m.name)
		}
	}
	slices.Sort(s.Paused)
	return s, nil
}

// usage is what a home takes on the host, in bytes.
type usage struct{ templates, warm, machines, downloads, other int64 }

func (u usage) total() int64 { return u.templates + u.warm + u.machines + u.downloads + u.other }

// measure adds up what is allocated. It looks only where Lamina keeps something:
// a home in one folder may hold other things of a person's.
func measure(h home.Home) usage {
	return usage{
		templates: allocatedIn(h.Templates()),
		warm:      allocatedIn(filepath.Join(h.Data, "warm")),
		machines:  allocatedIn(h.Machines()),
		downloads: allocatedIn(h.Downloads()),
		other: allocatedIn(h.Images()) + allocatedIn(h.Database()) + allocatedIn(h.Database()+"-wal") +
			allocatedIn(h.Database()+"-shm") + allocatedIn(h.DaemonLog()),
	}
}

// allocatedIn adds up what a file, or a folder with all below it, takes; links
// are not followed. What is gone or cannot be looked at counts nothing.
func allocatedIn(path string) (sum int64) {
	_ = filepath.WalkDir(path, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // it is removed meanwhile
		}
		if st, err := e.Info(); err == nil {
			sum += allocated(st)
		}
		return nil
	})
	return sum
}
