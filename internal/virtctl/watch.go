package virtctl

import (
	"context"
	"errors"

	"github.com/lamina-vm/lamina/internal/vm/libvirt"
)

// watch is a subscription to one domain's events, on a connection of its own:
// libvirt gives each kind of event to a connection once, and several domains may
// be stopped at one time.
type watch struct {
	*libvirt.Watch
	conn *libvirt.Conn
}

func (v *Machines) watch(ctx context.Context, d *libvirt.Domain) (*watch, error) {
	own, err := libvirt.Connect(ctx, v.conn.URI())
	if err != nil {
		return nil, err
	}
	same, err := own.LookupDomainByUUID(ctx, d.UUID())
	if err != nil {
		return nil, errors.Join(err, own.Close())
	}
	w, err := same.Watch(ctx)
	if err != nil {
		return nil, errors.Join(err, own.Close())
	}
	return &watch{w, own}, nil
}

func (w *watch) end() {
	w.Close()
	_ = w.conn.Close() // nothing is under way on it
}
