package libvirt

import (
	"context"
	"fmt"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// Snapshot is a handle of a domain's snapshot.
type Snapshot struct {
	domain *Domain
	snap   golibvirt.DomainSnapshot
}

// Name is the snapshot's name.
func (s *Snapshot) Name() string { return s.snap.Name }

func (s *Snapshot) op(what string) string {
	return fmt.Sprintf("%s snapshot %q of domain %q", what, s.snap.Name, s.domain.dom.Name)
}

// Snapshots lists the domain's snapshots, parents before their children.
func (d *Domain) Snapshots(ctx context.Context) ([]*Snapshot, error) {
	snaps, err := call(ctx, d.conn, d.op("list snapshots of"), func(l *golibvirt.Libvirt) ([]golibvirt.DomainSnapshot, error) {
		snaps, _, err := l.DomainListAllSnapshots(d.dom, 1, uint32(golibvirt.DomainSnapshotListTopological))
		return snaps, err
	})
	if err != nil {
		return nil, err
	}
	all := make([]*Snapshot, len(snaps))
	for i, s := range snaps {
		all[i] = &Snapshot{d, s}
	}
	return all, nil
}

// LookupSnapshot finds a snapshot by its name.
func (d *Domain) LookupSnapshot(ctx context.Context, name string) (*Snapshot, error) {
	s, err := call(ctx, d.conn, fmt.Sprintf("look up snapshot %q of domain %q", name, d.dom.Name), func(l *golibvirt.Libvirt) (golibvirt.DomainSnapshot, error) {
		return l.DomainSnapshotLookupByName(d.dom, name, 0)
	})
	if err != nil {
		return nil, err
	}
	return &Snapshot{d, s}, nil
}

// SnapshotOptions are those of [Domain.CreateSnapshot].
type SnapshotOptions struct {
	DiskOnly bool // external overlays; no memory
	Atomic   bool // all disks or none
}

// CreateSnapshot takes a snapshot as a <domainsnapshot> document says.
func (d *Domain) CreateSnapshot(ctx context.Context, xml string, o SnapshotOptions) (*Snapshot, error) {
	var flags golibvirt.DomainSnapshotCreateFlags
	if o.DiskOnly {
		flags |= golibvirt.DomainSnapshotCreateDiskOnly
	}
	if o.Atomic {
		flags |= golibvirt.DomainSnapshotCreateAtomic
	}
	s, err := call(ctx, d.conn, d.op("take a snapshot of"), func(l *golibvirt.Libvirt) (golibvirt.DomainSnapshot, error) {
		return l.DomainSnapshotCreateXML(d.dom, xml, uint32(flags))
	})
	if err != nil {
		return nil, nameTaken(err)
	}
	return &Snapshot{d, s}, nil
}

// XML returns the snapshot's document.
func (s *Snapshot) XML(ctx context.Context) (string, error) {
	return call(ctx, s.domain.conn, s.op("document of"), func(l *golibvirt.Libvirt) (string, error) {
		return l.DomainSnapshotGetXMLDesc(s.snap, 0)
	})
}

// Revert puts the domain back to the snapshot. With force, also where QEMU
// has to be started anew for it.
func (s *Snapshot) Revert(ctx context.Context, force bool) error {
	var flags golibvirt.DomainSnapshotRevertFlags
	if force {
		flags = golibvirt.DomainSnapshotRevertForce
	}
	return s.domain.conn.do(ctx, s.op("revert to"), func(l *golibvirt.Libvirt) error {
		return l.DomainRevertToSnapshot(s.snap, uint32(flags))
	})
}

// Delete removes the snapshot, with children also all that were taken after it.
func (s *Snapshot) Delete(ctx context.Context, children bool) error {
	var flags golibvirt.DomainSnapshotDeleteFlags
	if children {
		flags = golibvirt.DomainSnapshotDeleteChildren
	}
	return s.domain.conn.do(ctx, s.op("delete"), func(l *golibvirt.Libvirt) error { return l.DomainSnapshotDelete(s.snap, flags) })
}
