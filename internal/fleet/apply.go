package fleet

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/lamina-vm/lamina/internal/api"
)

// Host is what a fleet's machines are on. Its methods are called beside each
// other, but for Look and Create. What they begin they end when ctx does, or they
// leave it so that the next look shows it.
type Host interface {
	// Look returns all machines of the host, also those that are not the fleet's.
	Look(ctx context.Context) ([]Member, error)
	// Room says what keeps so many machines from being made now: it is asked before
	// others are stopped for them.
	Room(ctx context.Context, machines int) error
	// Create makes machines, which are not started: all of them, or none.
	Create(ctx context.Context, seats []Seat) error
	// Start starts a machine; one that runs already is no error.
	Start(ctx context.Context, machine string) error
	// Await waits until a machine is healthy, or returns why it is not.
	Await(ctx context.Context, machine string, h api.Health) error
	// Stop ends a machine; one that does not run is no error. hard does not
	// ask its guest.
	Stop(ctx context.Context, machine string, hard bool) error
	// Remove removes a machine that does not run; one that is not there is no
	// error.
	Remove(ctx context.Context, machine string) error
	// Relabel gives a machine other labels in the place of all that it has.
	Relabel(ctx context.Context, machine string, labels map[string]string) error
}

// StepError is why a step of an apply failed.
type StepError struct {
	Step api.FleetStep
	Err  error
}

func (e *StepError) Error() string {
	return fmt.Sprintf("%s %s: %v", e.Step.Do, e.Step.Machine, e.Err)
}

func (e *StepError) Unwrap() error { return e.Err }

// atOnce is how many steps of a wave are under way at one time.
const atOnce = 64

// Apply brings the host to the goal. It ends when all machines are as they are to
// be, or with the first wave in which a step fails: the machines that were not
// replaced yet stay, and so does the one that failed. tell is called for each
// step that begins, one call at a time. When ctx ends, Apply does, at the end of
// the steps that are under way; another Apply goes on from there.
func (g *Goal) Apply(ctx context.Context, h Host, tell func(api.Event)) error {
	var told sync.Mutex
	say := func(e api.Event) {
		told.Lock()
		defer told.Unlock()
		tell(e)
	}
	most := 0
	for n := 0; ; n++ {
		there, err := h.Look(ctx)
		if err != nil {
			return err
		}
		if n == 0 {
			p, err := g.Plan(there)
			if err != nil {
				return err
			}
			// As many rounds as planned, and some more for what changes meanwhile.
			most = 2*len(p.Steps) + 10
		}
		r, err := g.next(there)
		if err != nil || len(r) == 0 {
			return err
		}
		if n > most {
			return fmt.Errorf("fleet %s does not settle: after %d rounds %s is still to be done for %s (%s): find out who changes or ends its machines, and apply it again",
				g.Fleet.Name, n, r[0].Do, r[0].Machine, r[0].Why)
		}
		if made := len(r.of(DoCreate)); made > 0 {
			if err := h.Room(ctx, made); err != nil {
				return err
			}
		}
		for _, do := range waves {
			if err := g.wave(ctx, h, do, r.of(do), there, say); err != nil {
				return err
			}
		}
	}
}

// wave carries out steps of one kind beside each other.
func (g *Goal) wave(ctx context.Context, h Host, do string, steps []api.FleetStep, there []Member, tell func(api.Event)) error {
	if len(steps) == 0 {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if do == DoCreate {
		seats := make([]Seat, 0, len(steps))
		for _, s := range steps {
			tell(stepEvent(s))
			seats = append(seats, g.seat(s.Group, s.Machine, there))
		}
		if err := h.Create(ctx, seats); err != nil {
			if len(steps) == 1 {
				return &StepError{steps[0], err}
			}
			return fmt.Errorf("create %d machines, %s to %s: %w", len(steps), steps[0].Machine, steps[len(steps)-1].Machine, err)
		}
		return nil
	}
	var group sync.WaitGroup
	slots := make(chan struct{}, g.atOnce)
	errs := make([]error, len(steps))
	for i, s := range steps {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			if ctx.Err() != nil {
				errs[i] = context.Cause(ctx)
				return
			}
			tell(stepEvent(s))
			if err := g.step(ctx, h, s, there); err != nil {
				errs[i] = &StepError{s, err}
			}
		})
	}
	group.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return several(errs)
}

func (g *Goal) step(ctx context.Context, h Host, s api.FleetStep, there []Member) error {
	switch s.Do {
	case DoStop:
		// A guest whose boot has stopped does not hear the power button.
		return h.Stop(ctx, s.Machine, broken(there, s.Machine))
	case DoRemove:
		return h.Remove(ctx, s.Machine)
	case DoRelabel:
		return h.Relabel(ctx, s.Machine, g.seats[s.Machine].Labels(g.Fleet.Name))
	case DoStart:
		return h.Start(ctx, s.Machine)
	case DoAwait:
		for _, gr := range g.groups {
			if gr.Name == s.Group {
				return h.Await(ctx, s.Machine, gr.Health)
			}
		}
	}
	return errors.New("no such step")
}

func broken(there []Member, name string) bool {
	for _, m := range there {
		if m.Name == name {
			return m.Broken
		}
	}
	return false
}

// stepEvent tells of a step that begins.
func stepEvent(s api.FleetStep) api.Event {
	words := map[string]string{DoStop: "stopping", DoRemove: "removing", DoRelabel: "labelling",
		DoCreate: "making", DoStart: "starting", DoAwait: "waiting for"}
	return api.Event{Step: s.Do, Machine: s.Machine, Text: words[s.Do] + " " + s.Machine}
}

// several is the error of several steps: the first ones, and how many more.
func several(errs []error) error {
	const most = 5
	var list []error
	for _, err := range errs {
		if err != nil {
			list = append(list, err)
		}
	}
	if len(list) < 2 {
		return errors.Join(list...)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d machines: ", len(list))
	for i, err := range list[:min(most, len(list))] {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(err.Error())
	}
	if len(list) > most {
		fmt.Fprintf(&b, "; and %d more", len(list)-most)
	}
	return &severalError{b.String(), list[0]}
}

// severalError is the first of several errors that speaks for all.
type severalError struct {
	text  string
	first error
}

func (e *severalError) Error() string { return e.text }
func (e *severalError) Unwrap() error { return e.first }
