package cli

import (
	"context"
	"errors"
	"runtime"
	"sync"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/client"
)

type startOptions struct {
	waitFlags
	heatFlags
	install bool
	json    bool
}

func newStart(a *app) *cobra.Command {
	var o startOptions
	cmd := &cobra.Command{
		Use:   "start NAME... [OPTIONS]",
		Short: "Start machines",
		Long: `Start machines, follow their boots, and say when they are at their login prompts.
Some are started at once, as many as the host has CPUs. Ctrl-C ends the waiting,
not the machines.

` + patternHelp,
		Example:           "  lamina start web\n  lamina start 'w-{01..10}' --no-wait",
		Args:              words("NAME..."),
		ValidArgsFunction: completeMachines(a, true),
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), a, args) },
	}
	o.waitFlags.register(cmd)
	o.heatFlags.register(cmd)
	cmd.Flags().BoolVar(&o.install, "install", false, "repeat an install phase that was interrupted")
	jsonFlag(cmd, &o.json)
	quietFlag(cmd, a)
	connectFlag(cmd, a)
	return cmd
}

func (o *startOptions) run(ctx context.Context, a *app, patterns []string) error {
	if err := errors.Join(o.waitFlags.check(), o.heatFlags.check()); err != nil {
		return err
	}
	c, list, err := a.selected(ctx, patterns)
	if err != nil {
		return err
	}
	req := api.StartRequest{NoWait: o.noWait, Timeout: o.timeout, Install: o.install}
	req.Warm, req.Wait = o.heat()
	return a.each(ctx, list, o.json, max(2, runtime.NumCPU()), func(ctx context.Context, m api.Machine) (api.Machine, error) {
		f := a.follow(m.Name)
		got, err := c.Start(ctx, m.Name, req, named(m.Name, f.event))
		f.end()
		if err != nil {
			return got, a.bootEnded(f, err)
		}
		if o.json {
			return got, nil
		}
		return got, a.reached(got, len(list) > 1)
	})
}

// named gives each event of an operation on one machine its name.
func named(name string, on client.EventFunc) client.EventFunc {
	return func(e api.Event) {
		e.Machine = name
		on(e)
	}
}

// each does one thing to many machines, some at once, and goes on where one
// fails. With asJSON it prints the machines that came out of it.
func (a *app) each(ctx context.Context, list []api.Machine, asJSON bool, atOnce int, do func(context.Context, api.Machine) (api.Machine, error)) error {
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		failed bool
		got    = make([]*api.Machine, len(list))
		slots  = make(chan struct{}, atOnce)
	)
	for i, m := range list {
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			r, err := do(ctx, m)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				got[i] = &r
				return
			}
			failed = true
			a.report(m.Name, err)
		})
	}
	wg.Wait()
	if asJSON {
		out := []api.Machine{}
		for _, m := range got {
			if m != nil {
				out = append(out, *m)
			}
		}
		if err := a.printJSON(out); err != nil {
			return err
		}
	}
	if ctx.Err() != nil && !failed {
		return context.Cause(ctx)
	}
	if failed {
		return silentError{}
	}
	return nil
}

// report says why something failed on one of many machines.
func (a *app) report(name string, err error) {
	if errors.Is(err, silentError{}) {
		return
	}
	a.say("lamina: %s: %v", name, err)
	var refused *api.Error
	if errors.As(err, &refused) && refused.Problem != nil {
		a.explain(refused.Problem)
	}
}
