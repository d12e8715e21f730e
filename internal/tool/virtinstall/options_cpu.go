package virtinstall

func memoryOption() option {
	return option{
		flag:   "memory",
		before: memoryBefore,
		first:  []string{"memory"},
		none:   true,
		subs: func() []sub {
			return []sub{
				{name: "memory", set: setMemory("memory")},
				{name: "currentMemory", set: setMemory("currentMemory")},
				{name: "maxMemory", aliases: []string{"hotplugmemorymax"}, set: setMemory("maxMemory")},
				{name: "maxMemory.slots", aliases: []string{"hotplugmemoryslots"}, path: "maxMemory/@slots", kind: number},
				{name: "maxmemory", set: nothing}, // before has it
				{name: "hugepages", path: "memoryBacking/hugepages", kind: bare},
			}
		},
	}
}

func cpuOption() option {
	return option{
		flag:    "cpu",
		before:  cpuBefore,
		element: "cpu",
		first:   []string{"model"},
		subs: func() []sub {
			return []sub{
				{name: "secure", kind: yesNo, set: setSecure},
				{name: "model", set: setModel},
				{name: "model.fallback", path: "model/@fallback"},
				{name: "model.vendor_id", path: "model/@vendor_id"},
				{name: "vendor", path: "vendor"},
				{name: "mode", path: "@mode"},
				{name: "match", path: "@match"},
				{name: "check", path: "@check"},
				{name: "migratable", path: "@migratable", kind: onOff},
				{name: "topology.sockets", path: "topology/@sockets", kind: number},
				{name: "topology.dies", path: "topology/@dies", kind: number},
				{name: "topology.cores", path: "topology/@cores", kind: number},
				{name: "topology.threads", path: "topology/@threads", kind: number},
				{name: "cache.level", path: "cache/@level", kind: number},
				{name: "cache.mode", path: "cache/@mode"},
				{name: "force", repeat: true, set: setFeature},
				{name: "require", repeat: true, set: setFeature},
				{name: "optional", repeat: true, set: setFeature},
				{name: "disable", repeat: true, set: setFeature},
				{name: "forbid", repeat: true, set: setFeature},
				{name: "numa.cell[0-9]*.id", aliases: []string{"cell[0-9]*.id"}, path: "numa/cell[#]/@id", kind: number},
				{name: "numa.cell[0-9]*.cpus", aliases: []string{"cell[0-9]*.cpus"}, path: "numa/cell[#]/@cpus", comma: true},
				{name: "numa.cell[0-9]*.memory", aliases: []string{"cell[0-9]*.memory"}, path: "numa/cell[#]/@memory", kind: number},
				{name: "numa.cell[0-9]*.unit", path: "numa/cell[#]/@unit"},
				{name: "numa.cell[0-9]*.memAccess", path: "numa/cell[#]/@memAccess"},
				{name: "numa.cell[0-9]*.discard", path: "numa/cell[#]/@discard", kind: yesNo},
				{name: "numa.cell[0-9]*.distances.sibling[0-9]*.id", aliases: []string{"cell[0-9]*.distances.sibling[0-9]*.id"}, path: "numa/cell[#]/distances/sibling[#]/@id", kind: number},
				{name: "numa.cell[0-9]*.distances.sibling[0-9]*.value", aliases: []string{"cell[0-9]*.distances.sibling[0-9]*.value"}, path: "numa/cell[#]/distances/sibling[#]/@value", kind: number},
				{name: "numa.cell[0-9]*.cache[0-9]*.level", path: "numa/cell[#]/cache[#]/@level", kind: number},
				{name: "numa.cell[0-9]*.cache[0-9]*.associativity", path: "numa/cell[#]/cache[#]/@associativity"},
				{name: "numa.cell[0-9]*.cache[0-9]*.policy", path: "numa/cell[#]/cache[#]/@policy"},
				{name: "numa.cell[0-9]*.cache[0-9]*.size.value", path: "numa/cell[#]/cache[#]/size/@value", kind: number},
				{name: "numa.cell[0-9]*.cache[0-9]*.size.unit", path: "numa/cell[#]/cache[#]/size/@unit"},
				{name: "numa.cell[0-9]*.cache[0-9]*.line.value", path: "numa/cell[#]/cache[#]/line/@value", kind: number},
				{name: "numa.cell[0-9]*.cache[0-9]*.line.unit", path: "numa/cell[#]/cache[#]/line/@unit"},
				{name: "numa.interconnects.latency[0-9]*.initiator", path: "numa/interconnects/latency[#]/@initiator", kind: number},
				{name: "numa.interconnects.latency[0-9]*.target", path: "numa/interconnects/latency[#]/@target", kind: number},
				{name: "numa.interconnects.latency[0-9]*.cache", path: "numa/interconnects/latency[#]/@cache", kind: number},
				{name: "numa.interconnects.latency[0-9]*.type", path: "numa/interconnects/latency[#]/@type"},
				{name: "numa.interconnects.latency[0-9]*.value", path: "numa/interconnects/latency[#]/@value", kind: number},
				{name: "numa.interconnects.latency[0-9]*.unit", path: "numa/interconnects/latency[#]/@unit"},
				{name: "numa.interconnects.bandwidth[0-9]*.initiator", path: "numa/interconnects/bandwidth[#]/@initiator", kind: number},
				{name: "numa.interconnects.bandwidth[0-9]*.target", path: "numa/interconnects/bandwidth[#]/@target", kind: number},
				{name: "numa.interconnects.bandwidth[0-9]*.type", path: "numa/interconnects/bandwidth[#]/@type"},
				{name: "numa.interconnects.bandwidth[0-9]*.cache", path: "numa/interconnects/bandwidth[#]/@cache", kind: number},
				{name: "numa.interconnects.bandwidth[0-9]*.value", path: "numa/interconnects/bandwidth[#]/@value", kind: number},
				{name: "numa.interconnects.bandwidth[0-9]*.unit", path: "numa/interconnects/bandwidth[#]/@unit"},
			}
		},
	}
}

func vcpusOption() option {
	return option{
		flag:   "vcpus",
		before: vcpusBefore,
		first:  []string{"vcpu"},
		none:   true,
		subs: func() []sub {
			return []sub{
				{name: "maxvcpus", set: nothing},
				{name: "cpuset", comma: true, set: nothing},
				{name: "vcpus", set: nothing},
				{name: "sockets", path: "cpu/topology/@sockets", kind: number},
				{name: "dies", path: "cpu/topology/@dies", kind: number},
				{name: "cores", path: "cpu/topology/@cores", kind: number},
				{name: "threads", path: "cpu/topology/@threads", kind: number},
				{name: "vcpu", path: "vcpu", kind: number},
				{name: "vcpu.current", path: "vcpu/@current", kind: number},
				{name: "vcpu.cpuset", comma: true, set: setCPUSet},
				{name: "vcpu.placement", aliases: []string{"placement"}, path: "vcpu/@placement"},
				{name: "vcpus.vcpu[0-9]*.id", path: "vcpus/vcpu[#]/@id", kind: number},
				{name: "vcpus.vcpu[0-9]*.enabled", path: "vcpus/vcpu[#]/@enabled", kind: yesNo},
				{name: "vcpus.vcpu[0-9]*.hotpluggable", path: "vcpus/vcpu[#]/@hotpluggable", kind: yesNo},
				{name: "vcpus.vcpu[0-9]*.order", path: "vcpus/vcpu[#]/@order", kind: number},
			}
		},
	}
}
