package daemon

import (
	"context"
	"io/fs"
	"net/http"
	"path/filepath"
	"slices"

	"github.com/lamina-vm/lamina/internal/api"
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

func (d *Daemon) getSpace(w http.ResponseWriter, r *http.Request) error {
	s, err := d.space(r.Context())
	if err != nil {
		return err
	}
	answer(w, s)
	return nil
}

func (d *Daemon) putSpace(w http.ResponseWriter, r *http.Request) error {
	req, err := request[api.SpaceChange](w, r)
	if err != nil {
		return err
	}
	l, err := d.guard.setLimits(r.Context(), req)
	if err != nil {
		return err
	}
	d.log.Info("bounds of space set", "minFree", l.MinFree, "quota", l.Quota)
	return d.getSpace(w, r)
}

// space is what the home takes and has now.
func (d *Daemon) space(ctx context.Context) (api.Space, error) {
	u, err := d.measure(ctx)
	if err != nil {
		return api.Space{}, err
	}
	free, total, err := d.guard.space(d.home.Data, requestPatience)
	if err != nil {
		return api.Space{}, err
	}
	limits := d.guard.bounds()
	s := api.Space{Limits: limits, MinFree: minFree(limits.MinFree, total), Free: free, Total: total, Used: u.total(), Templates: u.templates,
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
func (d *Daemon) measure(ctx context.Context) (usage, error) {
	u, err := d.store.Usage(ctx)
	h := d.home
	return usage{
		templates: u.Templates, warm: u.Warm, machines: u.Machines,
		downloads: allocatedIn(h.Downloads()),
		other: allocatedIn(h.Images()) + allocatedIn(h.Database()) + allocatedIn(h.Database()+"-wal") +
			allocatedIn(h.Database()+"-shm") + allocatedIn(h.DaemonLog()),
	}, err
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
