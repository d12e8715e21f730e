package store

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/api"
)

// graph is who lies over whom, as of one instant. It is small: a row each.
type graph struct {
	layers   []*node // parents first, by creation
	byKey    map[string]*node
	machines []over
	units    []over // their template and layer
}

// node is a layer with what hangs on it.
type node struct {
	api.Template // without what is asked of the file system
	digest       string
	children     []*node
	machines     []string // directly over it
	units        []string // ids of units whose disk it is
}

// over is a machine or unit over a layer.
type over struct {
	id, name, layer, template string
}

func (s *Store) graph(ctx context.Context, q querier) (*graph, error) {
	g := &graph{byKey: map[string]*node{}}
	nodes, err := all(ctx, q, scanNode, `SELECT digest, source, virtual_size, user, created_at, kind, coalesce(parent, ''), info, compress, used_at,
		CASE WHEN length(digest) = 64 THEN digest ELSE sha256 END
		FROM templates WHERE state = 'ready' ORDER BY created_at, digest`)
	if err != nil {
		return nil, fmt.Errorf("state database: %w", err)
	}
	for i := range nodes {
		g.byKey[nodes[i].Digest] = &nodes[i]
	}
	names, err := all(ctx, q, func(r scanner) (n [2]string, err error) { return n, r.Scan(&n[0], &n[1]) }, `SELECT digest, name FROM template_names ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("state database: %w", err)
	}
	for _, n := range names {
		if t := g.byKey[n[0]]; t != nil {
			t.Names = append(t.Names, n[1])
		}
	}
	if g.machines, err = all(ctx, q, scanOver, `SELECT id, name, coalesce(digest, ''), '' FROM machines ORDER BY name`); err == nil {
		g.units, err = all(ctx, q, scanOver, `SELECT id, '', layer, template FROM units WHERE state = 'ready' ORDER BY created_at, id`)
	}
	if err != nil {
		return nil, fmt.Errorf("state database: %w", err)
	}
	for _, m := range g.machines {
		if t := g.byKey[m.layer]; t != nil {
			t.machines = append(t.machines, m.name)
		}
	}
	for _, u := range g.units {
		if t := g.byKey[u.layer]; t != nil {
			t.units = append(t.units, u.id)
		}
		if t := g.byKey[u.template]; t != nil {
			t.Warm = append(t.Warm, u.id)
		}
	}
	g.order(nodes)
	return g, nil
}

// order makes the tree and puts parents first. A child may be older than
// its parent only in a database from elsewhere; a circle cannot be (a parent's
// row is there before the child's, and never changes).
func (g *graph) order(nodes []node) {
	for i := range nodes {
		n := &nodes[i]
		if p := g.byKey[n.Parent]; p != nil {
			p.children = append(p.children, n)
			p.Layers = append(p.Layers, n.Digest)
		}
	}
	var walk func(n *node)
	walk = func(n *node) {
		g.layers = append(g.layers, n)
		for _, c := range n.children {
			walk(c)
		}
	}
	for i := range nodes {
		if n := &nodes[i]; g.byKey[n.Parent] == nil {
			walk(n)
		}
	}
}

func scanNode(r scanner) (n node, err error) {
	var created, used int64
	var info []byte
	err = r.Scan(&n.Digest, &n.Source, &n.VirtualSize, &n.User, &created, &n.Kind, &n.Parent, &info, &n.Compress, &used, &n.digest)
	if err != nil {
		return n, err
	}
	n.CreatedAt = time.Unix(0, created)
	if used != 0 {
		n.UsedAt = time.Unix(0, used)
	}
	if err := json.Unmarshal(info, &n.Info); err != nil {
		return n, fmt.Errorf("template %s: %w", n.Digest, err)
	}
	return n, nil
}

func scanOver(r scanner) (o over, err error) {
	return o, r.Scan(&o.id, &o.name, &o.layer, &o.template)
}

// needing lists the machines over n, also by way of layers.
func (n *node) needing() []string {
	list := slices.Clone(n.machines)
	for _, c := range n.children {
		list = append(list, c.needing()...)
	}
	return list
}

// title is how people call a layer.
func (n *node) title() string {
	if len(n.Names) > 0 {
		return n.Names[0]
	}
	return n.Digest[:min(12, len(n.Digest))]
}

// template completes what is known of a layer; called is the name it was asked for by.
func (s *Store) template(n *node, called string) api.Template {
	t := n.Template
	t.Machines = n.needing()
	slices.Sort(t.Machines)
	if t.Machines == nil {
		t.Machines = []string{}
	}
	if t.Names == nil {
		t.Names = []string{}
	}
	switch {
	case slices.Contains(t.Names, called):
		t.Name = called
	case len(t.Names) > 0:
		t.Name = t.Names[0]
	}
	path := s.layerPath(t.Digest, t.Parent)
	t.DiskSize, t.Immutable = allocated(path), isImmutable(path)
	return t
}

// find returns the layer that ref means: a name, a digest or id, or the first 12
// or more digits of one.
func (g *graph) find(ref string, isDigest bool) (*node, error) {
	for _, n := range g.layers {
		if slices.Contains(n.Names, ref) || n.Digest == ref {
			return n, nil
		}
	}
	var found *node
	for _, n := range g.layers {
		if !isDigest || !strings.HasPrefix(n.Digest, ref) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("template %q: %w: several digests begin like this", ref, ErrInvalid)
		}
		found = n
	}
	if found == nil {
		return nil, fmt.Errorf("template %q: %w", ref, ErrNotFound)
	}
	return found, nil
}

// allocated returns the bytes that a file takes on the host, 0 if it is gone.
func allocated(path string) int64 {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0
	}
	return st.Blocks * 512
}
