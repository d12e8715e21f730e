package domain

import (
	"fmt"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm"
)

// domain reads the root element.
func (r *reader) domain(n *node) {
	n.ignore(ofDomain...)
	s := &r.spec
	switch n.enum("type", "kvm", "qemu") {
	case "kvm":
		// Whether KVM works on this host is found out, not taken at the word
		// of /dev/kvm.
		s.Accel = vm.AccelAuto
	case "qemu":
		s.Accel = vm.AccelTCG
	}
	s.Name = n.childWords("name")
	s.UUID = strings.ToLower(n.childWords("uuid"))
	if g := n.one("genid"); g != nil {
		if s.GenerationID = strings.ToLower(g.words()); s.GenerationID == "" {
			s.GenerationID = vm.NewUUID() // as libvirt makes one up
		}
	}
	s.Title = n.childWords("title")
	s.Description = n.childWords("description")
	r.memory(n)
	r.cpus(n)
	r.boot(n)
	r.features(n)
	r.clock(n.one("clock"))
	r.sysinfo(n)
	r.events(n)
	if c := n.one("iothreads"); c != nil {
		s.IOThreads = int(c.numberText())
	}
	r.ioThreadIDs(n.one("iothreadids"))
	r.commandline(n.one("qemu:commandline"))
	r.refuseDomain(n)
	r.devices(n.one("devices"))
}

// refuseDomain names what takes libvirt's daemon, or another hypervisor.
func (r *reader) refuseDomain(n *node) {
	for _, x := range []struct{ name, why string }{
		{"memtune", "memory limits are kept by control groups, which libvirt's daemon makes"},
		{"numatune", "the host's NUMA placement is libvirt's work"},
		{"blkiotune", "disk weights are kept by control groups, which libvirt's daemon makes (a disk's own iotune works)"},
		{"cputune", "CPU pinning and weights are kept by control groups, which libvirt's daemon makes"},
		{"resource", "control groups are made by libvirt's daemon"},
		{"vcpus", "single virtual CPUs are not plugged"},
		{"idmap", "this is for containers"},
		{"bootloader", "this is for Xen"},
		{"bootloader_args", "this is for Xen"},
		{"perf", "performance events are libvirt's"},
		{"keywrap", "this is for s390"},
		{"launchSecurity", "memory encryption is not set up"},
		{"on_lockfailure", "lock managers are libvirt's"},
		{"qemu:capabilities", "QEMU's capabilities are what they are"},
		{"qemu:override", "properties of devices are not overridden"},
		{"throttlegroups", "throttle groups are named by the disks' iotune"},
	} {
		for _, c := range n.all(x.name) {
			c.refuse(x.why, useLibvirt)
		}
	}
	for _, c := range n.all("seclabel") {
		if c.e.Attr("type") == "none" {
			c.whole = true // which is how it is here
		} else {
			c.refuse("security labels are put by libvirt's daemon", useLibvirt)
		}
	}
}

func (r *reader) memory(n *node) {
	s := &r.spec
	memory := n.one("memory")
	memory.plain("dumpCore", "off")
	s.Memory = memory.bytes()
	if current := n.one("currentMemory"); current != nil {
		if c := current.bytes(); c != 0 && c < s.Memory {
			r.note(current.path, "the guest has all of its memory from the start", useLibvirt+" to begin with a balloon")
		}
	}
	if m := n.one("maxMemory"); m != nil {
		s.MemoryConfig.Max = m.bytes()
		s.MemoryConfig.Slots = m.number("slots")
	}
	b := n.one("memoryBacking")
	if b == nil {
		return
	}
	m := &s.MemoryConfig
	if h := b.one("hugepages"); h != nil {
		m.HugePages = true
		for i, p := range h.all("page") {
			if i > 0 || p.e.Attr("nodeset") != "" {
				p.refuse("one size of huge pages is used for all memory", "keep one page element without nodeset, or "+useLibvirt)
				continue
			}
			m.PageSize = p.scaled(p.size("size"), p.attr("unit"))
		}
	}
	m.NoMerge = b.one("nosharepages") != nil
	m.Locked = b.one("locked") != nil
	m.Discard = b.one("discard") != nil
	m.Source = b.one("source").enum("type", "anonymous", "memfd", "file")
	m.Shared = b.one("access").enum("mode", "shared", "private") == "shared"
	if a := b.one("allocation"); a != nil {
		m.Prealloc = a.enum("mode", "immediate", "ondemand") == "immediate"
		a.plain("threads")
	}
}

