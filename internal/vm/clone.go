package vm

import "slices"

// Clone returns a copy of s whose lists of devices can be changed without
// changing s's. What pointers and maps lead to is shared: replace it, do not change
// it.
func (s Spec) Clone() Spec {
	s.Disks = slices.Clone(s.Disks)
	s.NICs = slices.Clone(s.NICs)
	for i := range s.NICs {
		s.NICs[i].Forwards = slices.Clone(s.NICs[i].Forwards)
	}
	s.Displays = slices.Clone(s.Displays)
	s.Videos = slices.Clone(s.Videos)
	d := &s.Devices
	d.Serials = slices.Clone(d.Serials)
	d.Parallels = slices.Clone(d.Parallels)
	d.Consoles = slices.Clone(d.Consoles)
	d.Channels = slices.Clone(d.Channels)
	d.Inputs = slices.Clone(d.Inputs)
	d.Sounds = slices.Clone(d.Sounds)
	d.RNGs = slices.Clone(d.RNGs)
	d.Watchdogs = slices.Clone(d.Watchdogs)
	d.Controllers = slices.Clone(d.Controllers)
	d.Filesystems = slices.Clone(d.Filesystems)
	d.HostDevices = slices.Clone(d.HostDevices)
	d.Redirects = slices.Clone(d.Redirects)
	s.Clock.Timers = slices.Clone(s.Clock.Timers)
	s.Processor.Features = slices.Clone(s.Processor.Features)
	s.Processor.NUMA = slices.Clone(s.Processor.NUMA)
	return s
}

// WithoutSecrets returns a copy of s to be shown: a password that is set shows
// as "***".
func (s Spec) WithoutSecrets() Spec {
	s.Displays = slices.Clone(s.Displays)
	for i := range s.Displays {
		if s.Displays[i].Password != "" {
			s.Displays[i].Password = "***"
		}
	}
	return s
}

// WithoutPasswords returns a copy of s to be kept: no display has a password.
func (s Spec) WithoutPasswords() Spec {
	s.Displays = slices.Clone(s.Displays)
	for i := range s.Displays {
		s.Displays[i].Password = ""
	}
	return s
}
