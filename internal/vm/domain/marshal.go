package domain

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// Options are those of [Marshal].
type Options struct {
	// BlockDevice tells a host's block device from a file; nil takes all paths
	// below /dev for devices.
	BlockDevice func(path string) bool
}

// Marshal writes a spec, complete and valid, as a domain document. What only
// plain QEMU has (port forwards and the other choices of its user network, a
// passphrase in a file) is an error that names each, with the remedy, as an
// [*vm.InvalidError].
//
// Accelerator auto becomes kvm: who marshals knows the host, and sets
// [vm.AccelTCG] where it lacks KVM.
func Marshal(s vm.Spec, o Options) (*domxml.Element, error) {
	w := newWriter(s, o)
	root := w.domain()
	if len(w.problems) > 0 {
		return nil, &vm.InvalidError{Name: s.Name, Problems: w.problems}
	}
	return root, nil
}

type writer struct {
	spec     vm.Spec
	opts     Options
	problems []vm.Problem
}

func newWriter(s vm.Spec, o Options) *writer {
	if o.BlockDevice == nil {
		o.BlockDevice = func(path string) bool { return strings.HasPrefix(path, "/dev/") }
	}
	return &writer{spec: s, opts: o}
}

func (w *writer) problem(field, text, remedy string) {
	w.problems = append(w.problems, vm.Problem{Field: field, Text: text, Remedy: remedy})
}

// with returns an element with the attributes that have a value.
func with(name string, attrs ...string) *domxml.Element {
	e := &domxml.Element{Name: name}
	for i := 0; i+1 < len(attrs); i += 2 {
		if attrs[i+1] != "" {
			e.SetAttr(attrs[i], attrs[i+1])
		}
	}
	return e
}

// addIf adds a child unless it says nothing.
func addIf(parent, child *domxml.Element) {
	if !child.Empty() {
		parent.Add(child)
	}
}

// textIf adds a child with text unless that is empty.
func textIf(parent *domxml.Element, name, text string) {
	if text != "" {
		parent.AddText(name, text)
	}
}

// numIf is a number, "" for 0.
func numIf[T int | int64 | uint32](n T) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(int64(n), 10)
}

// yes is libvirt's other spelling of a toggle.
func yes(t vm.Toggle) string {
	switch t {
	case vm.On:
		return "yes"
	case vm.Off:
		return "no"
	}
	return ""
}

// sizeText writes an amount of memory in the largest unit without a rest.
func sizeText(bytes int64) (number, unit string) {
	if bytes%(1<<10) != 0 {
		return strconv.FormatInt(bytes, 10), "b"
	}
	return strconv.FormatInt(bytes>>10, 10), "KiB"
}

func amount(name string, bytes int64) *domxml.Element {
	n, unit := sizeText(bytes)
	e := with(name, "unit", unit)
	e.Text = n
	return e
}

// kib is an amount that libvirt counts in KiB, "" for 0.
func kib(bytes int64) string { return numIf(bytes >> 10) }

func (w *writer) domain() *domxml.Element {
	s := w.spec
	kind := "kvm"
	if s.Accel == vm.AccelTCG {
		kind = "qemu"
	}
	d := with("domain", "type", kind)
	textIf(d, "name", s.Name)
	textIf(d, "uuid", s.UUID)
	textIf(d, "genid", s.GenerationID)
	textIf(d, "title", s.Title)
	textIf(d, "description", s.Description)
	w.memory(d)
	w.cpuCount(d)
	if s.IOThreads > 0 {
		d.AddText("iothreads", strconv.Itoa(s.IOThreads))
	}
	w.sysinfo(d)
	w.boot(d)
	w.features(d)
	w.cpu(d)
	w.clock(d)
	w.events(d)
	w.devices(d.Add(with("devices")))
	w.qemu(d)
	return d
}

func (w *writer) memory(d *domxml.Element) {
	m := w.spec.MemoryConfig
	if m.Max > 0 {
		e := amount("maxMemory", m.Max)
		if m.Slots > 0 {
			e.SetAttr("slots", strconv.Itoa(m.Slots))
		}
		d.Add(e)
	}
	d.Add(amount("memory", w.spec.Memory))
	b := with("memoryBacking")
	if m.HugePages {
		h := b.Add(with("hugepages"))
		if m.PageSize > 0 {
			n, unit := sizeText(m.PageSize)
			h.Add(with("page", "size", n, "unit", unit))
		}
	}
	for _, x := range []struct {
		on   bool
		name string
	}{{m.NoMerge, "nosharepages"}, {m.Locked, "locked"}, {m.Discard, "discard"}} {
		if x.on {
			b.Add(with(x.name))
		}
	}
	source := m.Source
	if m.Shared {
		if source == "" {
			source = "memfd"
		}
		b.Add(with("access", "mode", "shared"))
	}
	addIf(b, with("source", "type", source))
	if m.Prealloc {
		b.Add(with("allocation", "mode", "immediate"))
	}
	if len(b.Children) > 0 {
		d.Add(b)
	}
}

