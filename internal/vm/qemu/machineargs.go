package qemu

import (
	"fmt"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm"
)

// machineArgs are the board, its processors and its memory.
func (c config) machineArgs() []string {
	s := c.spec
	args := []string{
		"-name", escape(s.Name),
		"-uuid", s.UUID,
		"-nodefaults",
		"-no-user-config",
		"-machine", c.machineArg(),
		"-accel", accelArg(c.accel),
		"-cpu", c.cpu(),
		"-smp", smpArg(s),
	}
	return append(args, c.memoryArgs()...)
}

// machineArg is the board and what it is told.
func (c config) machineArg() string {
	s, x := c.spec, c.spec.Features
	p := []string{"vmport", "off", "dump-guest-core", "off"}
	if x.VMPort != "" {
		p[1] = string(x.VMPort)
	}
	p = append(p, "acpi", offOnly(x.ACPI), "smm", c.smm())
	switch {
	case c.accel != vm.AccelKVM: // whose interrupt controllers are in user space anyway
	case x.IOAPIC == "qemu":
		p = append(p, "kernel-irqchip", "split")
	case x.IOAPIC == "kvm":
		p = append(p, "kernel-irqchip", "on")
	}
	for _, t := range s.Clock.Timers {
		if t.Name == "hpet" || t.Name == "pit" {
			p = append(p, t.Name, string(t.Present))
		}
	}
	if s.Boot.Serial == vm.On {
		p = append(p, "graphics", "off")
	}
	if (c.needsBackend() || c.thaw != nil) && len(s.Processor.NUMA) == 0 {
		p = append(p, "memory-backend", c.ramBlock())
	}
	if s.MemoryConfig.NoMerge {
		p = append(p, "mem-merge", "off")
	}
	if c.firmware.flash() {
		p = append(p, "pflash0", codeNode, "pflash1", c.firmware.varsNode())
	}
	return device(s.Machine, p...)
}

// smm: Secure Boot keeps its variables in memory that only SMM can write.
func (c config) smm() string {
	if c.firmware.SMM {
		return "on"
	}
	return string(c.spec.Features.SMM)
}

// offOnly is a property whose default is on.
func offOnly(t vm.Toggle) string {
	if t == vm.Off {
		return "off"
	}
	return ""
}

// featureArgs are settings of devices that the board brings with it.
func (c config) featureArgs() []string {
	var args []string
	global := func(driver, property, value string) {
		args = append(args, "-global", fmt.Sprintf("%s.%s=%s", driver, property, value))
	}
	pm := map[string]string{vm.MachinePC: "PIIX4_PM", vm.MachineQ35: "ICH9-LPC"}[c.spec.Chipset()]
	for _, x := range []struct {
		property string
		t        vm.Toggle
	}{{"disable_s3", c.spec.Features.SuspendToMem}, {"disable_s4", c.spec.Features.SuspendToDisk}} {
		if x.t != "" {
			global(pm, x.property, map[vm.Toggle]string{vm.On: "0", vm.Off: "1"}[x.t])
		}
	}
	if c.spec.Features.VMCoreInfo == vm.On {
		args = append(args, "-device", "vmcoreinfo")
	}
	if c.firmware.SMM && c.firmware.flash() {
		args = append(args, "-global", "driver=cfi.pflash01,property=secure,value=on")
	}
	return args
}

// accelArg: several virtual CPUs under TCG each get a host thread.
func accelArg(a vm.Accel) string {
	if a == vm.AccelTCG {
		return fmt.Sprintf("tcg,thread=multi,tb-size=%d", tcgBuffer)
	}
	return string(a)
}

// list joins key=value pairs, leaving out those with an empty value.
func list(pairs ...string) string { return strings.TrimPrefix(device("", pairs...), ",") }
