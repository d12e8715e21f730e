package virtinstall

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
	"github.com/lamina-vm/lamina/internal/vm/osinfo"
)

// setDefaults completes the machine: what the guest OS wants of it, and what
// virt-install gives every machine. The steps' order matters, as later ones
// look at what earlier ones decided.
func (g *guest) setDefaults(ctx context.Context, _ *installation) error {
	if err := g.defaultName(ctx); err != nil {
		return err
	}
	if err := g.defaultIdentity(); err != nil {
		return err
	}
	if g.dom.Get("os/@firmware") == "" && g.wantsUEFI {
		if err := g.dom.Set("os/@firmware", "efi"); err != nil {
			return err
		}
	}
	caps, err := g.domainCaps(ctx)
	if err != nil {
		return err
	}
	want := osinfo.Defaults(g.os, g.request(caps))
	steps := []func(osinfo.Machine) error{
		g.defaultMachine, g.defaultSizes, g.defaultCPUs, g.defaultFirmware, g.defaultBoot,
	}
	for _, step := range steps {
		if err := step(want); err != nil {
			return err
		}
	}
	if err := g.defaultDevices(ctx, caps); err != nil {
		return err
	}
	want = osinfo.Defaults(g.os, g.request(caps)) // graphics and firmware are known now
	for _, step := range []func(osinfo.Machine) error{g.defaultFeatures, g.defaultClock, g.defaultPM} {
		if err := step(want); err != nil {
			return err
		}
	}
	return g.defaultCPU(caps)
}

// request is what is decided so far of what a guest OS's wishes depend on.
func (g *guest) request(caps domainCaps) osinfo.Request {
	r := osinfo.Request{Arch: g.arch(), Machine: g.machine(), UEFI: g.uefi()}
	if gr := g.devices("graphics"); len(gr) > 0 {
		r.Graphics = gr[0].Attr("type")
		for _, e := range gr {
			if e.Attr("type") == "spice" {
				r.Graphics = "spice"
				r.GL = r.GL || e.Get("gl/@enable") == "yes"
			}
		}
	}
	if strings.Contains(r.Machine, "q35") {
		r.Machine = "q35"
	} else if g.x86() && (strings.HasPrefix(r.Machine, "pc-i440fx") || r.Machine == "pc") {
		r.Machine = "pc"
	}
	if r.Graphics == "none" {
		r.Graphics = "sdl" // a screen that nobody sees; the machine without one has no such element
	}
	r.Host.NoQXL = !caps.has("devices/video", "modelType", "qxl")
	r.Host.NoVirtioGPU = !caps.has("devices/video", "modelType", "virtio")
	r.Host.NoTPM = !caps.has("devices/tpm", "backendModel", "emulator")
	r.Host.NoBochs = !caps.has("devices/video", "modelType", "bochs")
	return r
}

// defaultName names the machine after its OS, or vm1, with a number where the
// name is taken.
func (g *guest) defaultName(ctx context.Context) error {
	if name := g.dom.Get("name"); name != "" {
		return nil
	}
	base, from := "vm", 1
	if !g.generic() {
		base, from = g.os.ShortID, 0
	}
	for n := from; n < from+100000; n++ {
		name := base
		switch {
		case g.generic():
			name = base + strconv.Itoa(n)
		case n > 0:
			name = fmt.Sprintf("%s-%d", base, n+1)
		}
		d, err := g.host.domain(ctx, name)
		if err != nil {
			return err
		}
		if d == nil {
			g.dom.Need("name").Text = name
			g.say("Using default --name %s", name)
			return nil
		}
	}
	return fmt.Errorf("every name from %s on is taken: give the machine a --name", base)
}

// defaultIdentity gives the machine a UUID.
func (g *guest) defaultIdentity() error {
	if g.dom.Get("uuid") == "" {
		g.dom.Need("uuid").Text = newUUID()
	}
	return nil
}

func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// defaultMachine chooses the machine type.
func (g *guest) defaultMachine(want osinfo.Machine) error {
	if g.machine() != "" || g.container() {
		return nil
	}
	machine := want.Type
	if g.x86() && machine == "pc" && g.dcaps.machine() != "" {
		machine = g.dcaps.machine() // the version that the host takes for it
	}
	return g.dom.Set("os/type/@machine", machine)
}