func (r *reader) cpus(n *node) {
	s := &r.spec
	if v := n.one("vcpu"); v != nil {
		all := int(min(v.numberText(), 1<<20))
		s.CPUs = all
		if now := v.number("current"); now != 0 && now != all {
			s.CPUs, s.Processor.MaxCPUs = now, all
		}
		v.plain("placement", "static")
		if set := v.attr("cpuset"); set != "" {
			r.problem(v.at("cpuset"), "the host's CPUs are not chosen", "run it under taskset, or "+useLibvirt)
		}
	}
	c := n.one("cpu")
	if c == nil {
		return
	}
	p := &s.Processor
	p.Mode = vm.CPUMode(c.enum("mode", string(vm.CPUHostPassthrough), string(vm.CPUHostModel), string(vm.CPUMaximum), string(vm.CPUCustom)))
	p.Match = c.enum("match", "minimum", "exact", "strict")
	p.Check = c.enum("check", "none", "partial", "full")
	p.Migratable = c.toggle("migratable")
	if m := c.one("model"); m != nil {
		p.Model = m.words()
		m.ignore("@fallback") // what libvirt takes where the host lacks the model
		m.plain("vendor_id")
	}
	p.Vendor = c.childWords("vendor")
	for _, f := range c.all("feature") {
		p.Features = append(p.Features, vm.CPUFeature{
			Name:   f.attr("name"),
			Policy: vm.FeaturePolicy(f.enum("policy", "force", "require", "optional", "disable", "forbid")),
		})
	}
	if t := c.one("topology"); t != nil {
		p.Topology = vm.Topology{Sockets: t.number("sockets"), Dies: t.number("dies"), Cores: t.number("cores"), Threads: t.number("threads")}
		t.plain("clusters", "1")
	}
	if cache := c.one("cache"); cache != nil {
		p.Cache = cache.enum("mode", "passthrough", "emulate", "disable")
		cache.plain("level", "3")
	}
	if a := c.one("maxphysaddr"); a != nil {
		if a.enum("mode", "passthrough", "emulate") == "passthrough" {
			p.PhysBits = "passthrough"
			a.plain("limit")
		} else {
			p.PhysBits = a.attr("bits")
		}
	}
	r.numa(c.one("numa"))
}

func (r *reader) numa(n *node) {
	for i, c := range n.all("cell") {
		cell := vm.NUMACell{ID: i, CPUs: c.attr("cpus")}
		if c.e.Attr("id") != "" {
			cell.ID = c.number("id")
		}
		cell.Memory = c.scaled(c.size("memory"), c.attr("unit"))
		switch c.enum("memAccess", "shared", "private") {
		case "shared":
			r.spec.MemoryConfig.Shared = true
		}
		c.plain("discard", "no")
		c.one("distances").refuse("distances of NUMA nodes are not told to the guest", useLibvirt)
		r.spec.Processor.NUMA = append(r.spec.Processor.NUMA, cell)
	}
}

func (r *reader) boot(n *node) {
	os := n.one("os")
	if os == nil {
		return
	}
	b := &r.spec.Boot
	t := os.one("type")
	if v := t.words(); t != nil && v != "hvm" {
		r.problem(t.path, fmt.Sprintf("%s is not a machine of its own", quote(v)), "use hvm")
	}
	t.plain("arch", "x86_64")
	r.spec.Machine = t.attr("machine")
	b.Firmware = vm.FirmwareType(os.enum("firmware", "bios", "efi"))
	if f := os.one("firmware"); f != nil {
		for _, x := range f.all("feature") {
			switch x.enum("name", "secure-boot", "enrolled-keys") {
			case "secure-boot":
				b.SecureBoot = x.toggle("enabled")
			case "enrolled-keys":
				b.EnrolledKeys = x.toggle("enabled")
			}
		}
	}
	r.loader(os)
	b.Kernel, b.Initrd, b.Cmdline, b.DTB = os.childWords("kernel"), os.childWords("initrd"), os.childWords("cmdline"), os.childWords("dtb")
	for _, d := range os.all("boot") {
		if dev := d.enum("dev", "hd", "cdrom", "network", "fd"); dev != "" {
			b.Order = append(b.Order, vm.BootDevice(dev))
		}
	}
	if m := os.one("bootmenu"); m != nil {
		b.Menu = m.toggle("enable")
		b.MenuTimeout = m.number("timeout")
	}
	if x := os.one("bios"); x != nil {
		b.Serial = x.toggle("useserial")
		if x.e.Attr("rebootTimeout") != "" {
			ms := x.number("rebootTimeout")
			b.RebootTimeout = &ms
		}
	}
	if m := os.one("smbios"); m != nil && m.enum("mode", "sysinfo", "emulate", "host") == "host" {
		r.problem(m.at("mode"), "the host's own data are not handed to the guest", "use sysinfo, or "+useLibvirt)
	}
	for _, name := range []string{"init", "initarg", "initenv", "initdir", "inituser", "initgroup"} {
		for _, c := range os.all(name) {
			c.refuse("this is for containers", "leave it out")
		}
	}
	os.one("acpi").refuse("ACPI tables are not added", useLibvirt)
}

