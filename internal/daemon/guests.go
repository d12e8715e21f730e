package daemon

import (
	"context"

	"github.com/lamina-vm/lamina/internal/guest/agent"
)

// Guests reaches into running guests; package agent is how, and tests put another
// in its place.
type Guests interface {
	// Open connects to the agent that answers first on the sockets of a machine's
	// channels, and waits for one until ctx ends. Where there is only Lamina's own
	// it is not waited for: the first request is.
	Open(ctx context.Context, lamina, qga string) (Guest, error)
}

// Guest is a guest whose agent answers: see the functions of package agent.
type Guest interface {
	Kind() agent.Kind
	Run(ctx context.Context, script string, stdin []byte) (agent.Result, error)
	WaitReady(ctx context.Context) error
	Prepare(ctx context.Context) error
	Renew(ctx context.Context, id agent.Identity) (agent.Report, error)
	Close() error
}

type agents struct{}

func (agents) Open(ctx context.Context, lamina, qga string) (Guest, error) {
	dial := func() (*agent.Conn, error) { return agent.Dial(ctx, lamina, qga) }
	if qga == "" && lamina != "" {
		dial = func() (*agent.Conn, error) { return agent.Connect(ctx, lamina) }
	}
	c, err := dial()
	if err != nil {
		return nil, err
	}
	return agentGuest{c}, nil
}

type agentGuest struct{ *agent.Conn }

func (g agentGuest) WaitReady(ctx context.Context) error { return agent.WaitReady(ctx, g.Conn) }
func (g agentGuest) Prepare(ctx context.Context) error   { return agent.Prepare(ctx, g.Conn) }

func (g agentGuest) Renew(ctx context.Context, id agent.Identity) (agent.Report, error) {
	return agent.Renew(ctx, g.Conn, id)
}
