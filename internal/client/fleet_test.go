package client

import (
	"errors"
	"net/http"
	"slices"
	"testing"

	"github.com/lamina-vm/lamina/internal/api"
)

// TestFleetRoutes: every request of fleets, and a daemon that ends in the middle of
// an apply, whose next one is asked how it came out.
func TestFleetRoutes(t *testing.T) {
	var seen []string
	cuts := 2 // streams that break off
	c := serve(t, tempHome(t), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/version" {
			seen = append(seen, r.Method+" "+r.URL.RequestURI())
		}
		switch r.Method + " " + r.URL.Path {
		case "GET /v1/version":
			answer(w, 200, api.Version{API: api.Level})
		case "GET /v1/fleets":
			answer(w, 200, []api.FleetState{{Name: "a/b"}})
		case "GET /v1/fleets/a/b":
			answer(w, 200, api.FleetState{Name: "a/b", Hash: "h"})
		case "POST /v1/fleets/plan":
			answer(w, 200, api.FleetPlan{Hash: "h"})
		case "GET /v1/fleets/gone/wait":
			answer(w, 404, api.Errorf(api.CodeNotFound, "none"))
		default:
			event(w, api.Event{Step: "create"})
			if r.Method != "DELETE" && cuts > 0 {
				cuts--
				panic(http.ErrAbortHandler)
			}
			event(w, api.Event{Done: true, Result: result(api.FleetState{Name: "a/b", State: api.FleetApplied})})
		}
	}))
	ctx := t.Context()
	list, err := c.Fleets(ctx)
	if err != nil || len(list) != 1 {
		t.Error(list, err)
	}
	if f, err := c.Fleet(ctx, "a/b"); err != nil || f.Name != "a/b" {
		t.Error(f, err)
	}
	req := api.FleetRequest{Fleet: api.Fleet{Name: "a/b"}, Hash: "h"}
	if p, err := c.PlanFleet(ctx, req); err != nil || p.Hash != "h" {
		t.Error(p, err)
	}
	steps := 0
	on := func(api.Event) { steps++ }
	if s, err := c.ApplyFleet(ctx, req, on); err != nil || s.State != api.FleetApplied || steps != 3 {
		t.Error(s, err, steps)
	}
	cuts = 1
	if _, err := c.ApplyFleet(ctx, api.FleetRequest{Fleet: api.Fleet{Name: "gone"}}, on); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("an apply that had not begun: %v", err)
	}
	cuts = 1
	if _, err := c.ApplyFleet(ctx, api.FleetRequest{Fleet: api.Fleet{Name: "a/b"}, Hash: "newer"}, on); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("an apply that had not begun, where another had succeeded: %v", err)
	}
	if err := c.RemoveFleet(ctx, "a/b", false, on); err != nil {
		t.Error(err)
	}
	if err := c.RemoveFleet(ctx, "a/b", true, on); err != nil {
		t.Error(err)
	}
	want := []string{"GET /v1/fleets", "GET /v1/fleets/a%2Fb", "POST /v1/fleets/plan",
		"POST /v1/fleets/apply", "GET /v1/fleets/a%2Fb/wait", "GET /v1/fleets/a%2Fb/wait", "GET /v1/fleets/a%2Fb",
		"POST /v1/fleets/apply", "GET /v1/fleets/gone/wait", "GET /v1/fleets/gone",
		"POST /v1/fleets/apply", "GET /v1/fleets/a%2Fb/wait", "GET /v1/fleets/a%2Fb", "DELETE /v1/fleets/a%2Fb", "DELETE /v1/fleets/a%2Fb?force=1"}
	if !slices.Equal(seen, want) {
		t.Errorf("%q", seen)
	}
}
