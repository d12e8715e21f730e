package osinfo

// Resources is what a system asks of a machine; 0 is a value that is not known.
type Resources struct {
	CPUs    int64
	Memory  int64 // bytes
	Storage int64 // bytes
}

// Minimum returns the least that the system needs on that architecture
// ("x86_64").
func (o OS) Minimum(arch string) Resources {
	return choose(o.requirements(func(l *resourceLists) []requirement { return l.minimum }), arch)
}

// Recommended returns what the system should have on that architecture. Where
// the database knows only a minimum, this is twice as much (virt-install's
// rule).
func (o OS) Recommended(arch string) Resources {
	r := choose(o.requirements(func(l *resourceLists) []requirement { return l.recommended }), arch)
	least := o.Minimum(arch)
	if r.CPUs == 0 {
		r.CPUs = double(least.CPUs)
	}
	if r.Memory == 0 {
		r.Memory = double(least.Memory)
	}
	if r.Storage == 0 {
		r.Storage = double(least.Storage)
	}
	return r
}

func double(n int64) int64 {
	if n > 1<<61 {
		return n
	}
	return 2 * n
}

// NetworkInstallMemory returns the bytes of memory that an installation over
// the network needs, 0 where the database does not say.
func (o OS) NetworkInstallMemory(arch string) int64 {
	for _, r := range o.requirements(func(l *resourceLists) []requirement { return l.networkInstall }) {
		if r.arch == arch || r.arch == "all" {
			return max(r.ram, 0)
		}
	}
	return 0
}

// requirements returns a list of the system's, the inheriting ones filled in
// from its ancestors.
func (o OS) requirements(of func(*resourceLists) []requirement) []requirement {
	if o.record == nil {
		return nil
	}
	// The copy is this call's own: the record is shared.
	list := append([]requirement(nil), of(&o.record.resources)...)
	o.walk(derives|clones, func(r *record) bool {
		if r == o.record {
			return true
		}
		for i := range list {
			for _, from := range of(&r.resources) {
				if to := &list[i]; to.inherit && to.arch == from.arch {
					to.cpus, to.ram, to.storage = known(to.cpus, from.cpus), known(to.ram, from.ram), known(to.storage, from.storage)
				}
			}
		}
		return true
	})
	return list
}

func known(n, otherwise int64) int64 {
	if n == -1 {
		return otherwise
	}
	return n
}

// choose takes each value from the architecture's own entry, else from the
// one for all architectures. Of two entries the last counts.
func choose(list []requirement, arch string) Resources {
	value := func(of func(requirement) int64) int64 {
		for _, a := range []string{arch, "all"} {
			for i := len(list) - 1; i >= 0; i-- {
				if list[i].arch == a {
					if n := of(list[i]); n != -1 {
						return n
					}
					break
				}
			}
		}
		return 0
	}
	return Resources{
		CPUs:    value(func(r requirement) int64 { return r.cpus }),
		Memory:  value(func(r requirement) int64 { return r.ram }),
		Storage: value(func(r requirement) int64 { return r.storage }),
	}
}
