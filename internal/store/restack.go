package store

import (
	"context"
	"fmt"

	"github.com/lamina-vm/lamina/internal/api"
)

// Pristine says whether a machine, which must not run, has never written anything to
// its own layer: then it is the machine's to take another one.
func (s *Store) Pristine(ctx context.Context, m Machine) (bool, error) {
	if m.Definition != nil || m.Digest == "" {
		return false, nil
	}
	return s.images.Empty(ctx, s.Disk(m))
}

// Restack gives a machine, which must not run and is [Store.Pristine], a new own
// layer over the disk of a warm unit of its template, or, with unit "", over its
// template, whatever has become of what it lay over. A crash leaves the machine as it was, or with the new layer.
func (s *Store) Restack(ctx context.Context, id, unit string) (Machine, error) {
	m, err := s.unchanging(ctx, id)
	if err == nil {
		err = s.notWritten(m)
	}
	if err != nil {
		return m, err
	}
	pristine, err := s.Pristine(ctx, m)
	if err != nil {
		return m, err
	}
	if !pristine {
		return m, fmt.Errorf("machine %s: %w: its guest has written to its disk, which cannot begin anew", m.Name, ErrInvalid)
	}
	base, err := s.restackBase(ctx, m, unit)
	if err != nil {
		return m, err
	}
	if err := s.Intact(ctx, base.Digest); err != nil {
		return m, err
	}
	d, err := s.images.Describe(ctx, s.Disk(m))
	if err != nil {
		return m, fmt.Errorf("machine %s: %w", m.Name, err)
	}
	n, err := s.depthOf(ctx, s.db, base.Digest)
	if err == nil && n > api.MaxDepth {
		err = fmt.Errorf("machine %s: %w: it would lie over %d images: start it cold", m.Name, ErrInvalid, n)
	}
	if err != nil {
		return m, err
	}
	return s.replaceDisk(ctx, m, replacement{base: base.Digest, template: m.Template, unit: unit, build: func(path string) error {
		return s.images.Overlay(ctx, path, backingName(base.Digest, base.Parent), d.Size)
	}})
}

// restackBase is the layer that a machine is to lie over.
func (s *Store) restackBase(ctx context.Context, m Machine, unit string) (api.Template, error) {
	if unit != "" {
		u, err := s.unit(ctx, unit, "ready")
		if err != nil {
			return api.Template{}, err
		}
		return s.layerAt(ctx, u.Layer)
	}
	t, err := s.layerAt(ctx, m.Digest)
	if err != nil {
		return t, err
	}
	if t.Kind == api.LayerWarm {
		return s.layerAt(ctx, t.Parent)
	}
	return t, nil
}

// layerAt is Template for any layer, by its key.
func (s *Store) layerAt(ctx context.Context, key string) (api.Template, error) {
	g, err := s.graph(ctx, s.db)
	if err != nil {
		return api.Template{}, err
	}
	n, err := g.find(key, true)
	if err != nil {
		return api.Template{}, err
	}
	return s.template(n, key), nil
}
