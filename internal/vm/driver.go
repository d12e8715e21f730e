package vm

import (
	"context"
	"errors"
	"time"
)

// Sentinels of drivers.
var (
	// ErrNotRunning: the machine's process is gone.
	ErrNotRunning = errors.New("machine is not running")
	// ErrNoKVM: KVM was asked for and does not run this machine; the
	// wrapping error says why.
	ErrNoKVM = errors.New("KVM cannot run this machine")
)

// State is what a machine's process is doing.
type State string

const (
	StateRunning State = "running"
	StatePaused  State = "paused"  // by a person, or until the host's disk has space again
	StateStopped State = "stopped" // shut down or powered off
	StateCrashed State = "crashed" // QEMU ended, or stopped the guest, on an error
)

// Driver starts machines. vm/qemu is the one that needs nothing but a QEMU
// binary.
type Driver interface {
	// Start runs the machine with its runtime files in dir (see package
	// home for the names) and returns when the guest executes, or with the
	// reason why it does not; then nothing is left running. The process
	// does not depend on the caller's: it survives its end.
	Start(ctx context.Context, spec Spec, dir string) (Machine, error)

	// Adopt finds the machine that an earlier process started in dir.
	// It returns ErrNotRunning where there is none, and cleans up what a
	// dead one left behind (sockets, pid file). Where one ended unseen the
	// error is an [*EndedError].
	Adopt(ctx context.Context, dir string) (Machine, error)
}

// Killer is a [Driver] that can end a machine which cannot be adopted, as its
// process does not answer.
type Killer interface {
	// KillIn ends the process that runs in dir and returns when it is gone
	// and its leftovers with it. ErrNotRunning where there is none.
	KillIn(ctx context.Context, dir string) error
}

// Machine is a running machine. All methods are safe for concurrent use.
type Machine interface {
	// Info says how the machine runs. It does not change while it runs.
	Info() RunInfo

	// State asks what the guest does now.
	State(ctx context.Context) (State, error)

	// Wait blocks until the process has ended or ctx is done, and returns
	// why it ended.
	Wait(ctx context.Context) (Exit, error)

	// Shutdown presses the power button and returns at once.
	Shutdown(ctx context.Context) error

	// Kill ends the process and returns when it is gone. The guest gets no
	// warning; what it flushed is safe.
	Kill(ctx context.Context) error

	// ScreenText returns the lines of the VGA text screen, trailing blanks
	// cut; nil where the screen is not in a text mode.
	ScreenText(ctx context.Context) ([]string, error)

	// ScreenPNG returns a picture of the screen as a PNG file.
	ScreenPNG(ctx context.Context) ([]byte, error)

	// SerialSocket and SerialLog are the paths of the serial port's unix
	// socket (one client at a time) and of the log with its every byte.
	SerialSocket() string
	SerialLog() string

	// Release lets go of the machine without ending it.
	Release() error
}

// RunInfo says how a machine was started.
type RunInfo struct {
	PID       int       `json:"pid"`
	StartedAt time.Time `json:"startedAt"`
	Accel     Accel     `json:"accel"` // AccelKVM or AccelTCG
	// AccelNote says why KVM was not used, "" where it was or was not asked.
	AccelNote string    `json:"accelNote,omitempty"`
	QEMU      string    `json:"qemu"` // version
	Forwards  []Forward `json:"forwards"`
	VNC       string    `json:"vnc,omitempty"`   // unix socket path or host:port
	SPICE     string    `json:"spice,omitempty"` // the same
	// PTYs are the paths of pseudoterminals, by device: "serial1", "console0".
	PTYs     map[string]string `json:"ptys,omitempty"`
	VSockCID uint32            `json:"vsockCid,omitempty"`
}

// Exit says why a machine's process ended.
type Exit struct {
	State State `json:"state"` // StateStopped or StateCrashed
	// Cause is what ended it, "" where only Reason tells.
	Cause  Cause  `json:"cause,omitempty"`
	Reason string `json:"reason"` // "guest shut down", "killed", QEMU's last words
	// Failed says that the machine's process failed by itself (an assertion,
	// a signal for its own fault, KVM that cannot run the guest): neither the
	// guest nor a person ended it, and it may well run when started again.
	Failed bool `json:"failed,omitempty"`
}

// EndedError is an ErrNotRunning that tells how a machine ended that nobody
// watched.
type EndedError struct{ Exit Exit }

func (e *EndedError) Error() string { return ErrNotRunning.Error() + ": " + e.Exit.Reason }

// Is says that it is an [ErrNotRunning].
func (e *EndedError) Is(target error) bool { return target == ErrNotRunning }

// Cause is what ended a machine, where a program acts on it.
type Cause string

const (
	CauseShutdown Cause = "guest-shutdown" // the guest switched itself off
	CauseReset    Cause = "guest-reset"    // the guest rebooted, which ends a machine with Spec.NoReboot
	CauseKilled   Cause = "killed"         // Machine.Kill, or a signal to its process
)
