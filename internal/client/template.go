package client

import (
	"context"
	"net/url"

	"github.com/lamina-vm/lamina/internal/api"
)

// AllTemplates lists the templates with the layers that were frozen of machines and
// those of warm units.
func (c *Client) AllTemplates(ctx context.Context) ([]api.Template, error) {
	return get[[]api.Template](ctx, c, "/v1/templates?all=1")
}

// TagTemplate gives a template one more name.
func (c *Client) TagTemplate(ctx context.Context, ref string, req api.TagRequest) (api.Template, error) {
	return post[api.Template](ctx, c, template(ref)+"/tag", req)
}

// ExportTemplate writes a template as one image of the host.
func (c *Client) ExportTemplate(ctx context.Context, ref string, req api.ExportRequest, on EventFunc) error {
	_, err := c.events(ctx, "POST", template(ref)+"/export", req, on)
	return err
}

// TemplateFrom makes a template of a stopped machine.
func (c *Client) TemplateFrom(ctx context.Context, req api.TemplateFromRequest, on EventFunc) (api.Template, error) {
	return stream[api.Template](ctx, c, "POST", "/v1/template-from", req, on)
}

// Lineage is the tree of all layers and machines, parents before what lies over
// them.
func (c *Client) Lineage(ctx context.Context) ([]api.LineageNode, error) {
	return get[[]api.LineageNode](ctx, c, "/v1/lineage")
}

// CloneMachine makes machines of a machine, which becomes a frozen layer.
func (c *Client) CloneMachine(ctx context.Context, name string, req api.CloneMachineRequest, on EventFunc) ([]api.Machine, error) {
	return stream[[]api.Machine](ctx, c, "POST", machine(name)+"/clone", req, on)
}

// Commit makes the layer of a stopped machine a template.
func (c *Client) Commit(ctx context.Context, name string, req api.CommitRequest, on EventFunc) (api.Template, error) {
	return stream[api.Template](ctx, c, "POST", machine(name)+"/commit", req, on)
}

// Flatten gives a machine a disk without layers below.
func (c *Client) Flatten(ctx context.Context, name string, on EventFunc) (api.Machine, error) {
	return stream[api.Machine](ctx, c, "POST", machine(name)+"/flatten", api.FlattenRequest{}, on)
}

// Rebase puts a stopped machine over another template.
func (c *Client) Rebase(ctx context.Context, name string, req api.RebaseRequest, on EventFunc) (api.Machine, error) {
	return stream[api.Machine](ctx, c, "POST", machine(name)+"/rebase", req, on)
}

func template(ref string) string { return "/v1/templates/" + url.PathEscape(ref) }
