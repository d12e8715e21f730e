package virtinstall

func iothreadsOption() option {
	return option{
		flag:  "iothreads",
		edits: true,
		first: []string{"iothreads"},
		none:  true,
		subs: func() []sub {
			return []sub{
				{name: "iothreads", path: "iothreads", kind: number},
				{name: "iothreadids.iothread[0-9]*.id", path: "iothreadids/iothread[#]/@id", kind: number},
				{name: "iothreadids.iothread[0-9]*.thread_pool_min", path: "iothreadids/iothread[#]/@thread_pool_min", kind: number},
				{name: "iothreadids.iothread[0-9]*.thread_pool_max", path: "iothreadids/iothread[#]/@thread_pool_max", kind: number},
				{name: "defaultiothread.thread_pool_min", path: "defaultiothread/@thread_pool_min", kind: number},
				{name: "defaultiothread.thread_pool_max", path: "defaultiothread/@thread_pool_max", kind: number},
			}
		},
	}
}

func cputuneOption() option {
	return option{
		flag:    "cputune",
		element: "cputune",
		first:   []string{"model"},
		subs: func() []sub {
			return []sub{
				{name: "shares", path: "shares", kind: number},
				{name: "period", path: "period", kind: number},
				{name: "quota", path: "quota", kind: number},
				{name: "global_period", path: "global_period", kind: number},
				{name: "global_quota", path: "global_quota", kind: number},
				{name: "emulator_period", path: "emulator_period", kind: number},
				{name: "emulator_quota", path: "emulator_quota", kind: number},
				{name: "iothread_period", path: "iothread_period", kind: number},
				{name: "iothread_quota", path: "iothread_quota", kind: number},
				{name: "vcpupin[0-9]*.vcpu", path: "vcpupin[#]/@vcpu", kind: number},
				{name: "vcpupin[0-9]*.cpuset", path: "vcpupin[#]/@cpuset", comma: true},
				{name: "emulatorpin.cpuset", path: "emulatorpin/@cpuset", comma: true},
				{name: "iothreadpin[0-9]*.iothread", path: "iothreadpin[#]/@iothread", kind: number},
				{name: "iothreadpin[0-9]*.cpuset", path: "iothreadpin[#]/@cpuset", comma: true},
				{name: "emulatorsched.scheduler", path: "emulatorsched/@scheduler"},
				{name: "emulatorsched.priority", path: "emulatorsched/@priority", kind: number},
				{name: "vcpusched[0-9]*.vcpus", path: "vcpusched[#]/@vcpus", comma: true},
				{name: "vcpusched[0-9]*.scheduler", path: "vcpusched[#]/@scheduler"},
				{name: "vcpusched[0-9]*.priority", path: "vcpusched[#]/@priority", kind: number},
				{name: "iothreadsched[0-9]*.iothreads", path: "iothreadsched[#]/@iothreads", comma: true},
				{name: "iothreadsched[0-9]*.scheduler", path: "iothreadsched[#]/@scheduler"},
				{name: "iothreadsched[0-9]*.priority", path: "iothreadsched[#]/@priority", kind: number},
				{name: "cachetune[0-9]*.vcpus", path: "cachetune[#]/@vcpus", comma: true},
				{name: "cachetune[0-9]*.cache[0-9]*.id", path: "cachetune[#]/cache[#]/@id", kind: number},
				{name: "cachetune[0-9]*.cache[0-9]*.level", path: "cachetune[#]/cache[#]/@level", kind: number},
				{name: "cachetune[0-9]*.cache[0-9]*.type", path: "cachetune[#]/cache[#]/@type"},
				{name: "cachetune[0-9]*.cache[0-9]*.size", path: "cachetune[#]/cache[#]/@size", kind: number},
				{name: "cachetune[0-9]*.cache[0-9]*.unit", path: "cachetune[#]/cache[#]/@unit"},
				{name: "cachetune[0-9]*.monitor[0-9]*.level", path: "cachetune[#]/monitor[#]/@level", kind: number},
				{name: "cachetune[0-9]*.monitor[0-9]*.vcpus", path: "cachetune[#]/monitor[#]/@vcpus", comma: true},
				{name: "memorytune[0-9]*.vcpus", path: "memorytune[#]/@vcpus", comma: true},
				{name: "memorytune[0-9]*.node[0-9]*.id", path: "memorytune[#]/node[#]/@id", kind: number},
				{name: "memorytune[0-9]*.node[0-9]*.bandwidth", path: "memorytune[#]/node[#]/@bandwidth", kind: number},
			}
		},
	}
}

