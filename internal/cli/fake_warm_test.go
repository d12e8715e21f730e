package cli

import (
	"encoding/json"
	"net/http"
	"slices"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/vm"
)

// warmRoutes are those of warm units and forks.
func (d *fakeDaemon) warmRoutes(handle func(string, func(http.ResponseWriter, *http.Request) error)) {
	units := []api.WarmUnit{}
	handle("POST /v1/templates/{ref}/warm", func(w http.ResponseWriter, r *http.Request) error {
		t, err := d.template(r.PathValue("ref"))
		if err != nil {
			return err
		}
		var req api.WarmRequest
		_ = json.NewDecoder(r.Body).Decode(&req)
		d.record(map[string]any{"warm": req})
		emit(w, api.Event{Step: "warm", Text: "freezing it"})
		u := api.WarmUnit{ID: "0123456789ab", Template: t.Name, Digest: t.Digest, Key: vm.FrozenKey{CPUs: max(req.CPUs, 1), Memory: req.Memory, Accel: vm.AccelTCG},
			Fits: true, RAMSize: 80 << 20, DiskSize: 1 << 20, BootTime: int64(5 * time.Second), Machines: []string{}}
		units = append(units, u)
		return finishStream(w, u, nil)
	})
	handle("GET /v1/warm", func(w http.ResponseWriter, _ *http.Request) error { return json.NewEncoder(w).Encode(units) })
	handle("DELETE /v1/warm/{id}", func(w http.ResponseWriter, r *http.Request) error {
		units = slices.DeleteFunc(units, func(u api.WarmUnit) bool { return u.ID == r.PathValue("id") })
		w.WriteHeader(http.StatusNoContent)
		return nil
	})
	handle("POST /v1/machines/{name}/fork", func(w http.ResponseWriter, r *http.Request) error {
		m, err := d.machine(r.PathValue("name"))
		if err != nil {
			return err
		}
		var req api.ForkRequest
		_ = json.NewDecoder(r.Body).Decode(&req)
		d.record(map[string]any{"fork": req})
		c := *d.add(m.Name+"-1", api.Template{Name: m.Template, Digest: m.Digest}, api.MachineConfig{})
		c.State, c.Warmth = api.Login, &api.Warmth{Prompt: 100 * time.Millisecond, Ready: 900 * time.Millisecond}
		return finishStream(w, api.ForkResult{Machines: []api.Machine{c}, Pause: 30 * time.Millisecond, Written: 1 << 20}, nil)
	})
}
