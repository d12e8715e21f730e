package cli

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
)

func newEvents(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "events [NAME...] [OPTIONS]",
		Short: "Tell what happens to machines as it happens",
		Long: `Print a line whenever a machine is defined, started, stopped or removed, or comes
to another state, until Ctrl-C. With --json it is one object a line.`,
		Example:           "  lamina events\n  lamina events web --connect qemu:///system --json",
		ValidArgsFunction: completeMachines(a, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.events(cmd.Context(), args, asJSON)
		},
	}
	jsonFlag(cmd, &asJSON)
	connectFlag(cmd, a)
	return cmd
}

func (a *app) events(ctx context.Context, names []string, asJSON bool) error {
	b, err := a.backend(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	on := func(e api.MachineEvent) {
		if len(names) > 0 && !slices.Contains(names, e.Machine) {
			return
		}
		if err := a.printEvent(e, asJSON); err != nil {
			cancel(err) // nobody reads it any more
		}
	}
	if w, ok := b.(watcher); ok {
		err = w.Events(ctx, on)
	} else {
		err = compare(ctx, b, on)
	}
	if ctx.Err() != nil {
		if err := context.Cause(ctx); !errors.Is(err, errInterrupted) {
			return err
		}
		return nil // Ctrl-C is how it ends
	}
	return err
}

func (a *app) printEvent(e api.MachineEvent, asJSON bool) error {
	if asJSON {
		return a.printJSONLine(e)
	}
	reason := ""
	if e.Reason != "" {
		reason = " (" + e.Reason + ")"
	}
	return a.printf("%s  %s  %s%s\n", e.Time.Local().Format(time.DateTime), e.Machine, e.Kind, reason)
}

// compareEvery is how often the daemon is asked what its machines do.
const compareEvery = 250 * time.Millisecond

// compare tells what has changed between two looks at the machines.
func compare(ctx context.Context, b Backend, on func(api.MachineEvent)) error {
	var before []api.Machine
	for first := true; ; first = false {
		now, err := b.Machines(ctx)
		if err != nil {
			return err
		}
		if !first {
			for _, e := range changes(before, now) {
				on(e)
			}
		}
		before = now
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(compareEvery):
		}
	}
}

// changes are the events that lead from one list of machines to another.
func changes(before, now []api.Machine) (out []api.MachineEvent) {
	at := time.Now()
	find := func(list []api.Machine, id string) *api.Machine {
		for i := range list {
			if list[i].ID == id {
				return &list[i]
			}
		}
		return nil
	}
	for _, m := range before {
		if find(now, m.ID) == nil {
			out = append(out, api.MachineEvent{Time: at, Machine: m.Name, Kind: "undefined"})
		}
	}
	for _, m := range now {
		old := find(before, m.ID)
		if old == nil {
			out = append(out, api.MachineEvent{Time: at, Machine: m.Name, Kind: "defined"})
			old = &api.Machine{State: api.Defined}
		}
		if m.Run != nil && (old.Run == nil || old.Run.PID != m.Run.PID) {
			out = append(out, api.MachineEvent{Time: at, Machine: m.Name, Kind: "started", Reason: string(m.Run.Accel)})
		}
		if m.State != old.State && m.State != api.Starting && m.State != api.Defined {
			e := api.MachineEvent{Time: at, Machine: m.Name, Kind: string(m.State)}
			if m.State == api.Paused {
				e.Reason = m.PauseReason
			}
			if m.Run == nil && m.Exit != nil {
				e.Reason = m.Exit.Reason
			}
			out = append(out, e)
		}
	}
	return out
}
