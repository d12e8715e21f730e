package virtctl

import (
	"context"
	"strconv"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/vm/domxml"
	"github.com/lamina-vm/lamina/internal/vm/libvirt"
)

// Snapshots lists a domain's snapshots, parents before their children.
func (v *Machines) Snapshots(ctx context.Context, name string) ([]api.Snapshot, error) {
	d, err := v.find(ctx, name)
	if err != nil {
		return nil, err
	}
	list, err := d.Snapshots(ctx)
	if err != nil {
		return nil, refusal(err)
	}
	out := make([]api.Snapshot, 0, len(list))
	for _, s := range list {
		one, err := readSnapshot(ctx, s)
		if err != nil {
			return nil, refusal(err)
		}
		out = append(out, one)
	}
	return out, nil
}

func readSnapshot(ctx context.Context, s *libvirt.Snapshot) (api.Snapshot, error) {
	text, err := s.XML(ctx)
	if err != nil {
		return api.Snapshot{}, err
	}
	root, err := domxml.Parse([]byte(text))
	if err != nil {
		return api.Snapshot{}, err
	}
	out := api.Snapshot{Name: s.Name(), Parent: root.Get("./parent/name"), Description: root.Get("./description"), State: root.Get("./state")}
	if at, err := strconv.ParseInt(root.Get("./creationTime"), 10, 64); err == nil {
		out.CreatedAt = time.Unix(at, 0)
	}
	return out, nil
}

// CreateSnapshot takes a snapshot, with the memory of a running domain.
func (v *Machines) CreateSnapshot(ctx context.Context, name string, req api.SnapshotRequest) (api.Snapshot, error) {
	d, err := v.find(ctx, name)
	if err != nil {
		return api.Snapshot{}, err
	}
	root := domxml.New("domainsnapshot")
	if req.Name != "" {
		root.AddText("name", req.Name)
	}
	if req.Description != "" {
		root.AddText("description", req.Description)
	}
	s, err := d.CreateSnapshot(ctx, root.String(), libvirt.SnapshotOptions{DiskOnly: req.DiskOnly, Atomic: req.DiskOnly})
	if err != nil {
		return api.Snapshot{}, refusal(err)
	}
	one, err := readSnapshot(ctx, s)
	return one, refusal(err)
}

// RevertSnapshot puts a domain back to a snapshot.
func (v *Machines) RevertSnapshot(ctx context.Context, name, snapshot string, force bool) error {
	s, err := v.snapshot(ctx, name, snapshot)
	if err != nil {
		return err
	}
	return refusal(s.Revert(ctx, force))
}

// DeleteSnapshot removes a snapshot.
func (v *Machines) DeleteSnapshot(ctx context.Context, name, snapshot string, children bool) error {
	s, err := v.snapshot(ctx, name, snapshot)
	if err != nil {
		return err
	}
	return refusal(s.Delete(ctx, children))
}

func (v *Machines) snapshot(ctx context.Context, name, snapshot string) (*libvirt.Snapshot, error) {
	d, err := v.find(ctx, name)
	if err != nil {
		return nil, err
	}
	s, err := d.LookupSnapshot(ctx, snapshot)
	return s, refusal(err)
}

// Events calls on with what happens to any domain until ctx ends.
func (v *Machines) Events(ctx context.Context, on func(api.MachineEvent)) error {
	done, err := v.conn.Events(ctx, func(e libvirt.Event) {
		out := api.MachineEvent{Time: time.Now(), Machine: e.Name, Kind: string(e.Kind)}
		switch e.Kind {
		case libvirt.EventStopped:
			out.Reason = e.Reason.String()
		case libvirt.EventRemoved, libvirt.EventNotRemoved:
			out.Reason = e.Alias
		}
		on(out)
	})
	if err != nil {
		return refusal(err)
	}
	<-done
	if ctx.Err() != nil {
		return nil
	}
	return api.Errorf(api.CodeFailed, "the connection to %s has ended", v.conn.URI())
}
