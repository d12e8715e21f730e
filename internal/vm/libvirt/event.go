package libvirt

import (
	"context"
	"errors"
	"fmt"
	"time"

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
	StopUnknown      StopReason = -1 // it had gone before anyone looked
)

// String is the reason in a few words.
func (r StopReason) String() string {
	names := [...]string{"shut down", "destroyed", "crashed", "migrated", "saved", "failed", "reverted to a snapshot"}
	if r == StopUnknown {
		return "stopped"
	}
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

// Events calls each from a goroutine of its own with what happens to any domain,
// in order for each of its sources (lifecycle, reboots, removals), until ctx is
// done or the connection ends; done is closed then. It returns when libvirt
// has the subscription, so that what happens after is not missed.
//
// It has a connection of its own, as libvirt takes each kind of subscription
// once from a connection.
func (c *Conn) Events(ctx context.Context, each func(Event)) (done <-chan struct{}, err error) {
	if err := c.begin(); err != nil {
		return nil, fmt.Errorf("subscribe to events: %w", err)
	}
	own, err := connect(ctx, c.place)
	if err != nil {
		c.running.Done()
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	streams, err := own.subscribe(ctx)
	if err != nil {
		cancel()
		c.running.Done()
		return nil, errors.Join(err, own.Close())
	}
	finished := make(chan struct{})
	go func() {
		defer c.running.Done()
		defer close(finished)
		own.relay(ctx, streams, c.Done(), each)
		cancel()
		_ = own.Close() // nothing is asked of it any more
		for _, s := range streams {
			drain(s)
		}
	}()
	return finished, nil
}

// subscribe asks for the kinds of events that there are.
func (c *Conn) subscribe(ctx context.Context) ([]<-chan any, error) {
	var streams []<-chan any
	for _, id := range []golibvirt.DomainEventID{
		golibvirt.DomainEventIDLifecycle, golibvirt.DomainEventIDReboot,
		golibvirt.DomainEventIDDeviceRemoved, golibvirt.DomainEventIDDeviceRemovalFailed,
	} {
		s, err := call(ctx, c, "subscribe to events", func(l *golibvirt.Libvirt) (<-chan any, error) {
			return l.SubscribeEvents(ctx, id, nil)
		})
		if err != nil {
			return nil, err // the caller's cancel and Close end the others
		}
		streams = append(streams, s)
	}
	return streams, nil
}

// relay hands on events until ctx, the connection or the one that it serves
// ends.
func (c *Conn) relay(ctx context.Context, streams []<-chan any, served <-chan struct{}, each func(Event)) {
	life, reboots, removed, stays := streams[0], streams[1], streams[2], streams[3]
	for {
		var e any
		select {
		case e = <-life:
		case e = <-reboots:
		case e = <-removed:
		case e = <-stays:
		case <-ctx.Done():
			return
		case <-served:
			return
		}
		if e == nil { // closed: the connection has ended
			return
		}
		if event, ok := decode(e); ok {
			each(event)
		}
	}
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
	var late <-chan time.Time
	switch {
	case errors.Is(err, ErrNotFound):
		// A transient one that has gone: the event that says why may be on its way.
		late = time.After(eventGrace)
	case err != nil:
		return 0, err
	case !state.Active():
		select { // the event says it as it was
		case e := <-w.events:
			if e.Kind == EventStopped {
				return e.Reason, nil
			}
		default:
		}
		return stopReason(reason), nil
	}
	for {
		select {
		case e := <-w.events:
			if e.Kind == EventStopped {
				return e.Reason, nil
			}
		case <-late:
			return StopUnknown, nil
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
	return StopUnknown
}
