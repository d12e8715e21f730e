package cli

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/names"
)

// layerRoutes are those of templates, layers and space.
func (d *fakeDaemon) layerRoutes(handle func(string, func(http.ResponseWriter, *http.Request) error)) {
	read := func(r *http.Request, v any) {
		_ = json.NewDecoder(r.Body).Decode(v)
		d.record(v)
	}
	handle("GET /v1/lineage", func(w http.ResponseWriter, _ *http.Request) error { return json.NewEncoder(w).Encode(d.lineage()) })
	handle("POST /v1/templates/{ref}/tag", func(w http.ResponseWriter, r *http.Request) error {
		var req api.TagRequest
		read(r, &req)
		t, err := d.template(r.PathValue("ref"))
		if err != nil {
			return err
		}
		if other, err := d.template(req.Name); err == nil && !req.Move {
			return api.Errorf(api.CodeExists, "template %s has the name already: --move takes it away", other.Digest[:12])
		}
		i := slices.IndexFunc(d.templates, func(o api.Template) bool { return o.Digest == t.Digest })
		d.templates[i].Names = append(d.templates[i].Names, req.Name)
		return json.NewEncoder(w).Encode(d.templates[i])
	})
	handle("POST /v1/templates/{ref}/export", func(w http.ResponseWriter, r *http.Request) error {
		var req api.ExportRequest
		read(r, &req)
		if _, err := d.template(r.PathValue("ref")); err != nil {
			return err
		}
		if err := os.WriteFile(req.Path, []byte("image"), 0o600); err != nil {
			return err
		}
		return finishStream(w, nil, nil)
	})
	handle("POST /v1/template-from", func(w http.ResponseWriter, r *http.Request) error {
		var req api.TemplateFromRequest
		read(r, &req)
		m, err := d.machine(req.Machine)
		if err != nil {
			return err
		}
		return finishStream(w, d.addTemplate(req.Name, "machine "+m.Name), nil)
	})
	handle("POST /v1/machines/{name}/clone", d.cloneMachine)
	for _, what := range []string{"commit", "flatten", "rebase"} {
		handle("POST /v1/machines/{name}/"+what, func(w http.ResponseWriter, r *http.Request) error {
			var req map[string]any
			read(r, &req)
			m, err := d.machine(r.PathValue("name"))
			if err != nil {
				return err
			}
			if name, ok := req["name"].(string); ok {
				return finishStream(w, d.addTemplate(name, "machine "+m.Name), nil)
			}
			return finishStream(w, m, nil)
		})
	}
	d.spaceRoutes(handle, read)
}

func (d *fakeDaemon) spaceRoutes(handle func(string, func(http.ResponseWriter, *http.Request) error), read func(*http.Request, any)) {
	limits := api.SpaceLimits{MinFree: 512 << 20}
	answer := func(w http.ResponseWriter) error {
		return json.NewEncoder(w).Encode(api.Space{Limits: limits, MinFree: limits.MinFree, Free: 10 << 30, Total: 20 << 30, Used: 3 << 30, Templates: 1 << 30, Paused: []string{"web"}})
	}
	handle("GET /v1/space", func(w http.ResponseWriter, _ *http.Request) error { return answer(w) })
	handle("PUT /v1/space", func(w http.ResponseWriter, r *http.Request) error {
		read(r, &limits)
		if limits.MinFree == 0 {
			limits.MinFree = 512 << 20
		}
		return answer(w)
	})
	handle("POST /v1/prune", func(w http.ResponseWriter, r *http.Request) error {
		var req api.PruneRequest
		read(r, &req)
		res := api.PruneResult{Kept: []string{"/home/mine.qcow2"}}
		if req.Templates {
			res.Items = []api.Pruned{
				{Kind: "template", Name: "old", Size: 1 << 30, Why: "no machine needs it", Gone: !req.DryRun},
				{Kind: "leftover", Name: "x.tmp", Size: 5, Why: "unfinished", Note: "permission denied"},
			}
			res.Freed = 1 << 30
		}
		return json.NewEncoder(w).Encode(res)
	})
}

func (d *fakeDaemon) lineage() []api.LineageNode {
	out := []api.LineageNode{}
	for _, t := range d.templates {
		out = append(out, api.LineageNode{ID: t.Digest, Kind: t.Kind, Names: append([]string{t.Name}, t.Names...), DiskSize: t.DiskSize, VirtualSize: t.VirtualSize})
	}
	for _, m := range d.machines {
		out = append(out, api.LineageNode{ID: m.ID, Parent: m.Digest, Machine: true, Names: []string{m.Name}, Depth: 1, State: m.State, DiskSize: m.DiskSize})
	}
	return out
}

func (d *fakeDaemon) cloneMachine(w http.ResponseWriter, r *http.Request) error {
	var req api.CloneMachineRequest
	_ = json.NewDecoder(r.Body).Decode(&req)
	d.record(map[string]any{"cloneMachine": req})
	m, err := d.machine(r.PathValue("name"))
	if err != nil {
		return err
	}
	list, err := names.ExpandMachines(req.Names)
	if err != nil {
		return api.Errorf(api.CodeInvalid, "%v", err)
	}
	var out []*api.Machine
	for _, n := range list {
		emit(w, api.Event{Step: "overlay", Machine: n, Text: fmt.Sprintf("machine %s made", n)})
		c := d.add(n, api.Template{Name: m.Template, Digest: m.Digest}, req.MachineConfig)
		c.Labels = req.Labels
		out = append(out, c)
	}
	return finishStream(w, out, nil)
}