func (r *reader) loader(os *node) {
	b := &r.spec.Boot
	if l := os.one("loader"); l != nil {
		b.Loader = l.words()
		b.LoaderType = l.enum("type", "pflash", "rom")
		b.LoaderRW = l.toggle("readonly") == vm.Off
		if secure := l.toggle("secure"); secure != "" {
			b.SecureBoot = secure
		}
		l.plain("stateless", "no")
		l.plain("format", "raw")
		if b.Firmware == "" && b.LoaderType == "pflash" {
			b.Firmware = vm.FirmwareEFI
		}
	}
	if v := os.one("nvram"); v != nil {
		b.NVRAM = v.words()
		b.NVRAMTemplate = v.attr("template")
		v.plain("type", "file")
		v.plain("format", "raw")
		v.plain("templateFormat", "raw")
		if src := v.one("source"); src != nil && v.e.Attr("type") == "file" {
			b.NVRAM = src.attr("file")
		}
	}
}

func (r *reader) events(n *node) {
	e := &r.spec.Events
	action := func(name string) vm.Action {
		c := n.one(name)
		switch v := c.words(); v {
		case "", "destroy", "restart", "preserve":
			return vm.Action(v)
		default:
			r.problem(c.path, fmt.Sprintf("%s is not done", quote(v)), "use destroy, restart or preserve, or "+useLibvirt)
			return ""
		}
	}
	e.OnPoweroff, e.OnReboot, e.OnCrash = action("on_poweroff"), action("on_reboot"), action("on_crash")
	if pm := n.one("pm"); pm != nil {
		r.spec.Features.SuspendToMem = pm.one("suspend-to-mem").toggle("enabled")
		r.spec.Features.SuspendToDisk = pm.one("suspend-to-disk").toggle("enabled")
	}
}

// ioThreadIDs takes threads that are numbered from 1, as they are without it.
func (r *reader) ioThreadIDs(n *node) {
	all := n.all("iothread")
	for i, t := range all {
		if id := t.number("id"); id != i+1 {
			r.problem(t.at("id"), fmt.Sprintf("the I/O threads are numbered from 1, and this is the %d.", i+1), "number them so")
		}
	}
	r.spec.IOThreads = max(r.spec.IOThreads, len(all))
}

func (r *reader) sysinfo(n *node) {
	for _, c := range n.all("sysinfo") {
		s := &r.spec.SysInfo
		if c.enum("type", "smbios", "fwcfg") == "fwcfg" {
			for _, e := range c.all("entry") {
				s.FWCfg = append(s.FWCfg, vm.FWCfg{Name: e.attr("name"), File: e.attr("file"), Value: e.words()})
			}
			continue
		}
		s.BIOS = entries(c.one("bios"), s.BIOS)
		s.System = entries(c.one("system"), s.System)
		for _, b := range c.all("baseBoard") {
			s.BaseBoard = append(s.BaseBoard, entries(b, nil))
		}
		s.Chassis = entries(c.one("chassis"), s.Chassis)
		for _, e := range c.one("oemStrings").all("entry") {
			s.OEM = append(s.OEM, e.words())
		}
	}
}

func entries(n *node, into map[string]string) map[string]string {
	for _, e := range n.all("entry") {
		if into == nil {
			into = map[string]string{}
		}
		into[e.attr("name")] = e.words()
	}
	return into
}

func (r *reader) commandline(n *node) {
	q := &r.spec.QEMU
	for _, a := range n.all("qemu:arg") {
		q.Args = append(q.Args, a.attr("value"))
	}
	for _, e := range n.all("qemu:env") {
		if q.Env == nil {
			q.Env = map[string]string{}
		}
		q.Env[e.attr("name")] = e.attr("value")
	}
}
