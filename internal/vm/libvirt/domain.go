package libvirt

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// Domain is a handle of a domain, which may have gone since. It is safe for
// concurrent use.
type Domain struct {
	conn *Conn
	dom  golibvirt.Domain
}

// Name is the domain's name when the handle was made.
func (d *Domain) Name() string { return d.dom.Name }

// UUID is in its usual form, in lower case.
func (d *Domain) UUID() string { return formatUUID(d.dom.UUID) }

// ID is the number of the running domain when the handle was made, -1 where
// it did not run.
func (d *Domain) ID() int { return int(d.dom.ID) }

func formatUUID(u golibvirt.UUID) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

func parseUUID(s string) (golibvirt.UUID, error) {
	var u golibvirt.UUID
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(b) != len(u) {
		return u, fmt.Errorf("%q is not a UUID", s)
	}
	copy(u[:], b)
	return u, nil
}

// op names a call on the domain.
func (d *Domain) op(what string) string { return fmt.Sprintf("%s domain %q", what, d.dom.Name) }

func (d *Domain) do(ctx context.Context, what string, f func(*golibvirt.Libvirt) error) error {
	return d.conn.do(ctx, d.op(what), f)
}

// domain makes the handle of a call's result.
func (c *Conn) domain(dom golibvirt.Domain, err error) (*Domain, error) {
	if err != nil {
		return nil, err
	}
	return &Domain{c, dom}, nil
}

// LookupDomain finds a domain by its name: [ErrNotFound] where there is none.
func (c *Conn) LookupDomain(ctx context.Context, name string) (*Domain, error) {
	return c.domain(call(ctx, c, fmt.Sprintf("look up domain %q", name), func(l *golibvirt.Libvirt) (golibvirt.Domain, error) {
		return l.DomainLookupByName(name)
	}))
}

// LookupDomainByUUID finds a domain by its UUID.
func (c *Conn) LookupDomainByUUID(ctx context.Context, uuid string) (*Domain, error) {
	u, err := parseUUID(uuid)
	if err != nil {
		return nil, err
	}
	return c.domain(call(ctx, c, "look up domain "+uuid, func(l *golibvirt.Libvirt) (golibvirt.Domain, error) {
		return l.DomainLookupByUUID(u)
	}))
}

// LookupDomainByID finds a running domain by its number.
func (c *Conn) LookupDomainByID(ctx context.Context, id int) (*Domain, error) {
	return c.domain(call(ctx, c, fmt.Sprintf("look up domain %d", id), func(l *golibvirt.Libvirt) (golibvirt.Domain, error) {
		return l.DomainLookupByID(int32(id))
	}))
}

// Domains lists all domains, running or not, in libvirt's order.
func (c *Conn) Domains(ctx context.Context) ([]*Domain, error) {
	doms, err := call(ctx, c, "list domains", func(l *golibvirt.Libvirt) ([]golibvirt.Domain, error) {
		doms, _, err := l.ConnectListAllDomains(1, 0)
		return doms, err
	})
	if err != nil {
		return nil, err
	}
	all := make([]*Domain, len(doms))
	for i, dom := range doms {
		all[i] = &Domain{c, dom}
	}
	return all, nil
}

// Define makes a domain persistent, or replaces the definition of the one with
// the same name and UUID. A name that another UUID has is [ErrExists].
// validate has libvirt check the document against its schema.
func (c *Conn) Define(ctx context.Context, xml string, validate bool) (*Domain, error) {
	var flags golibvirt.DomainDefineFlags
	if validate {
		flags = golibvirt.DomainDefineValidate
	}
	d, err := call(ctx, c, "define domain", func(l *golibvirt.Libvirt) (golibvirt.Domain, error) {
		return l.DomainDefineXMLFlags(xml, flags)
	})
	return c.domain(d, nameTaken(err))
}

// nameTaken marks the error of a name or UUID that is taken, for which libvirt
// has no error number of its own in most versions.
func nameTaken(err error) error {
	if e, ok := err.(*Error); ok && e.kind == nil && e.Code == uint32(golibvirt.ErrOperationFailed) && strings.Contains(e.Text, "already exists") {
		e.kind = ErrExists
	}
	return err
}

