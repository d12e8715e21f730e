package daemon

import (
	"context"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/guest/inspect"
)

// lookInto finds out what is in a template's image and records it. What cannot be read
// says so itself; an error is logged, and the template is as good without.
func (d *Daemon) lookInto(ctx context.Context, t api.Template) api.Template {
	paths, err := d.store.Chain(ctx, t.Digest)
	if err == nil {
		var info api.ImageInfo
		if info, err = d.opts.Inspect(ctx, paths[0], "qcow2"); err == nil {
			err = d.store.SetInfo(ctx, t.Digest, info)
			t.Info = info
		}
	}
	if err != nil && ctx.Err() == nil {
		d.log.Warn("what is in an image is not known", "template", t.Name, "digest", t.Digest, "error", err)
	}
	return t
}

// inspectFile is Options.Inspect by default.
func inspectFile(ctx context.Context, path, format string) (api.ImageInfo, error) {
	return inspect.File(ctx, path, format)
}
