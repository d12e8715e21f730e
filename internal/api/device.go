package api

import "github.com/lamina-vm/lamina/internal/vm"

// Scope says what a change of a machine's devices concerns. With neither field
// set it is both: the machine as it runs, if it does, and what its next start
// takes.
type Scope struct {
	Live   bool `json:"live,omitempty"`   // only the machine as it runs
	Config bool `json:"config,omitempty"` // only what its next start takes
}

// AttachRequest gives a machine another drive. The image is the person's.
type AttachRequest struct {
	Scope
	// Disk's zero fields get their defaults; Path and Format have none. Target,
	// if empty, is the next free one.
	Disk vm.Disk `json:"disk"`
}

// DetachRequest takes a drive away. One that the guest does not let go of in
// time is an error, and stays.
type DetachRequest struct {
	Scope
	Disk string `json:"disk"` // as vm.Spec.FindDisk takes it
}

// ResizeRequest grows a disk, while the machine runs or not.
type ResizeRequest struct {
	Disk string `json:"disk"` // as vm.Spec.FindDisk takes it
	Size int64  `json:"size"` // bytes, a multiple of 512, not below the present size
}

// MediaRequest puts a medium into a drive, or empties it.
type MediaRequest struct {
	Scope
	Drive string `json:"drive,omitempty"` // as vm.Spec.FindDisk takes it; "" is the only CD-ROM drive
	// Path is absolute; "" empties the drive.
	Path   string `json:"path,omitempty"`
	Format string `json:"format,omitempty"` // "": raw
	Force  bool   `json:"force,omitempty"`  // also where the guest has locked the tray
}
