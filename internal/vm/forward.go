package vm

import "context"

// ForwardProber is a [Machine] that knows more of its port forwards than who
// connects to them does: a user network takes each connection before it has asked
// the guest, and keeps it for a minute where no guest answers.
type ForwardProber interface {
	// Reached says whether the guest has taken the connections to a TCP port of the
	// host that are open now: false if one of them still waits for its answer.
	Reached(ctx context.Context, hostPort int) (bool, error)
}
