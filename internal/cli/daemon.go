package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/client"
	"github.com/lamina-vm/lamina/internal/home"
)

func newDaemon(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "daemon VERB",
		Short: "Start and stop the daemon",
		Long: `The daemon laminad owns the running machines. It is started when a verb needs it
and ends by itself after ` + client.IdleExit + ` without work. Machines go on without it, and are
found again by the next one.`,
		Example: "  lamina daemon stop\n  lamina daemon start",
	}
	start := &cobra.Command{
		Use:     "start",
		Short:   "Start the daemon if it does not run",
		Long:    "Start the daemon if it does not run, as every verb that needs it does.",
		Example: "  lamina daemon start",
		Args:    words(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := a.connect(cmd.Context())
			return err
		},
	}
	stop := &cobra.Command{
		Use:     "stop",
		Short:   "End the daemon; the machines go on",
		Long:    "End the daemon, for instance after an update. The machines go on; the next daemon\nfinds them again.",
		Example: "  lamina daemon stop",
		Args:    words(),
		RunE:    func(cmd *cobra.Command, _ []string) error { return stopDaemon(cmd.Context()) },
	}
	return verbs(cmd, start, stop)
}

// stopTimeout is how long a daemon may take to end.
const stopTimeout = 30 * time.Second

// stopDaemon asks the daemon to end and waits until it has.
func stopDaemon(ctx context.Context) error {
	h, err := home.Find()
	if err != nil {
		return err
	}
	c := client.New(h)
	err = c.Shutdown(ctx)
	if errors.Is(err, client.ErrNoDaemon) {
		return nil
	}
	if err != nil {
		return err
	}
	for end := time.Now().Add(stopTimeout); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, err := c.Version(ctx); errors.Is(err, client.ErrNoDaemon) {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return fmt.Errorf("laminad has taken the request to end and still runs after %s; its log: %s", stopTimeout, h.DaemonLog())
}
