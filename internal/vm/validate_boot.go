package vm

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

func (s Spec) validateBoot(f *findings) {
	b := s.Boot
	oneOf(f, "boot.firmware", b.Firmware, "", FirmwareBIOS, FirmwareEFI)
	oneOf(f, "boot.loaderType", b.LoaderType, "", "pflash", "rom")
	toggle(f, "boot.secureBoot", b.SecureBoot)
	toggle(f, "boot.enrolledKeys", b.EnrolledKeys)
	toggle(f, "boot.menu", b.Menu)
	toggle(f, "boot.serial", b.Serial)
	for field, path := range inOrder(map[string]string{"loader": b.Loader, "nvram": b.NVRAM, "nvramTemplate": b.NVRAMTemplate, "kernel": b.Kernel, "initrd": b.Initrd, "dtb": b.DTB}) {
		if path != "" {
			absolute(f, "boot."+field, path)
		}
	}
	for i, d := range b.Order {
		oneOf(f, fmt.Sprintf("boot.order[%d]", i), d, BootDisk, BootCDROM, BootNetwork, BootFloppy)
	}
	if b.SecureBoot == On {
		if b.Firmware != FirmwareEFI && b.Loader == "" {
			f.add("boot.secureBoot", "BIOS has no Secure Boot", "use firmware efi")
		}
		if s.Chipset() == MachinePC {
			f.add("boot.secureBoot", "Secure Boot needs SMM, which machine type pc does not have", "use q35")
		}
	}
	if b.Firmware != FirmwareEFI && b.Loader == "" && (b.NVRAM != "" || b.NVRAMTemplate != "") {
		f.add("boot.nvram", "BIOS keeps no variables", "use firmware efi")
	}
	if b.Kernel == "" && (b.Initrd != "" || b.Cmdline != "" || b.DTB != "") {
		f.add("boot.kernel", "an initrd, arguments or a device tree and no kernel", "name the kernel")
	}
	if b.DTB != "" {
		f.add("boot.dtb", "a PC takes no device tree", "leave it out")
	}
	if strings.ContainsRune(b.Cmdline, 0) {
		f.add("boot.cmdline", "holds a zero byte", "leave it out")
	}
	if b.MenuTimeout < 0 || b.MenuTimeout > 65535 {
		f.add("boot.menuTimeout", fmt.Sprintf("%d milliseconds", b.MenuTimeout), "use 0 to 65535")
	}
	if t := b.RebootTimeout; t != nil && (*t < -1 || *t > 65535) {
		f.add("boot.rebootTimeout", fmt.Sprintf("%d milliseconds", *t), "use -1 (never) to 65535")
	}
}

func (s Spec) validateFeatures(f *findings) {
	x, h := s.Features, s.Features.HyperV
	for field, t := range inOrder(map[string]Toggle{
		"acpi": x.ACPI, "apic": x.APIC, "pae": x.PAE, "smm": x.SMM, "pmu": x.PMU, "vmport": x.VMPort, "vmcoreinfo": x.VMCoreInfo,
		"kvmHidden": x.KVMHidden, "pvspinlock": x.PVSpinlock, "eoi": x.EOI, "suspendToMem": x.SuspendToMem, "suspendToDisk": x.SuspendToDisk,
		"hyperv.relaxed": h.Relaxed, "hyperv.vapic": h.VAPIC, "hyperv.spinlocks": h.Spinlocks, "hyperv.vpindex": h.VPIndex, "hyperv.runtime": h.Runtime,
		"hyperv.synic": h.SynIC, "hyperv.stimer": h.STimer, "hyperv.stimerDirect": h.STimerDirect, "hyperv.reset": h.Reset, "hyperv.frequencies": h.Frequencies,
		"hyperv.reenlightenment": h.Reenlightenment, "hyperv.tlbflush": h.TLBFlush, "hyperv.ipi": h.IPI, "hyperv.evmcs": h.EVMCS, "hyperv.avic": h.AVIC,
	}) {
		toggle(f, "features."+field, t)
	}
	oneOf(f, "features.ioapic", x.IOAPIC, "", "kvm", "qemu")
	if h.SpinlockRetries != 0 && h.SpinlockRetries < 4095 {
		f.add("features.hyperv.spinlockRetries", fmt.Sprintf("%d", h.SpinlockRetries), "use 4095 or more")
	}
	if len(h.VendorID) > 12 || strings.ContainsAny(h.VendorID, ",\x00") {
		f.add("features.hyperv.vendorId", fmt.Sprintf("%q", h.VendorID), "use up to 12 characters without a comma")
	}
	s.validateClock(f)
	s.validateSysInfo(f)
}

