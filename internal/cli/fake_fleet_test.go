package cli

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/guest/boot"
)

// fleetRoutes are those of fleets: one group each, whose machines are made and never
// replaced. A fleet called "broken" fails.
func (d *fakeDaemon) fleetRoutes(handle func(string, func(http.ResponseWriter, *http.Request) error)) {
	find := func(name string) (int, error) {
		i := slices.IndexFunc(d.fleets, func(f api.FleetState) bool { return f.Name == name })
		if i < 0 {
			return i, api.Errorf(api.CodeNotFound, "there is no fleet %q", name)
		}
		return i, nil
	}
	handle("GET /v1/fleets", func(w http.ResponseWriter, _ *http.Request) error {
		return json.NewEncoder(w).Encode(append([]api.FleetState{}, d.fleets...))
	})
	handle("GET /v1/fleets/{name}", func(w http.ResponseWriter, r *http.Request) error {
		i, err := find(r.PathValue("name"))
		if err != nil {
			return err
		}
		return json.NewEncoder(w).Encode(d.fleets[i])
	})
	handle("GET /v1/fleets/{name}/wait", func(w http.ResponseWriter, r *http.Request) error {
		i, err := find(r.PathValue("name"))
		if err != nil {
			return err
		}
		return finishStream(w, d.fleets[i], nil)
	})
	handle("DELETE /v1/fleets/{name}", func(w http.ResponseWriter, r *http.Request) error {
		i, err := find(r.PathValue("name"))
		if err != nil {
			return err
		}
		if r.FormValue("force") == "" {
			return api.Errorf(api.CodeInUse, "fleet %s: its machines run: --force", d.fleets[i].Name)
		}
		d.machines = slices.DeleteFunc(d.machines, func(m *api.Machine) bool { return m.Labels["fleet"] == d.fleets[i].Name })
		d.fleets = slices.Delete(d.fleets, i, i+1)
		return finishStream(w, nil, nil)
	})
	handle("POST /v1/fleets/plan", func(w http.ResponseWriter, r *http.Request) error {
		var req api.FleetRequest
		_ = json.NewDecoder(r.Body).Decode(&req)
		d.record(req)
		return json.NewEncoder(w).Encode(d.fleetPlan(req.Fleet))
	})
	handle("POST /v1/fleets/apply", d.applyFleet)
}

func (d *fakeDaemon) fleetPlan(f api.Fleet) api.FleetPlan {
	p := api.FleetPlan{Fleet: f.Name, Steps: []api.FleetStep{}, Hash: "h"}
	for wave, do := range []string{"create", "start", "await"} {
		for _, g := range f.Groups {
			for i := range g.Count {
				name := fmt.Sprintf("%s-%d", g.Name, i+1)
				if _, err := d.machine(name); err == nil {
					p.Kept++
					continue
				}
				p.Steps = append(p.Steps, api.FleetStep{Wave: wave + 1, Do: do, Group: g.Name, Machine: name, Why: "it is not there"})
			}
		}
	}
	p.Kept /= 3
	return p
}

func (d *fakeDaemon) applyFleet(w http.ResponseWriter, r *http.Request) error {
	var req api.FleetRequest
	_ = json.NewDecoder(r.Body).Decode(&req)
	d.record(req)
	p := d.fleetPlan(req.Fleet)
	if req.Hash != p.Hash {
		return api.Errorf(api.CodeInvalid, "another plan")
	}
	state := api.FleetState{Name: req.Fleet.Name, State: api.FleetApplied, Fleet: req.Fleet, Machines: []api.Machine{}, At: time.Unix(1_700_000_000, 0)}
	for _, s := range p.Steps {
		emit(w, api.Event{Step: s.Do, Machine: s.Machine, Text: "making " + s.Machine})
		if s.Do == "create" {
			m := d.add(s.Machine, d.templates[0], api.MachineConfig{})
			m.State, m.Stage, m.Labels = api.Login, boot.StageLogin, map[string]string{"fleet": req.Fleet.Name, "group": s.Group}
		}
	}
	for _, m := range d.machines {
		if m.Labels["fleet"] == state.Name {
			state.Machines = append(state.Machines, *m)
		}
	}
	for _, g := range req.Fleet.Groups {
		state.Wanted += g.Count
	}
	state.Healthy = len(state.Machines)
	d.fleets = slices.DeleteFunc(d.fleets, func(f api.FleetState) bool { return f.Name == state.Name })
	var err error
	if strings.HasPrefix(state.Name, "broken") {
		state.State, state.Problem, state.Healthy = api.FleetFailed, "await web-1: it is not healthy", 0
		err = &api.Error{Code: api.CodeBoot, Message: state.Problem, Problem: &boot.Problem{Kind: "no-bootable-disk", Cause: "the disk has no boot loader"}}
	}
	d.fleets = append(d.fleets, state)
	return finishStream(w, state, err)
}