// defaultSizes gives the machine the memory and virtual CPUs that its OS's
// vendor recommends.
func (g *guest) defaultSizes(want osinfo.Machine) error {
	kib := want.Memory >> 10
	if g.dom.Find("memory") == nil && g.dom.Find("currentMemory") == nil && kib > 0 {
		g.say("Using %s default --memory %d", g.os.ShortID, kib>>10)
		if err := g.dom.Set("memory", strconv.FormatInt(kib, 10)); err != nil {
			return err
		}
	}
	memory, current := g.dom.Get("memory"), g.dom.Get("currentMemory")
	var err error
	switch {
	case memory == "" && current != "":
		err = g.dom.Set("memory", current)
	case memory != "" && current == "":
		err = g.dom.Set("currentMemory", memory)
	}
	return err
}

// defaultCPUs makes the number of virtual CPUs and their topology agree.
func (g *guest) defaultCPUs(want osinfo.Machine) error {
	topology := g.dom.Find("cpu/topology")
	if n := g.dom.Get("vcpu"); n == "" || n == "0" {
		n := want.CPUs
		if topology != nil {
			n = 1
			for _, name := range []string{"sockets", "dies", "cores", "threads"} {
				if k, err := strconv.ParseInt(topology.Attr(name), 10, 32); err == nil && k > 0 {
					n *= k
				}
			}
		}
		if err := g.dom.Set("vcpu", strconv.FormatInt(max(n, 1), 10)); err != nil {
			return err
		}
	}
	if topology == nil {
		return nil
	}
	return completeTopology(topology, g.dom.Get("vcpu"))
}

// completeTopology fills in what a topology does not say: sockets take what
// the others leave.
func completeTopology(t *domxml.Element, vcpu string) error {
	all, err := strconv.ParseInt(vcpu, 10, 64)
	if err != nil {
		return err
	}
	get := func(name string) int64 {
		n, _ := strconv.ParseInt(t.Attr(name), 10, 64)
		return n
	}
	one := func(n int64) int64 { return max(n, 1) }
	sockets, dies, cores, threads := get("sockets"), get("dies"), get("cores"), get("threads")
	if dies == 0 {
		dies = 1
	}
	if sockets == 0 {
		if cores == 0 {
			sockets = 1
		} else {
			sockets = all / cores / one(threads) / dies
		}
	}
	if cores == 0 {
		if threads == 0 {
			cores = all / one(sockets) / dies
		} else {
			cores = all / one(sockets) / threads / dies
		}
	}
	if threads == 0 {
		threads = all / one(cores) / one(sockets) / dies
	}
	product := one(sockets) * dies * one(cores) * one(threads)
	if product != all {
		return fmt.Errorf("Total CPUs implied by topology (sockets=%d * dies=%d * cores=%d * threads=%d == %d) does not match vCPU count %d",
			sockets, dies, cores, threads, product, all)
	}
	t.Attrs = nil
	for _, a := range []struct {
		name string
		n    int64
	}{{"sockets", sockets}, {"dies", dies}, {"cores", cores}, {"threads", threads}} {
		t.SetAttr(a.name, strconv.FormatInt(a.n, 10))
	}
	return nil
}

// defaultFirmware asks for UEFI where the OS cannot do without.
func (g *guest) defaultFirmware(want osinfo.Machine) error {
	if want.UEFI && !g.uefi() && g.dom.Get("os/loader") == "" {
		return g.dom.Set("os/@firmware", "efi")
	}
	return nil
}

// defaultBoot boots from the disk where nothing else was said.
func (g *guest) defaultBoot(osinfo.Machine) error {
	o := g.dom.Child("os")
	if g.container() {
		if o.Child("init") == nil {
			return g.dom.Set("os/init", "/bin/sh")
		}
		return nil
	}
	if o.Child("boot") != nil || o.Child("kernel") != nil || o.Child("bootloader") != nil {
		return nil
	}
	for _, kind := range []string{"disk", "interface", "hostdev", "redirdev"} {
		for _, d := range g.devices(kind) {
			if order := d.Get("boot/@order"); order != "" && order != "0" {
				return nil
			}
		}
	}
	o.Add(domxml.New("boot", "dev", "hd"))
	return nil
}