func (s Spec) validateClock(f *findings) {
	c := s.Clock
	oneOf(f, "clock.offset", c.Offset, "", "utc", "localtime", "timezone", "variable")
	oneOf(f, "clock.basis", c.Basis, "", "utc", "localtime")
	if c.Offset == "timezone" && c.Timezone == "" {
		f.add("clock.timezone", "offset timezone without one", "name it, as in Europe/Berlin")
	}
	for i, t := range c.Timers {
		field := fmt.Sprintf("clock.timers[%d]", i)
		oneOf(f, field+".name", t.Name, "rtc", "pit", "hpet", "kvmclock", "hypervclock", "tsc", "platform")
		oneOf(f, field+".tickPolicy", t.TickPolicy, "", "delay", "catchup", "merge", "discard")
		oneOf(f, field+".track", t.Track, "", "guest", "wall", "boot")
		toggle(f, field+".present", t.Present)
		atLeastZero(f, field+".frequency", t.Frequency)
		if policies, ok := timerPolicies[t.Name]; ok && t.TickPolicy != "" && !slices.Contains(policies, t.TickPolicy) {
			f.add(field+".tickPolicy", fmt.Sprintf("QEMU's %s cannot %s", t.Name, t.TickPolicy), "use "+strings.Join(policies, " or "))
		}
	}
}

// timerPolicies are what QEMU's timers can do about ticks that a guest missed.
var timerPolicies = map[string][]string{
	"rtc": {"delay", "catchup"}, "pit": {"delay", "discard"}, "hpet": {"delay"},
}

// SysInfo's entries, by libvirt's names.
var (
	biosEntries      = []string{"vendor", "version", "date", "release"}
	systemEntries    = []string{"manufacturer", "product", "version", "serial", "uuid", "sku", "family"}
	baseBoardEntries = []string{"manufacturer", "product", "version", "serial", "asset", "location"}
	chassisEntries   = []string{"manufacturer", "version", "serial", "asset", "sku"}
)

var validFWCfg = pattern(`^opt/[A-Za-z0-9._/-]+$`)

func (s Spec) validateSysInfo(f *findings) {
	entries := func(field string, have map[string]string, known []string) {
		for k, v := range inOrder(have) {
			if !slices.Contains(known, k) {
				f.add(field, fmt.Sprintf("no entry is called %q", k), "use one of "+strings.Join(known, ", "))
			}
			if strings.ContainsRune(v, 0) {
				f.add(field, k+" holds a zero byte", "leave it out")
			}
		}
	}
	entries("sysinfo.bios", s.SysInfo.BIOS, biosEntries)
	entries("sysinfo.system", s.SysInfo.System, systemEntries)
	entries("sysinfo.chassis", s.SysInfo.Chassis, chassisEntries)
	for i, b := range s.SysInfo.BaseBoard {
		entries(fmt.Sprintf("sysinfo.baseBoard[%d]", i), b, baseBoardEntries)
	}
	if u := s.SysInfo.System["uuid"]; u != "" && u != s.UUID {
		f.add("sysinfo.system", "its uuid "+u+" is not the machine's", "leave it out")
	}
	for i, w := range s.SysInfo.FWCfg {
		field := fmt.Sprintf("sysinfo.fwcfg[%d]", i)
		if !validFWCfg().MatchString(w.Name) || len(w.Name) > 55 {
			f.add(field+".name", fmt.Sprintf("%q", w.Name), "use opt/, a name of your own, '/' and more: up to 55 letters")
		}
		if (w.Value == "") == (w.File == "") {
			f.add(field, "it has to have a value or a file", "give it one of the two")
		}
		if w.File != "" {
			absolute(f, field+".file", w.File)
		}
	}
}

func (s Spec) validateEvents(f *findings) {
	oneOf(f, "onPoweroff", s.OnPoweroff, "", ActionDestroy, ActionRestart, ActionPreserve)
	oneOf(f, "onReboot", s.OnReboot, "", ActionDestroy, ActionRestart, ActionPreserve)
	oneOf(f, "onCrash", s.OnCrash, "", ActionDestroy, ActionRestart, ActionPreserve)
	if s.OnPoweroff == ActionRestart {
		f.add("onPoweroff", "QEMU cannot start a machine again that powers off", "use destroy, and start it again; or libvirt")
	}
	if s.NoReboot && s.OnReboot != "" && s.OnReboot != ActionDestroy {
		f.add("onReboot", string(s.OnReboot)+" and noReboot do not go together", "leave one out")
	}
}

// validateBootOrder finds places in the boot order that are taken twice.
func (s Spec) validateBootOrder(f *findings) {
	seen := map[int]string{}
	check := func(field string, n int) {
		switch other, taken := seen[n]; {
		case n < 0:
			f.add(field+".bootIndex", fmt.Sprintf("%d", n), "use 1 for the first, 0 for none")
		case n == 0:
		case taken:
			f.add(field+".bootIndex", fmt.Sprintf("%d is also that of %s", n, other), "give each its own place in the boot order")
		default:
			seen[n] = field
		}
	}
	for i, d := range s.Disks {
		check(fmt.Sprintf("disks[%d]", i), d.BootIndex)
	}
	for i, n := range s.NICs {
		check(fmt.Sprintf("nics[%d]", i), n.BootIndex)
	}
	for i, h := range s.HostDevices {
		check(fmt.Sprintf("hostDevices[%d]", i), h.BootIndex)
	}
}

// matches reports whether a text that may be left out has a pattern's form.
func matches(p func() *regexp.Regexp, s string) bool { return s == "" || p().MatchString(s) }
