package daemon

import (
	"context"
	"net/http"
	"slices"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/catalog"
	"github.com/lamina-vm/lamina/internal/store"
	"github.com/lamina-vm/lamina/internal/vm"
)

func (d *Daemon) postPrune(w http.ResponseWriter, r *http.Request) error {
	req, err := request[api.PruneRequest](w, r)
	if err != nil {
		return err
	}
	if req.OlderThan < 0 {
		return api.Errorf(api.CodeInvalid, "prune: the age %s is negative", req.OlderThan)
	}
	res, err := d.prune(r.Context(), req)
	if err != nil {
		return err
	}
	d.guard.wake() // there may be space again
	answer(w, res)
	return nil
}

// prune removes, or lists, what nothing needs: of the store and of the downloads.
func (d *Daemon) prune(ctx context.Context, req api.PruneRequest) (api.PruneResult, error) {
	keep, err := d.namedByFleets(ctx)
	if err != nil {
		return api.PruneResult{}, err
	}
	res, err := d.store.Prune(ctx, req, store.PruneOptions{Fits: d.fits(ctx), Keep: keep})
	if err != nil {
		return res, err
	}
	o := catalog.PruneOptions{DryRun: req.DryRun, All: req.All, OlderThan: req.OlderThan}
	if d.fetching.TryLock() {
		defer d.fetching.Unlock()
	} else {
		o.All = false // one of them is being imported
	}
	items, kept, err := catalog.Prune(ctx, d.home.Downloads(), o)
	if err != nil {
		return res, err
	}
	for _, it := range items {
		if it.Gone || req.DryRun {
			res.Freed += it.Size
		}
		if it.Gone {
			d.log.Info("download removed", "name", it.Name, "why", it.Why)
		}
	}
	res.Items, res.Kept = append(res.Items, items...), append(res.Kept, kept...)
	return res, nil
}

// fits says of warm units whether this host can go on from them. Units of one key
// are asked about once.
func (d *Daemon) fits(ctx context.Context) func(store.Unit) (bool, string) {
	thawer, ok := d.opts.Driver.(vm.Thawer)
	if !ok {
		return nil
	}
	return func(u store.Unit) (bool, string) {
		// With the accelerator that it was made with: which one a start would take is a
		// guess as long as none was tried since the host was started.
		spec := u.Frozen.Spec.Clone()
		spec.Accel = u.Key.Accel
		key, err := thawer.FrozenKey(ctx, spec)
		switch {
		case err != nil: // nothing is known
			return true, ""
		case key != u.Key:
			return false, "it was made by " + u.Key.QEMU + " with " + string(u.Key.Accel) + " and the CPU " + u.Key.CPU + ", here are " + key.QEMU + ", " + string(key.Accel) + " and " + key.CPU
		}
		return true, ""
	}
}

// namedByFleets says of templates whether a fleet needs them.
func (d *Daemon) namedByFleets(ctx context.Context) (func(api.Template) string, error) {
	list, err := d.store.Fleets(ctx)
	if err != nil {
		return nil, err
	}
	by := make(map[string]string)
	for _, f := range list {
		for _, g := range f.Document.Groups {
			by[g.Template] = f.Name
			if g.Digest != "" { // what it was made of; the name may have moved on
				by[g.Digest] = f.Name
			}
		}
	}
	return func(t api.Template) string {
		for _, name := range append(slices.Clone(t.Names), t.Digest) {
			if f := by[name]; f != "" {
				return "fleet " + f + " is made of it"
			}
		}
		// A fleet may name it by the beginning of its digest.
		for ref, f := range by {
			if len(ref) >= 12 && len(ref) < len(t.Digest) && t.Digest[:len(ref)] == ref {
				return "fleet " + f + " is made of it"
			}
		}
		return ""
	}, nil
}