// defaultFeatures turns on what every machine of today has.
func (g *guest) defaultFeatures(want osinfo.Machine) error {
	if !g.hvm() && g.dom.Get("os/type") != "xen" {
		return nil
	}
	var errs []error
	unless := func(names []string, path, value string) {
		for _, n := range names {
			if g.said["features/"+n] != "" {
				return
			}
		}
		if _, there := g.dom.Look("features/" + path); !there {
			errs = append(errs, g.dom.Set("features/"+path, value))
		}
	}
	if want.ACPI {
		unless([]string{"acpi"}, "acpi", "")
	}
	if want.APIC {
		unless([]string{"apic"}, "apic", "")
	}
	if want.HyperV && g.qemu() {
		unless([]string{"hyperv.relaxed.state", "hyperv_relaxed"}, "hyperv/relaxed/@state", "on")
		unless([]string{"hyperv.vapic.state", "hyperv_vapic"}, "hyperv/vapic/@state", "on")
		unless([]string{"hyperv.spinlocks.state", "hyperv_spinlocks"}, "hyperv/spinlocks/@state", "on")
		unless([]string{"hyperv.spinlocks.retries", "hyperv_spinlocks_retries"}, "hyperv/spinlocks/@retries", "8191")
	}
	if want.VMPortDisabled {
		unless([]string{"vmport.state", "vmport"}, "vmport/@state", "off")
	}
	if g.dom.Get("os/loader/@secure") == "yes" && g.x86() && g.uefi() {
		unless([]string{"smm.state", "smm"}, "smm/@state", "on")
	}
	if f := g.dom.Child("features"); f.Empty() && f != nil {
		g.dom.Drop(f)
	}
	return errors.Join(errs...)
}

// defaultClock sets the clock, and the timers unless some were given.
func (g *guest) defaultClock(want osinfo.Machine) error {
	clock := g.dom.Need("clock")
	if clock.Attr("offset") == "" {
		clock.SetAttr("offset", want.ClockOffset)
	}
	if len(clock.All("timer")) > 0 {
		return nil
	}
	for _, t := range want.Timers {
		e := domxml.New("timer", "name", t.Name)
		if t.TickPolicy != "" {
			e.SetAttr("tickpolicy", t.TickPolicy)
		}
		if t.Present != "" {
			e.SetAttr("present", t.Present)
		}
		clock.Add(e)
	}
	return nil
}

// defaultPM offers the guest no suspend, which loses it.
func (g *guest) defaultPM(want osinfo.Machine) error {
	if !want.SuspendOff || !g.qemu() {
		return nil
	}
	for _, path := range []string{"pm/suspend-to-mem/@enabled", "pm/suspend-to-disk/@enabled"} {
		if g.dom.Get(path) == "" {
			if err := g.dom.Set(path, "no"); err != nil {
				return err
			}
		}
	}
	return nil
}

// defaultCPU gives the machine the host's CPU, where it can have it.
func (g *guest) defaultCPU(caps domainCaps) error {
	cpu := g.dom.Child("cpu")
	if !cpu.Empty() || g.said[saidCPU] != "" {
		if cpu.Empty() && cpu != nil {
			g.dom.Drop(cpu)
		}
		return nil
	}
	if cpu != nil {
		g.dom.Drop(cpu)
	}
	if g.virtType() != "kvm" || g.arch() != g.caps.hostArch && !(g.arch() == "i686" && g.caps.hostArch == "x86_64") {
		return nil
	}
	for _, mode := range []string{cpuHostPassthrough, cpuHostModel} {
		if caps.mode(mode) {
			return g.dom.Set("cpu/@mode", mode)
		}
	}
	if model := g.caps.hostModel; model != "" && g.x86() {
		c := g.dom.Add(domxml.New("cpu", "mode", "custom", "match", "exact"))
		c.AddText("model", model)
	}
	return nil
}

// has reports whether the machine has a device of a kind that fits.
func (g *guest) has(kind string, fits func(*domxml.Element) bool) bool {
	return slices.ContainsFunc(g.devices(kind), fits)
}
