package store

import (
	"context"
	"fmt"

	"github.com/lamina-vm/lamina/internal/api"
)

// Lineage returns all layers and machines as a tree: a parent comes before what lies
// over it. The state of machines is the daemon's to add.
func (s *Store) Lineage(ctx context.Context) ([]api.LineageNode, error) {
	g, err := s.graph(ctx, s.db)
	if err != nil {
		return nil, err
	}
	machines, err := s.Machines(ctx)
	if err != nil {
		return nil, err
	}
	over := map[string][]Machine{}
	for _, m := range machines {
		over[m.Digest] = append(over[m.Digest], m)
	}
	var list []api.LineageNode
	depth := map[string]int{}
	for _, n := range g.layers {
		d := 0
		if n.Parent != "" {
			d = depth[n.Parent] + 1
		}
		depth[n.Digest] = d
		list = append(list, api.LineageNode{ID: n.Digest, Parent: n.Parent, Kind: n.Kind, Names: n.Names, Depth: d,
			DiskSize: allocated(s.layerPath(n.Digest, n.Parent)), VirtualSize: n.VirtualSize, CreatedAt: n.CreatedAt, Warm: n.Warm,
			Advice: layerAdvice(n, d)})
		for _, m := range over[n.Digest] {
			list = append(list, s.machineNode(m, n.VirtualSize, d+1))
		}
	}
	for _, m := range over[""] {
		list = append(list, s.machineNode(m, 0, 0))
	}
	return list, nil
}

// machineNode is a machine in the tree; below is the virtual size of its layer.
func (s *Store) machineNode(m Machine, below int64, depth int) api.LineageNode {
	n := api.LineageNode{ID: m.ID, Parent: m.Digest, Machine: true, Names: []string{m.Name}, Depth: depth,
		DiskSize: s.DiskSize(m), VirtualSize: max(below, m.Config.DiskSize), CreatedAt: m.CreatedAt}
	switch {
	case depth >= api.MaxDepth:
		n.Advice = fmt.Sprintf("lies over %d images, the most there may be: `lamina flatten %s` before it is cloned again", depth, m.Name)
	case depth >= api.AdviseDepth:
		n.Advice = fmt.Sprintf("lies over %d images, which makes it slower to read: `lamina flatten %s` makes it independent", depth, m.Name)
	}
	return n
}

// layerAdvice is for templates with a long chain below, of which others will be made.
func layerAdvice(n *node, depth int) string {
	if n.Kind != api.LayerTemplate || depth+1 < api.AdviseDepth {
		return ""
	}
	return fmt.Sprintf("lies over %d images: `lamina template export %s FILE` and an import of that make one image of it", depth, n.title())
}