func (w *writer) cpuCount(d *domxml.Element) {
	all := max(w.spec.CPUs, w.spec.Processor.MaxCPUs)
	e := d.AddText("vcpu", strconv.Itoa(all))
	if all > w.spec.CPUs {
		e.SetAttr("current", strconv.Itoa(w.spec.CPUs))
	}
}

// cpu writes the processor. Without a choice it is what plain QEMU has: the host's
// CPU, or under TCG, where there is none, all that it can emulate.
func (w *writer) cpu(d *domxml.Element) {
	s, p := w.spec, w.spec.Processor
	mode, model, features := p.Mode, p.Model, p.Features
	if mode == "" && model == "" {
		mode, model, features = cpuOf(s.CPU, features)
	}
	if mode == "" && model != "" {
		mode = vm.CPUCustom
	}
	if mode == vm.CPUHostPassthrough && s.Accel == vm.AccelTCG {
		mode = vm.CPUMaximum
	}
	match, check := p.Match, p.Check
	if mode == vm.CPUCustom && match == "" {
		match = "exact"
	}
	if mode == vm.CPUCustom && check == "" && s.Accel == vm.AccelTCG {
		check = "none" // TCG lacks some of most models
	}
	if mode != vm.CPUCustom {
		match = ""
	}
	migratable := string(p.Migratable)
	if mode != vm.CPUHostPassthrough && mode != vm.CPUMaximum {
		migratable = ""
	}
	c := with("cpu", "mode", string(mode), "match", match, "check", check, "migratable", migratable)
	if model != "" && mode == vm.CPUCustom {
		m := c.AddText("model", model)
		m.SetAttr("fallback", "forbid")
	}
	textIf(c, "vendor", p.Vendor)
	switch {
	case p.PhysBits == "passthrough":
		c.Add(with("maxphysaddr", "mode", "passthrough"))
	case p.PhysBits != "":
		c.Add(with("maxphysaddr", "mode", "emulate", "bits", p.PhysBits))
	}
	if t := p.Topology; t != (vm.Topology{}) {
		one := func(n int) string { return strconv.Itoa(max(n, 1)) }
		c.Add(with("topology", "sockets", one(t.Sockets), "dies", one(t.Dies), "cores", one(t.Cores), "threads", one(t.Threads)))
	}
	level := ""
	if p.Cache == "emulate" {
		level = "3"
	}
	if p.Cache != "" {
		c.Add(with("cache", "level", level, "mode", p.Cache))
	}
	for _, f := range features {
		policy := f.Policy
		if policy == "" {
			policy = vm.FeatureRequire
		}
		c.Add(with("feature", "policy", string(policy), "name", f.Name))
	}
	if len(p.NUMA) > 0 {
		n := c.Add(with("numa"))
		for _, cell := range p.NUMA {
			num, unit := sizeText(cell.Memory)
			n.Add(with("cell", "id", strconv.Itoa(cell.ID), "cpus", cell.CPUs, "memory", num, "unit", unit))
		}
	}
	addIf(d, c)
}

// cpuOf takes a model as QEMU's -cpu has it apart.
func cpuOf(cpu string, features []vm.CPUFeature) (vm.CPUMode, string, []vm.CPUFeature) {
	model, flags, _ := strings.Cut(cpu, ",")
	features = slices.Clone(features)
	for f := range strings.SplitSeq(flags, ",") {
		name, value, has := strings.Cut(f, "=")
		policy := vm.FeatureForce
		switch {
		case strings.HasPrefix(name, "-"), has && value == "off":
			policy = vm.FeatureDisable
		}
		if name = strings.TrimLeft(name, "+-"); name != "" {
			features = append(features, vm.CPUFeature{Name: name, Policy: policy})
		}
	}
	switch model {
	case "", "host":
		return vm.CPUHostPassthrough, "", features
	case "max":
		return vm.CPUMaximum, "", features
	}
	return vm.CPUCustom, model, features
}

