package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
)

// PruneOptions are what the store asks about.
type PruneOptions struct {
	// Fits says whether a warm unit can be used on this host, and why not. nil: all can.
	Fits func(Unit) (fits bool, why string)
	// Keep says why a template is to stay though no machine needs it (a fleet names
	// it), "" for no reason. nil: none.
	Keep func(api.Template) string
}

// Prune removes what nothing needs, or only says what it would: warm units that do
// not fit, layers and files that were left behind, and templates without machines if
// asked to. What went between the look and the removal into use is kept, with a note.
// A removal that failed is a note too, not an error. Downloads are not the store's.
func (s *Store) Prune(ctx context.Context, r api.PruneRequest, o PruneOptions) (api.PruneResult, error) {
	p := pruning{s: s, r: r, o: o, before: time.Now().Add(-r.OlderThan), gone: map[string]bool{}}
	if err := p.plan(ctx); err != nil {
		return api.PruneResult{}, err
	}
	out := api.PruneResult{Items: []api.Pruned{}}
	for _, step := range p.steps {
		if !r.DryRun {
			err := context.Cause(ctx)
			if err == nil {
				err = step.remove(ctx)
			}
			if err != nil {
				step.item.Note = err.Error()
			} else {
				step.item.Gone = true
			}
		}
		if r.DryRun || step.item.Gone {
			out.Freed += step.item.Size
		}
		out.Items = append(out.Items, step.item)
	}
	var err error
	out.Kept, err = s.unknown(ctx)
	return out, err
}

// pruning is the plan of a Prune.
type pruning struct {
	s      *Store
	r      api.PruneRequest
	o      PruneOptions
	before time.Time
	gone   map[string]bool // ids of units and keys of layers that go
	steps  []pruneStep
}

type pruneStep struct {
	item   api.Pruned
	remove func(context.Context) error
}

func (p *pruning) add(item api.Pruned, remove func(context.Context) error) {
	p.steps = append(p.steps, pruneStep{item, remove})
}

func (p *pruning) plan(ctx context.Context) error {
	if err := p.units(ctx); err != nil {
		return err
	}
	g, err := p.s.graph(ctx, p.s.db)
	if err != nil {
		return err
	}
	// From the top down, so that what only goes because of another comes behind it.
	for _, n := range slices.Backward(g.layers) {
		p.layer(n)
	}
	return p.files(ctx)
}

// spared says whether what was made and used then is too young.
func (p *pruning) spared(made, used time.Time) bool {
	return p.r.OlderThan > 0 && (made.After(p.before) || used.After(p.before))
}

// units plans warm units.
func (p *pruning) units(ctx context.Context) error {
	list, damaged, err := p.s.unitRows(ctx, ``)
	if err == nil {
		list, err = p.s.completeUnits(ctx, list)
	}
	if err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(damaged)) {
		p.gone[id] = true
		dir := p.s.home.Unit(id)
		size := allocated(filepath.Join(dir, home.RAMFile)) + allocated(filepath.Join(dir, home.StateFile))
		p.add(api.Pruned{Kind: "warm", Name: id, Path: dir, Size: size, Why: damaged[id].Error()},
			func(ctx context.Context) error { return p.s.RemoveUnit(ctx, id) })
	}
	for _, u := range list {
		why := ""
		if p.o.Fits != nil {
			if fits, reason := p.o.Fits(u); !fits {
				why = "does not fit this host: " + reason
			}
		}
		// Any other error says nothing of the unit.
		if err := p.s.IntactUnit(ctx, u.ID); why == "" && errors.Is(err, ErrUnitChanged) {
			why = err.Error()
		}
		if why == "" && p.r.All {
			why = "can be made again"
		}
		if why == "" || p.spared(u.CreatedAt, u.UsedAt) {
			continue
		}
		p.gone[u.ID] = true
		p.add(api.Pruned{Kind: "warm", Name: u.ID, Path: u.Dir, Size: u.RAMSize, Why: why},
			func(ctx context.Context) error { return p.s.RemoveUnit(ctx, u.ID) })
	}
	return nil
}

// layer plans a template or other layer, if nothing needs it once what is planned
// already is gone.
func (p *pruning) layer(n *node) {
	if len(n.machines) > 0 || slices.ContainsFunc(n.children, func(c *node) bool { return !p.gone[c.Digest] }) ||
		slices.ContainsFunc(append(slices.Clone(n.units), n.Warm...), func(id string) bool { return !p.gone[id] }) {
		return
	}
	t := p.s.template(n, "")
	item := api.Pruned{Kind: "layer", Name: n.title(), Path: p.s.layerPath(n.Digest, n.Parent), Size: t.DiskSize, Why: "nothing lies over it"}
	remove := func(ctx context.Context) error { return p.s.dropIfUnneeded(ctx, n.Digest) }
	if n.Kind == api.LayerTemplate {
		if !p.r.Templates || p.spared(t.CreatedAt, t.UsedAt) || p.o.Keep != nil && p.o.Keep(t) != "" {
			return
		}
		item.Kind, item.Why = "template", "no machine is made of it"
		remove = func(ctx context.Context) error { return p.s.RemoveTemplate(ctx, n.Digest) }
	}
	p.gone[n.Digest] = true
	p.add(item, remove)
}

// files plans what broken-off work has left.
func (p *pruning) files(ctx context.Context) error {
	list, err := p.s.leftovers()
	if err != nil {
		return err
	}
	for _, path := range list {
		p.add(api.Pruned{Kind: "leftover", Name: filepath.Base(path), Path: path, Size: allocated(path), Why: "of an image that was not finished"},
			func(context.Context) error {
				if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
					return fmt.Errorf("store: %w", err)
				}
				return nil
			})
	}
	// What could not be removed before, as its file was busy.
	for _, k := range []struct {
		what, query string
		path        func(string) string
		drop        func(context.Context, string) error
	}{
		{"machine", `SELECT id FROM machines WHERE state = 'removing'`, p.s.home.Machine, p.s.dropHalfMachine},
		{"warm unit", `SELECT id FROM units WHERE state = 'removing'`, p.s.home.Unit, p.s.dropUnit},
	} {
		ids, err := all(ctx, p.s.db, scanText, k.query)
		if err != nil {
			return fmt.Errorf("state database: %w", err)
		}
		for _, id := range ids {
			size, err := taken(ctx, k.path(id))
			if err != nil {
				return fmt.Errorf("store: %w", err)
			}
			p.add(api.Pruned{Kind: "leftover", Name: id, Path: k.path(id), Size: size, Why: "of a " + k.what + " that is half removed"},
				func(ctx context.Context) error { return k.drop(ctx, id) })
		}
	}
	return nil
}
