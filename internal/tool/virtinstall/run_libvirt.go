package virtinstall

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
	"github.com/lamina-vm/lamina/internal/vm/libvirt"
)

func (h *libvirtHost) libvirtConn() *libvirt.Conn { return h.conn }

func (h *libvirtHost) imageDir() string { return defaultPoolDir }

func (h *libvirtHost) diskUsers(context.Context, map[string][]string) error { return nil }

// check leaves it to libvirtd, which knows its QEMU.
func (h *libvirtHost) check(*guest, ...*domxml.Element) error { return nil }

// create starts the machine by the document of its first run, and defines it
// by that of all others.
func (h *libvirtHost) create(ctx context.Context, o making, u *undo) (instance, error) {
	begin := o.first
	if begin == nil {
		begin = o.final
	}
	if o.again {
		if err := h.idle(ctx, o.final.Get("name")); err != nil {
			return nil, err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	long, cancel := lingering(ctx)
	defer cancel()
	dom, err := h.conn.Create(long, document(begin), libvirt.StartOptions{AutoDestroy: o.ephemeral})
	if err != nil && long.Err() != nil {
		name := o.final.Get("name")
		u.add(func() error { // so that its disks are kept
			return fmt.Errorf("libvirt does not answer: domain %s may start yet; `virsh --connect %s destroy %s` ends it", name, h.uri(), name)
		})
	}
	if err != nil {
		return nil, plain(err)
	}
	u.add(func() error {
		ctx, cancel := undoContext()
		defer cancel()
		err := dom.Destroy(ctx, false)
		if errors.Is(err, libvirt.ErrNotFound) || errors.Is(err, libvirt.ErrInvalid) {
			return nil
		}
		return err
	})
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m := &libvirtMachine{host: h, dom: dom, twoPhases: o.first != nil}
	if o.transient {
		return m, nil
	}
	if o.reinstall {
		if m.dom, err = h.conn.LookupDomain(ctx, o.final.Get("name")); err != nil {
			return nil, plain(err)
		}
		return m, nil
	}
	defined, err := h.conn.Define(long, document(o.final), false)
	if err != nil {
		return nil, plain(err)
	}
	m.dom = defined
	u.add(func() error {
		ctx, cancel := undoContext()
		defer cancel()
		err := defined.Undefine(ctx, undefineOptions(o.final))
		if errors.Is(err, libvirt.ErrNotFound) {
			return nil
		}
		return err
	})
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if o.autostart {
		if err := defined.SetAutostart(ctx, true); err != nil {
			return nil, plain(err)
		}
	}
	return m, nil
}

// undefineOptions take a definition back with all that libvirt made for it. A
// file of UEFI variables that the document names may be a person's: it stays.
func undefineOptions(doc *domxml.Element) libvirt.UndefineOptions {
	own := strings.TrimSpace(doc.Get("os/nvram")) != "" || doc.Child("os").Child("nvram").Child("source") != nil
	return libvirt.UndefineOptions{NVRAM: !own, KeepNVRAM: own, ManagedSave: true}
}

// idle refuses a machine that runs: it would be taken for the one that is
// started, and ended if that fails.
func (h *libvirtHost) idle(ctx context.Context, name string) error {
	dom, err := h.conn.LookupDomain(ctx, name)
	if err != nil {
		return plain(err)
	}
	state, _, err := dom.State(ctx)
	if err == nil && state.Active() {
		err = fmt.Errorf("domain '%s' is running: shut it down before --reinstall", name)
	}
	return err
}

// libvirtMachine is a machine of libvirt's.
type libvirtMachine struct {
	host      *libvirtHost
	dom       *libvirt.Domain
	twoPhases bool
}

func (m *libvirtMachine) waitEnd(ctx context.Context) (ending, error) {
	reason, err := m.dom.WaitStopped(ctx)
	if errors.Is(err, libvirt.ErrNotFound) {
		return endedByGuest, nil // a transient one that has gone
	}
	if err != nil {
		return endedBadly, err
	}
	switch reason {
	case libvirt.StopShutdown:
		return endedByGuest, nil
	case libvirt.StopCrashed, libvirt.StopFailed:
		return endedBadly, nil
	}
	return endedByUser, nil
}

func (m *libvirtMachine) running(ctx context.Context) (bool, error) {
	state, _, err := m.dom.State(ctx)
	if errors.Is(err, libvirt.ErrNotFound) {
		return false, nil
	}
	return state.Active(), err
}

func (m *libvirtMachine) restart(ctx context.Context) error {
	if err := m.dom.Start(ctx, libvirt.StartOptions{}); err != nil {
		return plain(err)
	}
	return nil
}

func (m *libvirtMachine) console(ctx context.Context) (io.ReadWriteCloser, error) {
	return m.dom.OpenConsole(ctx, "", false)
}

func (m *libvirtMachine) follow(context.Context) error { return nil }

func (m *libvirtMachine) destroy(ctx context.Context) error { return m.dom.Destroy(ctx, false) }

func (m *libvirtMachine) startCommand() string {
	return fmt.Sprintf("virsh --connect %s start %s", m.host.uri(), m.dom.Name())
}