func (w *writer) boot(d *domxml.Element) {
	b := w.spec.Boot
	os := d.Add(with("os", "firmware", string(b.Firmware)))
	if b.Loader != "" {
		os.DelAttr("firmware") // which libvirt takes for "find one"
	}
	t := os.AddText("type", "hvm")
	t.SetAttr("arch", "x86_64")
	if w.spec.Machine != "" {
		t.SetAttr("machine", w.spec.Machine)
	}
	if b.Loader == "" && b.Firmware == vm.FirmwareEFI && (b.SecureBoot != "" || b.EnrolledKeys != "") {
		f := os.Add(with("firmware"))
		if b.SecureBoot != "" {
			f.Add(with("feature", "enabled", yes(b.SecureBoot), "name", "secure-boot"))
		}
		if b.EnrolledKeys != "" {
			f.Add(with("feature", "enabled", yes(b.EnrolledKeys), "name", "enrolled-keys"))
		}
	}
	if b.Loader != "" {
		readonly := "yes"
		if b.LoaderRW {
			readonly = "no"
		}
		kind := b.LoaderType
		if kind == "" {
			kind = "pflash"
		}
		if kind == "rom" {
			readonly = ""
		}
		l := with("loader", "readonly", readonly, "secure", yes(b.SecureBoot), "type", kind)
		l.Text = b.Loader
		os.Add(l)
	}
	if b.NVRAM != "" || b.NVRAMTemplate != "" {
		v := with("nvram", "template", b.NVRAMTemplate)
		v.Text = b.NVRAM
		os.Add(v)
	}
	textIf(os, "kernel", b.Kernel)
	textIf(os, "initrd", b.Initrd)
	textIf(os, "cmdline", b.Cmdline)
	textIf(os, "dtb", b.DTB)
	if !w.ordered() {
		for _, dev := range b.Order {
			os.Add(with("boot", "dev", string(dev)))
		}
	}
	if b.Menu != "" {
		os.Add(with("bootmenu", "enable", yes(b.Menu), "timeout", numIf(b.MenuTimeout)))
	}
	bios := with("bios", "useserial", yes(b.Serial))
	if b.RebootTimeout != nil {
		bios.SetAttr("rebootTimeout", strconv.Itoa(*b.RebootTimeout))
	}
	addIf(os, bios)
	if w.hasSMBIOS() {
		os.Add(with("smbios", "mode", "sysinfo"))
	}
}

// ordered says whether a device has a place in the boot order, with which
// libvirt takes no list of kinds.
func (w *writer) ordered() bool {
	s := w.spec
	return slices.ContainsFunc(s.Disks, func(d vm.Disk) bool { return d.BootIndex != 0 }) ||
		slices.ContainsFunc(s.NICs, func(n vm.NIC) bool { return n.BootIndex != 0 }) ||
		slices.ContainsFunc(s.HostDevices, func(h vm.HostDevice) bool { return h.BootIndex != 0 })
}

func (w *writer) events(d *domxml.Element) {
	e, f := w.spec.Events, w.spec.Features
	if w.spec.NoReboot {
		e.OnReboot = vm.ActionDestroy
	}
	textIf(d, "on_poweroff", string(e.OnPoweroff))
	textIf(d, "on_reboot", string(e.OnReboot))
	onCrash := e.OnCrash
	if onCrash == "" {
		onCrash = vm.ActionPreserve // plain QEMU's default; libvirt's is destroy
	}
	d.AddText("on_crash", string(onCrash))
	pm := with("pm")
	if f.SuspendToMem != "" {
		pm.Add(with("suspend-to-mem", "enabled", yes(f.SuspendToMem)))
	}
	if f.SuspendToDisk != "" {
		pm.Add(with("suspend-to-disk", "enabled", yes(f.SuspendToDisk)))
	}
	addIf(d, pm)
}

func (w *writer) hasSMBIOS() bool {
	s := w.spec.SysInfo
	return len(s.BIOS)+len(s.System)+len(s.BaseBoard)+len(s.Chassis)+len(s.OEM) > 0
}

func (w *writer) sysinfo(d *domxml.Element) {
	s := w.spec.SysInfo
	if w.hasSMBIOS() {
		e := d.Add(with("sysinfo", "type", "smbios"))
		entriesOf(e, "bios", s.BIOS)
		entriesOf(e, "system", s.System)
		for _, b := range s.BaseBoard {
			entriesOf(e, "baseBoard", b)
		}
		entriesOf(e, "chassis", s.Chassis)
		if len(s.OEM) > 0 {
			o := e.Add(with("oemStrings"))
			for _, text := range s.OEM {
				o.AddText("entry", text)
			}
		}
	}
	if len(s.FWCfg) > 0 {
		e := d.Add(with("sysinfo", "type", "fwcfg"))
		for _, f := range s.FWCfg {
			x := with("entry", "name", f.Name, "file", f.File)
			x.Text = f.Value
			e.Add(x)
		}
	}
}

