package libvirt

import (
	"context"
	"fmt"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// State is a domain's state (virDomainState).
type State int32

// The states.
const (
	NoState     State = 0
	Running     State = 1
	Blocked     State = 2
	Paused      State = 3
	InShutdown  State = 4
	ShutOff     State = 5
	Crashed     State = 6
	PMSuspended State = 7
)

// String is the state as `virsh list` prints it.
func (s State) String() string {
	names := [...]string{"no state", "running", "idle", "paused", "in shutdown", "shut off", "crashed", "pmsuspended"}
	if s < 0 || int(s) >= len(names) {
		return fmt.Sprintf("state %d", int32(s))
	}
	return names[s]
}

// Active says whether a domain in this state has a process.
func (s State) Active() bool { return s != ShutOff && s != NoState }

// State asks for the domain's state and the number of the reason, whose
// meaning depends on the state (virDomainShutoffReason and its kin).
func (d *Domain) State(ctx context.Context) (State, int, error) {
	type pair struct{ state, reason int32 }
	p, err := call(ctx, d.conn, d.op("state of"), func(l *golibvirt.Libvirt) (pair, error) {
		s, r, err := l.DomainGetState(d.dom, 0)
		return pair{s, r}, err
	})
	return State(p.state), int(p.reason), err
}

// Reasons of the state Paused (virDomainPausedReason).
const (
	pausedUser    = 1
	pausedIOError = 5 // the host's disk is full, say
)
