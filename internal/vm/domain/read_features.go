package domain

import (
	"github.com/lamina-vm/lamina/internal/vm"
)

// present is on for an element that is there, whatever it is called; off and
// on where its state says so.
func (n *node) present() vm.Toggle {
	if n == nil {
		return ""
	}
	if t := n.toggle("state"); t != "" {
		return t
	}
	return vm.On
}

func (r *reader) features(n *node) {
	f := n.one("features")
	into := &r.spec.Features
	// QEMU has ACPI unless told otherwise; libvirt tells it so where the
	// document has no such element.
	into.ACPI = vm.Off
	if t := f.one("acpi").present(); t != "" {
		into.ACPI = t
	}
	apic := f.one("apic")
	into.APIC = apic.present()
	into.EOI = apic.toggle("eoi")
	into.PAE = f.one("pae").present()
	into.PMU = f.one("pmu").present()
	into.VMPort = f.one("vmport").present()
	into.VMCoreInfo = f.one("vmcoreinfo").present()
	into.PVSpinlock = f.one("pvspinlock").present()
	smm := f.one("smm")
	into.SMM = smm.present()
	smm.one("tseg").refuse("the size of the TSEG is QEMU's", useLibvirt)
	into.IOAPIC = f.one("ioapic").enum("driver", "kvm", "qemu")
	if k := f.one("kvm"); k != nil {
		into.KVMHidden = k.one("hidden").present()
		for _, name := range []string{"hint-dedicated", "poll-control", "pv-ipi", "dirty-ring"} {
			if c := k.one(name); c.present() == vm.On {
				c.refuse("this feature of KVM is not switched", useLibvirt)
			}
		}
	}
	r.hyperv(f.one("hyperv"))
}

func (r *reader) hyperv(n *node) {
	if n == nil {
		return
	}
	h := &r.spec.Features.HyperV
	h.Passthrough = n.enum("mode", "custom", "passthrough") == "passthrough"
	for _, x := range []struct {
		name string
		into *vm.Toggle
	}{
		{"relaxed", &h.Relaxed}, {"vapic", &h.VAPIC}, {"spinlocks", &h.Spinlocks}, {"vpindex", &h.VPIndex}, {"runtime", &h.Runtime},
		{"synic", &h.SynIC}, {"stimer", &h.STimer}, {"reset", &h.Reset}, {"frequencies", &h.Frequencies},
		{"reenlightenment", &h.Reenlightenment}, {"tlbflush", &h.TLBFlush}, {"ipi", &h.IPI}, {"evmcs", &h.EVMCS}, {"avic", &h.AVIC},
	} {
		*x.into = n.one(x.name).present()
	}
	h.SpinlockRetries = n.one("spinlocks").number("retries")
	h.STimerDirect = n.one("stimer").one("direct").present()
	if v := n.one("vendor_id"); v.present() == vm.On {
		h.VendorID = v.attr("value")
	} else {
		v.ignore("@value")
	}
}

func (r *reader) clock(n *node) {
	if n == nil {
		return
	}
	c := &r.spec.Clock
	c.Offset = n.enum("offset", "utc", "localtime", "timezone", "variable")
	c.Timezone = n.attr("timezone")
	c.Basis = n.enum("basis", "utc", "localtime")
	if n.e.Attr("adjustment") == "reset" {
		n.attr("adjustment") // no change of the clock is kept here anyway
	} else {
		c.Adjustment = n.size("adjustment")
	}
	n.plain("start")
	for _, t := range n.all("timer") {
		timer := vm.Timer{
			Name:       t.enum("name", "rtc", "pit", "hpet", "kvmclock", "hypervclock", "tsc"),
			TickPolicy: t.enum("tickpolicy", "delay", "catchup", "merge", "discard"),
			Present:    t.toggle("present"),
			Track:      t.enum("track", "guest", "wall"),
			Frequency:  t.size("frequency"),
		}
		t.plain("mode", "auto")
		t.one("catchup").refuse("the speed at which ticks are made up for is QEMU's", useLibvirt)
		if timer.Name != "" {
			c.Timers = append(c.Timers, timer)
		}
	}
}
