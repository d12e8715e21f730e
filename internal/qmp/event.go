package qmp

import (
	"encoding/json"
	"sync/atomic"
	"time"
)

// Event is something that happened at the server.
type Event struct {
	Name string
	Data json.RawMessage // nil or a JSON object
	Time time.Time
}

// Subscription receives a client's events.
type Subscription struct {
	client *Client
	ch     chan Event
	lost   atomic.Uint64
}

// Subscribe returns a subscription to all events from now on that holds up to
// buffer (at least 1) of them. When it is full the oldest is dropped, so that
// a slow subscriber never stops the others.
func (c *Client) Subscribe(buffer int) *Subscription {
	s := &Subscription{client: c, ch: make(chan Event, max(buffer, 1))}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.subs == nil { // the connection has ended
		close(s.ch)
		return s
	}
	c.subs[s] = struct{}{}
	return s
}

// Events returns the channel of events. It is closed at the connection's end,
// after the last event, and by Close.
func (s *Subscription) Events() <-chan Event { return s.ch }

// Lost returns how many events were dropped because nobody took them.
func (s *Subscription) Lost() uint64 { return s.lost.Load() }

// Close ends the subscription. A second Close does nothing.
func (s *Subscription) Close() {
	c := s.client
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.subs[s]; ok {
		delete(c.subs, s)
		close(s.ch)
	}
}

// publish hands an event to every subscriber without waiting for any.
func (c *Client) publish(m message) {
	e := Event{
		Name: m.Event,
		Data: m.Data,
		Time: time.Unix(m.Timestamp.Seconds, m.Timestamp.Microseconds*1000),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.subs {
		s.put(e)
	}
}

// put makes room if it must. Only publish sends, under the client's lock, so
// the room that it makes is its own.
func (s *Subscription) put(e Event) {
	for {
		select {
		case s.ch <- e:
			return
		default:
		}
		select {
		case <-s.ch:
			s.lost.Add(1)
		default:
		}
	}
}

func (c *Client) endSubscriptions() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.subs {
		close(s.ch)
	}
	c.subs = nil
}
