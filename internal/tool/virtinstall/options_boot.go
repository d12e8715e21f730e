package virtinstall

func bootOption() option {
	return option{
		flag:    "boot",
		before:  bootBefore,
		element: "os",
		none:    true,
		subs: func() []sub {
			return []sub{
				{name: "hd", set: nothing},
				{name: "cdrom", set: nothing},
				{name: "fd", set: nothing},
				{name: "network", set: nothing},
				{name: "refresh-machine-type", kind: yesNo, set: refuseRefresh},
				{name: "os_type", path: "type"},
				{name: "arch", path: "type/@arch"},
				{name: "machine", path: "type/@machine"},
				{name: "bootloader", set: setDomain("bootloader")},
				{name: "bootloader_args", set: setDomain("bootloader_args")},
				{name: "domain_type", set: setDomain("@type")},
				{name: "emulator", set: setDomain("devices/emulator")},
				{name: "uefi", set: setUEFI},
				{name: "loader", path: "loader"},
				{name: "loader.readonly", aliases: []string{"loader_ro"}, path: "loader/@readonly", kind: yesNo},
				{name: "loader.type", aliases: []string{"loader_type"}, path: "loader/@type"},
				{name: "loader.secure", aliases: []string{"loader_secure"}, path: "loader/@secure", kind: yesNo},
				{name: "firmware", path: "@firmware"},
				{name: "firmware.feature[0-9]*.enabled", path: "firmware/feature[#]/@enabled", kind: yesNo},
				{name: "firmware.feature[0-9]*.name", path: "firmware/feature[#]/@name"},
				{name: "nvram", path: "nvram", kind: abs},
				{name: "nvram.template", aliases: []string{"nvram_template"}, path: "nvram/@template"},
				{name: "boot[0-9]*.dev", path: "boot[#]/@dev"},
				{name: "bootmenu.enable", aliases: []string{"menu"}, path: "bootmenu/@enable", kind: yesNo},
				{name: "bootmenu.timeout", path: "bootmenu/@timeout", kind: number},
				{name: "bios.useserial", aliases: []string{"useserial"}, path: "bios/@useserial", kind: yesNo},
				{name: "bios.rebootTimeout", aliases: []string{"rebootTimeout"}, path: "bios/@rebootTimeout", kind: number},
				{name: "smbios.mode", aliases: []string{"smbios_mode"}, path: "smbios/@mode"},
				{name: "kernel", path: "kernel", kind: abs},
				{name: "initrd", path: "initrd", kind: abs},
				{name: "cmdline", aliases: []string{"extra_args", "kernel_args"}, path: "cmdline", comma: true},
				{name: "dtb", path: "dtb", kind: abs},
				{name: "acpi.table", path: "acpi/table", kind: abs},
				{name: "acpi.table.type", path: "acpi/table/@type"},
				{name: "init", path: "init"},
				{name: "initargs", set: setInitArgs},
				{name: "initarg[0-9]*", path: "initarg[#]"},
				{name: "initenv[0-9]*", path: "initenv[#]"},
				{name: "initenv[0-9]*.name", path: "initenv[#]/@name"},
				{name: "initdir", path: "initdir"},
				{name: "inituser", path: "inituser"},
				{name: "initgroup", path: "initgroup"},
			}
		},
	}
}

func idmapOption() option {
	return option{
		flag:    "idmap",
		element: "idmap",
		none:    true,
		subs: func() []sub {
			return []sub{
				{name: "uid.start", aliases: []string{"uid_start"}, path: "uid/@start", kind: number},
				{name: "uid.target", aliases: []string{"uid_target"}, path: "uid/@target", kind: number},
				{name: "uid.count", aliases: []string{"uid_count"}, path: "uid/@count", kind: number},
				{name: "gid.start", aliases: []string{"gid_start"}, path: "gid/@start", kind: number},
				{name: "gid.target", aliases: []string{"gid_target"}, path: "gid/@target", kind: number},
				{name: "gid.count", aliases: []string{"gid_count"}, path: "gid/@count", kind: number},
			}
		},
	}
}