// StartOptions are those of [Conn.Create] and [Domain.Start].
type StartOptions struct {
	Paused      bool // the guest does not execute before Resume
	AutoDestroy bool // the domain ends with the connection
	ForceBoot   bool // a managed save image is thrown away
	ResetNVRAM  bool // the firmware's variables begin anew
	Validate    bool // of Create: the document is checked against the schema
}

func (o StartOptions) flags() golibvirt.DomainCreateFlags {
	var f golibvirt.DomainCreateFlags
	for _, x := range []struct {
		on   bool
		flag golibvirt.DomainCreateFlags
	}{
		{o.Paused, golibvirt.DomainStartPaused},
		{o.AutoDestroy, golibvirt.DomainStartAutodestroy},
		{o.ForceBoot, golibvirt.DomainStartForceBoot},
		{o.ResetNVRAM, golibvirt.DomainStartResetNvram},
		{o.Validate, golibvirt.DomainStartValidate},
	} {
		if x.on {
			f |= x.flag
		}
	}
	return f
}

// Create starts a domain, which is transient (gone when it stops) unless it
// is defined.
func (c *Conn) Create(ctx context.Context, xml string, o StartOptions) (*Domain, error) {
	d, err := call(ctx, c, "create domain", func(l *golibvirt.Libvirt) (golibvirt.Domain, error) {
		return l.DomainCreateXML(xml, o.flags())
	})
	return c.domain(d, nameTaken(err))
}

// Start starts a defined domain; [ErrInvalid] where it runs.
func (d *Domain) Start(ctx context.Context, o StartOptions) error {
	return d.do(ctx, "start", func(l *golibvirt.Libvirt) error {
		_, err := l.DomainCreateWithFlags(d.dom, uint32(o.flags()))
		return err
	})
}

// Shutdown presses the power button and returns at once.
func (d *Domain) Shutdown(ctx context.Context) error {
	return d.do(ctx, "shut down", func(l *golibvirt.Libvirt) error { return l.DomainShutdownFlags(d.dom, 0) })
}

// Reboot asks the guest to reboot and returns at once.
func (d *Domain) Reboot(ctx context.Context) error {
	return d.do(ctx, "reboot", func(l *golibvirt.Libvirt) error { return l.DomainReboot(d.dom, 0) })
}

// Reset presses the reset button.
func (d *Domain) Reset(ctx context.Context) error {
	return d.do(ctx, "reset", func(l *golibvirt.Libvirt) error { return l.DomainReset(d.dom, 0) })
}

// Destroy ends the domain's process at once. With graceful libvirt gives up
// ([ErrInvalid] or a busy error) rather than kill a QEMU that does not end.
func (d *Domain) Destroy(ctx context.Context, graceful bool) error {
	var flags golibvirt.DomainDestroyFlagsValues
	if graceful {
		flags = golibvirt.DomainDestroyGraceful
	}
	return d.do(ctx, "destroy", func(l *golibvirt.Libvirt) error { return l.DomainDestroyFlags(d.dom, flags) })
}

// Suspend stops the guest's CPUs; Resume lets them go on.
func (d *Domain) Suspend(ctx context.Context) error {
	return d.do(ctx, "suspend", func(l *golibvirt.Libvirt) error { return l.DomainSuspend(d.dom) })
}

// Resume lets a suspended guest go on.
func (d *Domain) Resume(ctx context.Context) error {
	return d.do(ctx, "resume", func(l *golibvirt.Libvirt) error { return l.DomainResume(d.dom) })
}

// UndefineOptions say what goes with a definition. Where a domain has what is
// neither removed nor kept, libvirt refuses with [ErrInvalid].
type UndefineOptions struct {
	ManagedSave       bool // remove the managed save image
	SnapshotsMetadata bool // forget the snapshots (what they hold in the disks stays)
	NVRAM, KeepNVRAM  bool // remove or keep the firmware's variables
	TPM, KeepTPM      bool // remove or keep the TPM's state (libvirt 8.9 or later)
	// Storage are volumes to delete after the definition is gone, by path. They
	// are looked up before, so that nothing goes where one is not in a pool.
	Storage []string
}

