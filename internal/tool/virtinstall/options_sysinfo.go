package virtinstall

func metadataOption() option {
	return option{
		flag: "metadata",
		none: true,
		subs: func() []sub {
			return []sub{
				{name: "name", path: "name", comma: true},
				{name: "title", path: "title", comma: true},
				{name: "uuid", path: "uuid"},
				{name: "genid", path: "genid"},
				{name: "genid_enable", path: "genid", kind: bare},
				{name: "description", path: "description", comma: true},
				{name: "os_name", set: setOSName},
				{name: "os_full_id", set: setOSName},
			}
		},
	}
}

func seclabelOption() option {
	return option{
		flag:    "seclabel",
		after:   seclabelAfter,
		element: "seclabel",
		many:    true,
		none:    true,
		subs: func() []sub {
			return []sub{
				{name: "type", path: "@type"},
				{name: "model", path: "@model"},
				{name: "relabel", path: "@relabel", kind: yesNo},
				{name: "label", path: "label", comma: true},
				{name: "baselabel", path: "baselabel", comma: true},
			}
		},
	}
}

func keywrapOption() option {
	return option{
		flag:    "keywrap",
		element: "keywrap",
		none:    true,
		subs: func() []sub {
			return []sub{
				{name: "cipher[0-9]*.name", path: "cipher[#]/@name", comma: true},
				{name: "cipher[0-9]*.state", path: "cipher[#]/@state", comma: true},
			}
		},
	}
}

func sysinfoOption() option {
	return option{
		flag:    "sysinfo",
		before:  sysinfoBefore,
		element: "sysinfo",
		many:    true,
		first:   []string{"type"},
		none:    true,
		subs: func() []sub {
			return []sub{
				{name: "type", comma: true, set: setSysinfoType},
				{name: "bios.vendor", aliases: []string{"bios_vendor"}, path: "bios/entry[@name='vendor']"},
				{name: "bios.version", aliases: []string{"bios_version"}, path: "bios/entry[@name='version']"},
				{name: "bios.date", aliases: []string{"bios_date"}, path: "bios/entry[@name='date']"},
				{name: "bios.release", aliases: []string{"bios_release"}, path: "bios/entry[@name='release']"},
				{name: "system.manufacturer", aliases: []string{"system_manufacturer"}, path: "system/entry[@name='manufacturer']"},
				{name: "system.product", aliases: []string{"system_product"}, path: "system/entry[@name='product']"},
				{name: "system.version", aliases: []string{"system_version"}, path: "system/entry[@name='version']"},
				{name: "system.serial", aliases: []string{"system_serial"}, path: "system/entry[@name='serial']"},
				{name: "system.uuid", aliases: []string{"system_uuid"}, set: setSysinfoUUID},
				{name: "system.sku", aliases: []string{"system_sku"}, path: "system/entry[@name='sku']"},
				{name: "system.family", aliases: []string{"system_family"}, path: "system/entry[@name='family']"},
				{name: "baseBoard.manufacturer", aliases: []string{"baseBoard_manufacturer"}, path: "baseBoard/entry[@name='manufacturer']"},
				{name: "baseBoard.product", aliases: []string{"baseBoard_product"}, path: "baseBoard/entry[@name='product']"},
				{name: "baseBoard.version", aliases: []string{"baseBoard_version"}, path: "baseBoard/entry[@name='version']"},
				{name: "baseBoard.serial", aliases: []string{"baseBoard_serial"}, path: "baseBoard/entry[@name='serial']"},
				{name: "baseBoard.asset", aliases: []string{"baseBoard_asset"}, path: "baseBoard/entry[@name='asset']"},
				{name: "baseBoard.location", aliases: []string{"baseBoard_location"}, path: "baseBoard/entry[@name='location']"},
				{name: "chassis.manufacturer", path: "chassis/entry[@name='manufacturer']"},
				{name: "chassis.version", path: "chassis/entry[@name='version']"},
				{name: "chassis.serial", path: "chassis/entry[@name='serial']"},
				{name: "chassis.asset", path: "chassis/entry[@name='asset']"},
				{name: "chassis.sku", path: "chassis/entry[@name='sku']"},
				{name: "oemStrings.entry[0-9]*", path: "oemStrings/entry[#]", comma: true},
				{name: "entry[0-9]*", path: "entry[#]", comma: true},
				{name: "entry[0-9]*.name", path: "entry[#]/@name", comma: true},
				{name: "entry[0-9]*.file", path: "entry[#]/@file", comma: true},
			}
		},
	}
}

func qemuCommandlineOption() option {
	return option{
		flag:    "qemu-commandline",
		parser:  parseQEMUCommandline,
		element: "qemu:commandline",
		none:    true,
		subs: func() []sub {
			return []sub{
				{name: "args", comma: true, set: setQEMUArgs},
				{name: "env", comma: true, set: setQEMUEnv},
			}
		},
	}
}

func launchSecurityOption() option {
	return option{
		flag:    "launchSecurity",
		after:   launchSecurityAfter,
		element: "launchSecurity",
		first:   []string{"type"},
		none:    true,
		subs: func() []sub {
			return []sub{
				{name: "type", path: "@type"},
				{name: "cbitpos", path: "cbitpos", kind: number},
				{name: "reducedPhysBits", path: "reducedPhysBits", kind: number},
				{name: "policy", path: "policy"},
				{name: "session", path: "session"},
				{name: "dhCert", path: "dhCert"},
				{name: "kernelHashes", path: "@kernelHashes", kind: yesNo},
			}
		},
	}
}
