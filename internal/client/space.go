package client

import (
	"context"

	"github.com/lamina-vm/lamina/internal/api"
)

// Prune removes what nothing needs, or with PruneRequest.DryRun says what that is.
func (c *Client) Prune(ctx context.Context, req api.PruneRequest) (api.PruneResult, error) {
	return post[api.PruneResult](ctx, c, "/v1/prune", req)
}

// Space says what the home takes and has.
func (c *Client) Space(ctx context.Context) (api.Space, error) {
	return get[api.Space](ctx, c, "/v1/space")
}

// SetSpace sets bounds of the home; what is not given stays.
func (c *Client) SetSpace(ctx context.Context, change api.SpaceChange) (api.Space, error) {
	return value[api.Space](ctx, c, "PUT", "/v1/space", change)
}
