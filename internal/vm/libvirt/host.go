package libvirt

import (
	"context"
	"fmt"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// Version is a version of libvirt or of QEMU.
type Version struct{ Major, Minor, Micro int }

// String is the version as 9.0.0.
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// AtLeast says whether v is major.minor or later.
func (v Version) AtLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

func version(n uint64) Version {
	return Version{int(n / 1000000), int(n / 1000 % 1000), int(n % 1000)}
}

// Version returns the daemon's version.
func (c *Conn) Version(ctx context.Context) (Version, error) {
	n, err := call(ctx, c, "version of libvirt", (*golibvirt.Libvirt).ConnectGetLibVersion)
	return version(n), err
}

// HypervisorVersion returns the version of the QEMU that the daemon runs.
func (c *Conn) HypervisorVersion(ctx context.Context) (Version, error) {
	n, err := call(ctx, c, "version of QEMU", (*golibvirt.Libvirt).ConnectGetVersion)
	return version(n), err
}

// Hostname returns the name of the daemon's host.
func (c *Conn) Hostname(ctx context.Context) (string, error) {
	return call(ctx, c, "host name", (*golibvirt.Libvirt).ConnectGetHostname)
}

// Capabilities returns the host's capabilities document.
func (c *Conn) Capabilities(ctx context.Context) (string, error) {
	return call(ctx, c, "capabilities", (*golibvirt.Libvirt).ConnectGetCapabilities)
}

// DomainCapabilitiesQuery says of what kind of domain the capabilities are
// asked; "" is libvirt's default.
type DomainCapabilitiesQuery struct {
	Emulator string // path of a QEMU
	Arch     string // "x86_64"
	Machine  string // "q35"
	Type     string // "kvm" or "qemu"
}

// DomainCapabilities returns the capabilities document of a kind of domain.
func (c *Conn) DomainCapabilities(ctx context.Context, q DomainCapabilitiesQuery) (string, error) {
	return call(ctx, c, "domain capabilities", func(l *golibvirt.Libvirt) (string, error) {
		return l.ConnectGetDomainCapabilities(opt(q.Emulator), opt(q.Arch), opt(q.Machine), opt(q.Type), 0)
	})
}

// BaselineCPU returns a <cpu> document that spells out which features the
// model of the given one has under the hypervisor of the query.
func (c *Conn) BaselineCPU(ctx context.Context, cpu string, q DomainCapabilitiesQuery) (string, error) {
	return call(ctx, c, "features of a CPU model", func(l *golibvirt.Libvirt) (string, error) {
		return l.ConnectBaselineHypervisorCPU(opt(q.Emulator), opt(q.Arch), opt(q.Machine), opt(q.Type), []string{cpu},
			uint32(golibvirt.ConnectBaselineCPUExpandFeatures))
	})
}

// opt is an optional string of the protocol.
func opt(s string) golibvirt.OptString {
	if s == "" {
		return nil
	}
	return golibvirt.OptString{s}
}