func (o UndefineOptions) flags() golibvirt.DomainUndefineFlagsValues {
	var f golibvirt.DomainUndefineFlagsValues
	for _, x := range []struct {
		on   bool
		flag golibvirt.DomainUndefineFlagsValues
	}{
		{o.ManagedSave, golibvirt.DomainUndefineManagedSave},
		{o.SnapshotsMetadata, golibvirt.DomainUndefineSnapshotsMetadata | golibvirt.DomainUndefineCheckpointsMetadata},
		{o.NVRAM, golibvirt.DomainUndefineNvram},
		{o.KeepNVRAM, golibvirt.DomainUndefineKeepNvram},
		{o.TPM, golibvirt.DomainUndefineTpm},
		{o.KeepTPM, golibvirt.DomainUndefineKeepTpm},
	} {
		if x.on {
			f |= x.flag
		}
	}
	return f
}

// Undefine forgets the definition. A domain that runs goes on as a transient
// one.
func (d *Domain) Undefine(ctx context.Context, o UndefineOptions) error {
	volumes := make([]*Volume, len(o.Storage))
	for i, path := range o.Storage {
		v, err := d.conn.LookupVolume(ctx, path)
		if err != nil {
			return fmt.Errorf("undefine domain %q with its storage: %w", d.dom.Name, err)
		}
		volumes[i] = v
	}
	if err := d.do(ctx, "undefine", func(l *golibvirt.Libvirt) error { return l.DomainUndefineFlags(d.dom, o.flags()) }); err != nil {
		return err
	}
	for _, v := range volumes {
		if err := v.Delete(ctx); err != nil {
			return err
		}
	}
	return nil
}

// XMLOptions are those of [Domain.XML].
type XMLOptions struct {
	Inactive bool // what the next start takes, also while the domain runs
	Secure   bool // with passwords
}

// XML returns the domain's document.
func (d *Domain) XML(ctx context.Context, o XMLOptions) (string, error) {
	var flags golibvirt.DomainXMLFlags
	if o.Inactive {
		flags |= golibvirt.DomainXMLInactive
	}
	if o.Secure {
		flags |= golibvirt.DomainXMLSecure
	}
	return call(ctx, d.conn, d.op("document of"), func(l *golibvirt.Libvirt) (string, error) { return l.DomainGetXMLDesc(d.dom, flags) })
}

// Autostart says whether the domain starts with the host.
func (d *Domain) Autostart(ctx context.Context) (bool, error) {
	n, err := call(ctx, d.conn, d.op("autostart of"), func(l *golibvirt.Libvirt) (int32, error) { return l.DomainGetAutostart(d.dom) })
	return n != 0, err
}

// SetAutostart makes the domain start with the host, or not.
func (d *Domain) SetAutostart(ctx context.Context, on bool) error {
	return d.do(ctx, "set autostart of", func(l *golibvirt.Libvirt) error { return l.DomainSetAutostart(d.dom, bit(on)) })
}

func bit(on bool) int32 {
	if on {
		return 1
	}
	return 0
}

// Persistent says whether the domain is defined.
func (d *Domain) Persistent(ctx context.Context) (bool, error) {
	n, err := call(ctx, d.conn, d.op("persistence of"), func(l *golibvirt.Libvirt) (int32, error) { return l.DomainIsPersistent(d.dom) })
	return n != 0, err
}

// HasManagedSave says whether the next start restores a saved state.
func (d *Domain) HasManagedSave(ctx context.Context) (bool, error) {
	n, err := call(ctx, d.conn, d.op("managed save of"), func(l *golibvirt.Libvirt) (int32, error) { return l.DomainHasManagedSaveImage(d.dom, 0) })
	return n != 0, err
}
