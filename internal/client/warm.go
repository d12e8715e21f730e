package client

import (
	"context"
	"net/url"

	"github.com/lamina-vm/lamina/internal/api"
)

// WarmTemplate boots a template once and freezes it.
func (c *Client) WarmTemplate(ctx context.Context, ref string, req api.WarmRequest, on EventFunc) (api.WarmUnit, error) {
	return stream[api.WarmUnit](ctx, c, "POST", template(ref)+"/warm", req, on)
}

// WarmUnits lists the warm units of all templates, oldest first.
func (c *Client) WarmUnits(ctx context.Context) ([]api.WarmUnit, error) {
	return get[[]api.WarmUnit](ctx, c, "/v1/warm")
}

// RemoveWarm removes a warm unit. Machines that were made of it go on.
func (c *Client) RemoveWarm(ctx context.Context, id string) error {
	return c.call(ctx, "DELETE", "/v1/warm/"+url.PathEscape(id), nil)
}

// Fork makes running copies of a running machine.
func (c *Client) Fork(ctx context.Context, name string, req api.ForkRequest, on EventFunc) (api.ForkResult, error) {
	return stream[api.ForkResult](ctx, c, "POST", machine(name)+"/fork", req, on)
}
