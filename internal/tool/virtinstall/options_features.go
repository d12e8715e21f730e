package virtinstall

func featuresOption() option {
	return option{
		flag:    "features",
		before:  featuresBefore,
		element: "features",
		none:    true,
		subs: func() []sub {
			return []sub{
				{name: "acpi", path: "acpi", kind: bare},
				{name: "apic", path: "apic", kind: bare},
				{name: "pae", path: "pae", kind: bare},
				{name: "privnet", path: "privnet", kind: bare},
				{name: "hap", path: "hap", kind: bare},
				{name: "viridian", path: "viridian", kind: bare},
				{name: "apic.eoi", aliases: []string{"eoi"}, path: "apic/@eoi", kind: onOff},
				{name: "pmu.state", aliases: []string{"pmu"}, path: "pmu/@state", kind: onOff},
				{name: "hyperv.reset.state", aliases: []string{"hyperv_reset"}, path: "hyperv/reset/@state", kind: onOff},
				{name: "hyperv.vapic.state", aliases: []string{"hyperv_vapic"}, path: "hyperv/vapic/@state", kind: onOff},
				{name: "hyperv.relaxed.state", aliases: []string{"hyperv_relaxed"}, path: "hyperv/relaxed/@state", kind: onOff},
				{name: "hyperv.spinlocks.state", aliases: []string{"hyperv_spinlocks"}, path: "hyperv/spinlocks/@state", kind: onOff},
				{name: "hyperv.spinlocks.retries", aliases: []string{"hyperv_spinlocks_retries"}, path: "hyperv/spinlocks/@retries", kind: number},
				{name: "hyperv.synic.state", aliases: []string{"hyperv_synic"}, path: "hyperv/synic/@state", kind: onOff},
				{name: "vmport.state", aliases: []string{"vmport"}, path: "vmport/@state", kind: onOff},
				{name: "kvm.hidden.state", aliases: []string{"kvm_hidden"}, path: "kvm/hidden/@state", kind: onOff},
				{name: "kvm.hint-dedicated.state", path: "kvm/hint-dedicated/@state", kind: onOff},
				{name: "kvm.poll-control.state", path: "kvm/poll-control/@state", kind: onOff},
				{name: "pvspinlock.state", path: "pvspinlock/@state", kind: onOff},
				{name: "gic.version", aliases: []string{"gic_version"}, path: "gic/@version"},
				{name: "smm.state", aliases: []string{"smm"}, path: "smm/@state", kind: onOff},
				{name: "vmcoreinfo.state", aliases: []string{"vmcoreinfo"}, path: "vmcoreinfo/@state", kind: onOff},
				{name: "ioapic.driver", path: "ioapic/@driver"},
			}
		},
	}
}

func clockOption() option {
	return option{
		flag:    "clock",
		element: "clock",
		none:    true,
		subs: func() []sub {
			return []sub{
				{name: "pit_tickpolicy", set: setTimer},
				{name: "rtc_tickpolicy", set: setTimer},
				{name: "platform_present", kind: yesNo, set: setTimer},
				{name: "pit_present", kind: yesNo, set: setTimer},
				{name: "rtc_present", kind: yesNo, set: setTimer},
				{name: "hpet_present", kind: yesNo, set: setTimer},
				{name: "tsc_present", kind: yesNo, set: setTimer},
				{name: "kvmclock_present", kind: yesNo, set: setTimer},
				{name: "hypervclock_present", kind: yesNo, set: setTimer},
				{name: "offset", path: "@offset"},
				{name: "timer[0-9]*.name", path: "timer[#]/@name"},
				{name: "timer[0-9]*.present", path: "timer[#]/@present", kind: yesNo},
				{name: "timer[0-9]*.tickpolicy", path: "timer[#]/@tickpolicy"},
				{name: "timer[0-9]*.track", path: "timer[#]/@track"},
				{name: "timer[0-9]*.mode", path: "timer[#]/@mode"},
				{name: "timer[0-9]*.frequency", path: "timer[#]/@frequency", kind: number},
				{name: "timer[0-9]*.catchup.threshold", path: "timer[#]/catchup/@threshold", kind: number},
				{name: "timer[0-9]*.catchup.slew", path: "timer[#]/catchup/@slew", kind: number},
				{name: "timer[0-9]*.catchup.limit", path: "timer[#]/catchup/@limit", kind: number},
			}
		},
	}
}

func pmOption() option {
	return option{
		flag:    "pm",
		element: "pm",
		none:    true,
		subs: func() []sub {
			return []sub{
				{name: "suspend_to_mem.enabled", aliases: []string{"suspend_to_mem"}, path: "suspend-to-mem/@enabled", kind: yesNo},
				{name: "suspend_to_disk.enabled", aliases: []string{"suspend_to_disk"}, path: "suspend-to-disk/@enabled", kind: yesNo},
			}
		},
	}
}

func eventsOption() option {
	return option{
		flag: "events",
		none: true,
		subs: func() []sub {
			return []sub{
				{name: "on_poweroff", path: "on_poweroff"},
				{name: "on_reboot", path: "on_reboot"},
				{name: "on_crash", path: "on_crash"},
				{name: "on_lockfailure", path: "on_lockfailure"},
			}
		},
	}
}