func numatuneOption() option {
	return option{
		flag:    "numatune",
		element: "numatune",
		first:   []string{"nodeset"},
		none:    true,
		subs: func() []sub {
			return []sub{
				{name: "memory.nodeset", aliases: []string{"nodeset"}, path: "memory/@nodeset", comma: true},
				{name: "memory.mode", aliases: []string{"mode"}, path: "memory/@mode"},
				{name: "memory.placement", path: "memory/@placement"},
				{name: "memnode[0-9]*.cellid", path: "memnode[#]/@cellid", kind: number, comma: true},
				{name: "memnode[0-9]*.mode", path: "memnode[#]/@mode"},
				{name: "memnode[0-9]*.nodeset", path: "memnode[#]/@nodeset", comma: true},
			}
		},
	}
}

func memtuneOption() option {
	return option{
		flag:    "memtune",
		element: "memtune",
		first:   []string{"soft_limit"},
		none:    true,
		subs: func() []sub {
			return []sub{
				{name: "hard_limit", path: "hard_limit", kind: number},
				{name: "soft_limit", path: "soft_limit", kind: number},
				{name: "swap_hard_limit", path: "swap_hard_limit", kind: number},
				{name: "min_guarantee", path: "min_guarantee", kind: number},
			}
		},
	}
}

func blkiotuneOption() option {
	return option{
		flag:    "blkiotune",
		element: "blkiotune",
		first:   []string{"weight"},
		none:    true,
		subs: func() []sub {
			return []sub{
				{name: "weight", path: "weight", kind: number},
				{name: "device[0-9]*.path", aliases: []string{"device_path"}, path: "device[#]/path"},
				{name: "device[0-9]*.weight", aliases: []string{"device_weight"}, path: "device[#]/weight", kind: number},
				{name: "device[0-9]*.read_bytes_sec", aliases: []string{"read_bytes_sec"}, path: "device[#]/read_bytes_sec", kind: number},
				{name: "device[0-9]*.write_bytes_sec", aliases: []string{"write_bytes_sec"}, path: "device[#]/write_bytes_sec", kind: number},
				{name: "device[0-9]*.read_iops_sec", aliases: []string{"read_iops_sec"}, path: "device[#]/read_iops_sec", kind: number},
				{name: "device[0-9]*.write_iops_sec", aliases: []string{"write_iops_sec"}, path: "device[#]/write_iops_sec", kind: number},
			}
		},
	}
}

func memorybackingOption() option {
	return option{
		flag:    "memorybacking",
		element: "memoryBacking",
		none:    true,
		subs: func() []sub {
			return []sub{
				{name: "hugepages", path: "hugepages", kind: bare},
				{name: "hugepages.page[0-9]*.size", aliases: []string{"size"}, path: "hugepages/page[#]/@size"},
				{name: "hugepages.page[0-9]*.unit", aliases: []string{"unit"}, path: "hugepages/page[#]/@unit"},
				{name: "hugepages.page[0-9]*.nodeset", aliases: []string{"nodeset"}, path: "hugepages/page[#]/@nodeset", comma: true},
				{name: "nosharepages", path: "nosharepages", kind: bare},
				{name: "locked", path: "locked", kind: bare},
				{name: "access.mode", aliases: []string{"access_mode"}, path: "access/@mode"},
				{name: "source.type", aliases: []string{"source_type"}, path: "source/@type"},
				{name: "discard", path: "discard", kind: bare},
				{name: "allocation.mode", path: "allocation/@mode"},
				{name: "allocation.threads", path: "allocation/@threads", kind: number},
			}
		},
	}
}

func resourceOption() option {
	return option{
		flag:    "resource",
		element: "resource",
		first:   []string{"partition"},
		none:    true,
		subs: func() []sub {
			return []sub{
				{name: "partition", path: "partition"},
				{name: "fibrechannel.appid", path: "fibrechannel/@appid", comma: true},
			}
		},
	}
}