func entriesOf(parent *domxml.Element, name string, m map[string]string) {
	if len(m) == 0 {
		return
	}
	e := parent.Add(with(name))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		e.AddText("entry", m[k]).SetAttr("name", k)
	}
}

func (w *writer) clock(d *domxml.Element) {
	c := w.spec.Clock
	offset := c.Offset
	if offset == "" {
		offset = "utc"
	}
	e := d.Add(with("clock", "offset", offset))
	if offset == "timezone" {
		e.SetAttr("timezone", c.Timezone)
	}
	if offset == "variable" {
		e.SetAttr("adjustment", strconv.FormatInt(c.Adjustment, 10))
		if c.Basis != "" {
			e.SetAttr("basis", c.Basis)
		}
	}
	for _, t := range c.Timers {
		e.Add(with("timer", "name", t.Name, "tickpolicy", t.TickPolicy, "track", t.Track, "present", yes(t.Present), "frequency", numIf(t.Frequency)))
	}
}

func (w *writer) features(d *domxml.Element) {
	f := w.spec.Features
	e := d.Add(with("features"))
	if f.ACPI != vm.Off {
		e.Add(with("acpi"))
	}
	if f.APIC != vm.Off {
		e.Add(with("apic", "eoi", string(f.EOI)))
	}
	if f.PAE == vm.On {
		e.Add(with("pae"))
	}
	w.hyperv(e)
	if f.KVMHidden != "" {
		e.Add(with("kvm")).Add(with("hidden", "state", string(f.KVMHidden)))
	}
	for _, x := range []struct {
		name  string
		state vm.Toggle
	}{{"pvspinlock", f.PVSpinlock}, {"pmu", f.PMU}, {"vmport", vmport(f.VMPort)}, {"smm", f.SMM}, {"vmcoreinfo", f.VMCoreInfo}} {
		if x.state != "" {
			e.Add(with(x.name, "state", string(x.state)))
		}
	}
	addIf(e, with("ioapic", "driver", f.IOAPIC))
}

// vmport is off unless it is asked for, as with plain QEMU.
func vmport(t vm.Toggle) vm.Toggle {
	if t == "" {
		return vm.Off
	}
	return t
}

func (w *writer) hyperv(parent *domxml.Element) {
	h := w.spec.Features.HyperV
	if h == (vm.HyperV{}) {
		return
	}
	mode := ""
	if h.Passthrough {
		mode = "passthrough"
	}
	e := parent.Add(with("hyperv", "mode", mode))
	for _, x := range []struct {
		name  string
		state vm.Toggle
	}{
		{"relaxed", h.Relaxed}, {"vapic", h.VAPIC}, {"spinlocks", h.Spinlocks}, {"vpindex", h.VPIndex}, {"runtime", h.Runtime},
		{"synic", h.SynIC}, {"stimer", h.STimer}, {"reset", h.Reset}, {"vendor_id", ""}, {"frequencies", h.Frequencies},
		{"reenlightenment", h.Reenlightenment}, {"tlbflush", h.TLBFlush}, {"ipi", h.IPI}, {"evmcs", h.EVMCS}, {"avic", h.AVIC},
	} {
		if x.name == "vendor_id" && h.VendorID != "" {
			e.Add(with("vendor_id", "state", "on", "value", h.VendorID))
		}
		if x.state == "" {
			continue
		}
		c := e.Add(with(x.name, "state", string(x.state)))
		switch {
		case x.name == "spinlocks" && x.state == vm.On:
			c.SetAttr("retries", numOr(h.SpinlockRetries, 8191))
		case x.name == "stimer" && h.STimerDirect != "":
			c.Add(with("direct", "state", string(h.STimerDirect)))
		}
	}
}

func numOr(n, otherwise int) string {
	if n == 0 {
		n = otherwise
	}
	return strconv.Itoa(n)
}

func (w *writer) qemu(d *domxml.Element) {
	q := w.spec.QEMU
	if len(q.Args)+len(q.Env) == 0 {
		return
	}
	d.SetAttr("xmlns:qemu", "http://libvirt.org/schemas/domain/qemu/1.0")
	e := d.Add(with("qemu:commandline"))
	for _, a := range q.Args {
		e.Add(domxml.New("qemu:arg", "value", a))
	}
	for _, k := range slices.Sorted(maps.Keys(q.Env)) {
		e.Add(domxml.New("qemu:env", "name", k, "value", q.Env[k]))
	}
}

// field is the name of a spec's field in a problem.
func field(name string, i int, sub string) string { return fmt.Sprintf("%s[%d].%s", name, i, sub) }
