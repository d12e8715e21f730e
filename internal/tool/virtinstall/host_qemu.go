package virtinstall

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"sync"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/client"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// plainHost is QEMU alone on this computer. Its documents are made of what the
// QEMU binary and the kernel say; neither is run for them, see emulator. It is
// safe for concurrent use.
type plainHost struct {
	find func() map[string]*emulator // by libvirt's name of the architecture
	kvm  func() bool
}

func newPlainHost() *plainHost {
	return &plainHost{find: sync.OnceValue(findEmulators), kvm: sync.OnceValue(kvmUsable)}
}

func (h *plainHost) uri() string  { return "" }
func (h *plainHost) close() error { return nil }

// guestArchs are libvirt's names of architectures, and what QEMU's program for
// each is called after.
var guestArchs = []struct{ arch, program string }{
	{"x86_64", "x86_64"}, {"i686", "i386"}, {"aarch64", "aarch64"}, {"armv7l", "arm"}, {"ppc64le", "ppc64"}, {"ppc64", "ppc64"},
	{"ppc", "ppc"}, {"s390x", "s390x"}, {"riscv64", "riscv64"}, {"riscv32", "riscv32"}, {"loongarch64", "loongarch64"},
	{"mips", "mips"}, {"mipsel", "mipsel"}, {"mips64", "mips64"}, {"mips64el", "mips64el"}, {"sparc", "sparc"}, {"sparc64", "sparc64"},
	{"alpha", "alpha"}, {"m68k", "m68k"}, {"sh4", "sh4"}, {"hppa", "hppa"}, {"microblaze", "microblaze"}, {"xtensa", "xtensa"},
}

// nativeArch is libvirt's name of this computer's architecture.
func nativeArch() string {
	switch runtime.GOARCH {
	case "amd64":
		return "x86_64"
	case "386":
		return "i686"
	case "arm64":
		return "aarch64"
	case "arm":
		return "armv7l"
	}
	return runtime.GOARCH // ppc64le, s390x, riscv64
}

// nativeElsewhere is where distributions keep the native QEMU outside PATH.
var nativeElsewhere = []string{"/usr/libexec/qemu-kvm", "/usr/bin/qemu-kvm"}

// findEmulators looks for QEMU's programs, and reads what they hold.
func findEmulators() map[string]*emulator {
	found := map[string]*emulator{}
	for _, a := range guestArchs {
		if path, err := exec.LookPath("qemu-system-" + a.program); err == nil {
			found[a.arch] = newEmulator(path)
		}
	}
	native := nativeArch()
	for _, path := range nativeElsewhere {
		if st, err := os.Stat(path); err == nil && found[native] == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			found[native] = newEmulator(path)
		}
	}
	if big := found["x86_64"]; big != nil {
		// The program for 64 bits runs guests of 32 as well, on the same boards;
		// that for 32 is a script on Debian.
		if small := found["i686"]; small == nil {
			found["i686"] = big
		} else if !small.binary() {
			found["i686"] = &emulator{path: small.path, read: big.read, machines: big.machines, aliases: big.aliases}
		}
	}
	return found
}

// kvmUsable reports whether this process may use the kernel's KVM.
func kvmUsable() bool {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	_ = f.Close()
	return true
}

// accelerates reports whether KVM runs guests of an architecture.
func (h *plainHost) accelerates(arch string) bool {
	native := nativeArch()
	return h.kvm() && (arch == native || native == "x86_64" && arch == "i686")
}

// capabilities lists what QEMU runs here, in the form of libvirt's document.
func (h *plainHost) capabilities(context.Context) (*domxml.Element, error) {
	found := h.find()
	if len(found) == 0 {
		return nil, errNoQEMU
	}
	doc := domxml.New("capabilities")
	doc.Need("host").Need("cpu").AddText("arch", nativeArch())
	for _, a := range guestArchs {
		e := found[a.arch]
		if e == nil {
			continue
		}
		guest := doc.Add(domxml.New("guest"))
		guest.AddText("os_type", "hvm")
		arch := guest.Add(domxml.New("arch", "name", a.arch))
		arch.AddText("emulator", e.path)
		for _, m := range e.machines() {
			arch.AddText("machine", m)
		}
		for alias, full := range e.aliases() {
			arch.AddText("machine", alias).SetAttr("canonical", full)
		}
		arch.Add(domxml.New("domain", "type", "qemu"))
		if h.accelerates(a.arch) {
			arch.Add(domxml.New("domain", "type", "kvm"))
		}
	}
	return doc, nil
}

// errNoQEMU names the remedy; vm/qemu says the same where a machine starts.
var errNoQEMU = errors.New("QEMU is not installed: install the package qemu-system-x86 (Debian, Ubuntu), qemu-system-x86-core (Fedora) or qemu-kvm (RHEL and its kin), or name a libvirtd with --connect")

// domain returns what is known of a machine of that name. A daemon that does
// not run is not started for it: what it would know is looked at again before
// a machine is made.
func (h *plainHost) domain(ctx context.Context, name string) (*domxml.Element, error) {
	at, err := home.Find()
	if err != nil {
		return nil, err
	}
	m, err := client.New(at).Machine(ctx, name)
	var refused *api.Error
	switch {
	case errors.Is(err, client.ErrNoDaemon), errors.As(err, &refused) && refused.Code == api.CodeNotFound:
		return nil, nil
	case err != nil:
		return nil, err
	}
	doc := domxml.New("domain", "type", "qemu")
	doc.AddText("name", m.Name)
	for _, d := range m.Spec.Disks {
		if d.Path != "" {
			doc.Need("devices").Add(domxml.New("disk", "type", "file")).Add(domxml.New("source", "file", d.Path))
		}
	}
	for _, n := range m.Spec.NICs {
		if n.MAC != "" {
			doc.Need("devices").Add(domxml.New("interface", "type", "user")).Add(domxml.New("mac", "address", n.MAC))
		}
	}
	return doc, nil
}

// network knows one network: QEMU's own, which is called "default" as the one
// that libvirt's users know.
func (h *plainHost) network(_ context.Context, name string) (*domxml.Element, error) {
	if name != "default" {
		return nil, nil
	}
	doc := domxml.New("network")
	doc.AddText("name", name)
	doc.Add(domxml.New("forward", "mode", "nat"))
	return doc, nil
}

// moduleDirs are where distributions keep the parts of QEMU that it loads.
func moduleDirs() []string {
	triple := map[string]string{"amd64": "x86_64-linux-gnu", "386": "i386-linux-gnu", "arm64": "aarch64-linux-gnu",
		"arm": "arm-linux-gnueabihf", "ppc64le": "powerpc64le-linux-gnu"}[runtime.GOARCH]
	if triple == "" {
		triple = runtime.GOARCH + "-linux-gnu"
	}
	return []string{"/usr/lib/" + triple + "/qemu", "/usr/lib64/qemu-kvm", "/usr/lib64/qemu", "/usr/lib/qemu"}
}
