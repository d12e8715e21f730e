package client

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
)

func fleetPath(name string) string { return "/v1/fleets/" + url.PathEscape(name) }

// Fleets lists the fleets.
func (c *Client) Fleets(ctx context.Context) ([]api.FleetState, error) {
	return get[[]api.FleetState](ctx, c, "/v1/fleets")
}

// Fleet returns the fleet with the given name.
func (c *Client) Fleet(ctx context.Context, name string) (api.FleetState, error) {
	return get[api.FleetState](ctx, c, fleetPath(name))
}

// PlanFleet says what ApplyFleet would do.
func (c *Client) PlanFleet(ctx context.Context, req api.FleetRequest) (api.FleetPlan, error) {
	return post[api.FleetPlan](ctx, c, "/v1/fleets/plan", req)
}

// ApplyFleet makes the machines of a fleet what it says, and returns when they are.
// It goes on when ctx ends. A daemon that ends meanwhile is followed by the next
// one, as by WaitFleet, if it had begun with this plan: req has its hash.
func (c *Client) ApplyFleet(ctx context.Context, req api.FleetRequest, on EventFunc) (api.FleetState, error) {
	s, err := stream[api.FleetState](ctx, c, "POST", "/v1/fleets/apply", req, on)
	if !errors.Is(err, ErrNoDaemon) || ctx.Err() != nil {
		return s, err
	}
	s, werr := c.WaitFleet(ctx, req.Fleet.Name, on)
	if errors.Is(werr, ErrNoDaemon) || ctx.Err() != nil {
		return s, werr
	}
	// What is on record may be of an apply before this one.
	now, gerr := c.Fleet(ctx, req.Fleet.Name)
	if gerr != nil || req.Hash == "" || now.Hash != req.Hash {
		return api.FleetState{}, fmt.Errorf("fleet %s: the daemon ended before it had begun: look at the plan, and apply it again: %w", req.Fleet.Name, err)
	}
	return s, werr
}

// WaitFleet waits until nothing is under way with a fleet, and returns how it is
// then, or why it failed. A daemon that ends meanwhile is followed by the next one,
// which is started if need be.
func (c *Client) WaitFleet(ctx context.Context, name string, on EventFunc) (api.FleetState, error) {
	for {
		s, err := stream[api.FleetState](ctx, c, "GET", fleetPath(name)+"/wait", nil, on)
		if !errors.Is(err, ErrNoDaemon) || ctx.Err() != nil {
			return s, err
		}
		// Not at once: one that fails again and again is not to be hurried.
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return s, err
		}
		if _, err := Connect(ctx, c.home); err != nil {
			return s, err
		}
	}
}

// RemoveFleet removes a fleet with its machines; running ones only with force. Once
// begun it goes on when ctx ends.
func (c *Client) RemoveFleet(ctx context.Context, name string, force bool, on EventFunc) error {
	path := fleetPath(name)
	if force {
		path += "?force=1"
	}
	_, err := c.events(ctx, "DELETE", path, nil, on)
	return err
}
