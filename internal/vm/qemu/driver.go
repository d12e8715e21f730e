// Package qemu runs machines with a QEMU binary and nothing else.
package qemu

import (
	"context"
	"fmt"

	"github.com/lamina-vm/lamina/internal/vm"
)

// Options are the choices of [New]. The zero value works.
type Options struct {
	// Binary is the QEMU program; "" looks for qemu-system-x86_64 in PATH,
	// then for qemu-kvm where Fedora's kin keep it.
	Binary string
	// CacheDir is the folder in which the driver remembers whether KVM
	// works on this host; "" remembers it for the life of the Driver only.
	CacheDir string
}

// Driver starts machines as QEMU processes. It is safe for concurrent use.
type Driver struct {
	opts Options
}

// New returns a driver.
func New(opts Options) *Driver { return &Driver{opts: opts} }

var _ vm.Driver = (*Driver)(nil)

// Start implements [vm.Driver].
func (d *Driver) Start(ctx context.Context, spec vm.Spec, dir string) (vm.Machine, error) {
	return nil, fmt.Errorf("start %s: %w", spec.Name, vm.ErrNotRunning)
}

// Adopt implements [vm.Driver].
func (d *Driver) Adopt(ctx context.Context, dir string) (vm.Machine, error) {
	return nil, fmt.Errorf("%s: %w", dir, vm.ErrNotRunning)
}
