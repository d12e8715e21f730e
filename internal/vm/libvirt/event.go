package libvirt

import (
	"context"
	"errors"
	"fmt"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// EventKind says what happened to a domain.
type EventKind string

// The kinds of events.
const (
	EventDefined     EventKind = "defined"
	EventUndefined   EventKind = "undefined"
	EventStarted     EventKind = "started"
	EventSuspended   EventKind = "suspended"
	EventResumed     EventKind = "resumed"
	EventStopped     EventKind = "stopped"
	EventShutdown    EventKind = "shutdown" // QEMU has it; EventStopped follows
	EventPMSuspended EventKind = "pmsuspended"
	EventCrashed     EventKind = "crashed" // the guest panicked
	EventRebooted    EventKind = "rebooted"
	EventRemoved     EventKind = "device removed"
	EventNotRemoved  EventKind = "device removal failed"
)

var lifecycle = map[int32]EventKind{
	int32(golibvirt.DomainEventDefined):     EventDefined,
	int32(golibvirt.DomainEventUndefined):   EventUndefined,
	int32(golibvirt.DomainEventStarted):     EventStarted,
	int32(golibvirt.DomainEventSuspended):   EventSuspended,
	int32(golibvirt.DomainEventResumed):     EventResumed,
	int32(golibvirt.DomainEventStopped):     EventStopped,
	int32(golibvirt.DomainEventShutdown):    EventShutdown,
	int32(golibvirt.DomainEventPmsuspended): EventPMSuspended,
	int32(golibvirt.DomainEventCrashed):     EventCrashed,
}

// StopReason says why a domain stopped (virDomainEventStoppedDetailType).
type StopReason int

// The reasons.
const (
	StopShutdown     StopReason = 0 // the guest powered off, or rebooted where that ends it
	StopDestroyed    StopReason = 1
	StopCrashed      StopReason = 2 // QEMU ended by itself, or on_crash
	StopMigrated     StopReason = 3
	StopSaved        StopReason = 4
	StopFailed       StopReason = 5 // the start did not succeed
	StopFromSnapshot StopReason = 6
)

// String is the reason in a few words.
func (r StopReason) String() string {
	names := [...]string{"shut down", "destroyed", "crashed", "migrated", "saved", "failed", "reverted to a snapshot"}
	if r < 0 || int(r) >= len(names) {
		return fmt.Sprintf("stopped for reason %d", int(r))
	}
	return names[r]
}

// Event is what happened to a domain.
type Event struct {
	Kind   EventKind
	Name   string // of the domain
	UUID   string
	Detail int // of lifecycle events: libvirt's detail of that kind
	// Reason is that of EventStopped.
	Reason StopReason
	// Alias is the device's, of EventRemoved and EventNotRemoved.
	Alias string
}

// Events calls each from a goroutine of its own with what happens to any domain, in
// order for each of the three streams (lifecycle and reboots, removals), until ctx is
// done or the connection ends; done is closed then. It returns when libvirt
// has the subscription, so that what happens after is not missed.
func (c *Conn) Events(ctx context.Context, each func(Event)) (done <-chan struct{}, err error) {
	ctx, cancel := context.WithCancel(ctx)
	merged := make(chan Event)
	var streams []<-chan any
	for _, id := range []golibvirt.DomainEventID{
		golibvirt.DomainEventIDLifecycle, golibvirt.DomainEventIDReboot,
		golibvirt.DomainEventIDDeviceRemoved, golibvirt.DomainEventIDDeviceRemovalFailed,
	} {
		s, err := c.subscribe(ctx, id)
		if err != nil {
			cancel()
			for _, s := range streams {
				drain(s)
			}
			return nil, err
		}
		streams = append(streams, s)
	}
	if err := c.begin(); err != nil {
		cancel()
		return nil, err
	}
	ends := make(chan struct{}, len(streams))
	for _, s := range streams {
		go func() {
			for e := range s {
				if event, ok := decode(e); ok {
					merged <- event
				}
			}
			ends <- struct{}{}
		}()
	}
	finished := make(chan struct{})
	go func() {
		defer c.running.Done()
		defer close(finished)
		defer cancel()
		for left := len(streams); left > 0; {
			select {
			case e := <-merged:
				each(e)
			case <-ends:
				left--
			}
		}
	}()
	return finished, nil
}

// subscribe asks for one kind of events.
func (c *Conn) subscribe(ctx context.Context, id golibvirt.DomainEventID) (<-chan any, error) {
	return call(ctx, c, "subscribe to events", func(l *golibvirt.Libvirt) (<-chan any, error) {
		return l.SubscribeEvents(ctx, id, nil)
	})
}

// drain takes what a cancelled subscription still hands out, so that it ends.
func drain(s <-chan any) {
	for range s { //nolint:revive // nothing is wanted of them
	}
}

// decode turns an event of the RPC library into ours.
func decode(e any) (Event, bool) {
	of := func(kind EventKind, dom golibvirt.Domain) Event {
		return Event{Kind: kind, Name: dom.Name, UUID: formatUUID(dom.UUID)}
	}
	switch e := e.(type) {
	case *golibvirt.DomainEventCallbackLifecycleMsg:
		kind, ok := lifecycle[e.Msg.Event]
		event := of(kind, e.Msg.Dom)
		event.Detail = int(e.Msg.Detail)
		if kind == EventStopped {
			event.Reason = StopReason(e.Msg.Detail)
		}
		return event, ok
	case *golibvirt.DomainEventCallbackRebootMsg:
		return of(EventRebooted, e.Msg.Dom), true
	case *golibvirt.DomainEventCallbackDeviceRemovedMsg:
		event := of(EventRemoved, e.Msg.Dom)
		event.Alias = e.Msg.DevAlias
		return event, true
	case *golibvirt.DomainEventCallbackDeviceRemovalFailedMsg:
		event := of(EventNotRemoved, e.Dom)
		event.Alias = e.DevAlias
		return event, true
	}
	return Event{}, false
}

// WaitStopped blocks until the domain does not run and returns why; at once
// where it does not run now.
func (d *Domain) WaitStopped(ctx context.Context) (StopReason, error) {
	w, err := d.Watch(ctx)
	if err != nil {
		return 0, err
	}
	defer w.Close()
	return w.WaitStopped(ctx)
}

// Watch is a subscription to one domain's events, begun before a start whose
// end is not to be missed.
type Watch struct {
	domain *Domain
	cancel context.CancelFunc
	events chan Event
	done   <-chan struct{}
}

// watchBuffer is more than a domain has events while nobody looks.
const watchBuffer = 64

// Watch subscribes to the domain's events. The caller closes it.
func (d *Domain) Watch(ctx context.Context) (*Watch, error) {
	sub, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w := &Watch{domain: d, cancel: cancel, events: make(chan Event, watchBuffer)}
	uuid := d.UUID()
	done, err := d.conn.Events(sub, func(e Event) {
		if e.UUID != uuid {
			return
		}
		select {
		case w.events <- e:
		case <-sub.Done():
		}
	})
	if err != nil {
		cancel()
		return nil, err
	}
	w.done = done
	return w, nil
}

// Events is the domain's events; it is not closed, see [Watch.Done].
func (w *Watch) Events() <-chan Event { return w.events }

// Done is closed when no more events come, as the connection has ended.
func (w *Watch) Done() <-chan struct{} { return w.done }

// Close ends the subscription and returns when its goroutines are gone.
func (w *Watch) Close() {
	w.cancel()
	<-w.done
}

// WaitStopped blocks until the domain does not run and returns why.
func (w *Watch) WaitStopped(ctx context.Context) (StopReason, error) {
	state, reason, err := w.domain.State(ctx)
	switch {
	case errors.Is(err, ErrNotFound):
		state = ShutOff // a transient one that has gone; an event may say why
	case err != nil:
		return 0, err
	}
	for {
		if !state.Active() {
			select { // the event says it as it was
			case e := <-w.events:
				if e.Kind == EventStopped {
					return e.Reason, nil
				}
				continue
			default:
				return stopReason(reason), nil
			}
		}
		select {
		case e := <-w.events:
			if e.Kind == EventStopped {
				return e.Reason, nil
			}
		case <-w.done:
			return 0, fmt.Errorf("wait for domain %q: %w", w.domain.Name(), ErrClosed)
		case <-ctx.Done():
			return 0, fmt.Errorf("wait for domain %q: %w", w.domain.Name(), ctx.Err())
		}
	}
}

// stopReason is the event's reason for a reason of the state ShutOff
// (virDomainShutoffReason), which counts from one more.
func stopReason(shutoff int) StopReason {
	if shutoff >= 1 && shutoff <= 7 {
		return StopReason(shutoff - 1)
	}
	return StopShutdown
}
