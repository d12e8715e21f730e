package api

import (
	"time"

	"github.com/lamina-vm/lamina/internal/vm"
)

// DefineRequest makes a machine of a whole description. Unlike [RunRequest] it
// makes no disks: those of the spec are there, stay where they are, and stay
// the person's. If the request fails nothing is left of it, and every file that
// it names is as it was: who made them removes them.
type DefineRequest struct {
	// Spec is the machine as it is to be in the end. Zero fields get their
	// defaults (vm.Spec.WithDefaults); the name has none. Paths are absolute.
	Spec vm.Spec `json:"spec"`
	// Install, if not nil, makes the first run an install phase.
	Install *Install `json:"install,omitempty"`
	// Owned are files (a seed, NVRAM, copies of a kernel) that belong to the
	// machine from its making on, and are removed with it. Absolute paths of
	// regular files; a disk that the person wants to keep is not one.
	Owned []string `json:"owned,omitempty"`

	// Start starts it; else it is only defined.
	Start bool `json:"start,omitempty"`
	// Transient makes the machine vanish when it ends, as by RemoveMachine
	// (its disks stay). It needs Start.
	Transient bool `json:"transient,omitempty"`
	// Autostart starts the machine when the daemon starts for the first time
	// after the host has. It excludes Transient.
	Autostart bool `json:"autostart,omitempty"`

	// NoWait ends the stream when the guest executes, not at its login
	// prompt. An install's boot goes on into the final machine.
	NoWait  bool          `json:"noWait,omitempty"`
	Timeout time.Duration `json:"timeout,omitempty"` // boot.Options.Timeout
}

// Install is the first run of a machine, from the installation's medium or
// kernel. The guest's reboot ends it. When the guest reboots or switches itself
// off the machine becomes what DefineRequest.Spec says, and is started again.
// A phase that ended in another way (killed, crashed, lost with the host) is
// [Interrupted]: the next start is one of the final spec, as with libvirt,
// unless StartRequest.Install asks for the phase once more.
type Install struct {
	// Spec is the machine during the phase. Its name and UUID are those of
	// the final spec, and NoReboot is set, whatever it says.
	Spec vm.Spec `json:"spec"`
	// Owned are files that only the phase needs: they are removed when it is
	// over, or with the machine. As DefineRequest.Owned.
	Owned []string `json:"owned,omitempty"`
	// NoRestart leaves the machine off when the phase is over (virt-install
	// --noreboot).
	NoRestart bool `json:"noRestart,omitempty"`
}

// InstallPhase is how far the install of a machine is.
type InstallPhase string

const (
	NotInstalled InstallPhase = "not-started" // the phase has not been started yet
	InstallRuns  InstallPhase = "installing"
	Interrupted  InstallPhase = "interrupted" // ended, not by the guest
	Installed    InstallPhase = "installed"   // over, or there never was one
)

// Definition is what is known of a machine beyond its spec if it was made by a
// [DefineRequest].
type Definition struct {
	// Phase is Installed where there was no install.
	Phase     InstallPhase `json:"phase"`
	Install   *Install     `json:"install,omitempty"` // until it is over
	Owned     []string     `json:"owned,omitempty"`
	Transient bool         `json:"transient,omitempty"`
}

// WaitFor is what a client waits for.
type WaitFor string

const (
	// WaitEnd: the machine does not run (any more). Of a transient machine
	// the result is what it was last.
	WaitEnd WaitFor = "end"
	// WaitInstalled: the machine's install phase is over, in whichever way
	// (Machine.Exit, Definition.Phase), and its restart done. At once where
	// none runs. A restart that failed is the error.
	WaitInstalled WaitFor = "installed"
)

// AutostartRequest says whether a machine is started when the daemon starts for
// the first time after the host has.
type AutostartRequest struct {
	On bool `json:"on"`
}
