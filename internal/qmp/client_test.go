package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": ["oob"]}}`

// request is a command as the fake server sees it.
type request struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments"`
	ID        json.RawMessage `json:"id"`
}

// server is the other end of a client's connection.
type server struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Scanner
}

func (s *server) send(line string) {
	s.t.Helper()
	if _, err := s.conn.Write([]byte(line + "\r\n")); err != nil {
		s.t.Errorf("fake server: %v", err)
	}
}

func (s *server) receive() (request, bool) {
	var r request
	if !s.in.Scan() {
		return r, false
	}
	if err := json.Unmarshal(s.in.Bytes(), &r); err != nil {
		s.t.Errorf("fake server: %q: %v", s.in.Text(), err)
	}
	return r, true
}

// negotiate greets and answers qmp_capabilities.
func (s *server) negotiate() {
	s.t.Helper()
	s.send(greeting)
	r, ok := s.receive()
	if !ok || r.Execute != "qmp_capabilities" {
		s.t.Errorf("first command is %q", r.Execute)
		return
	}
	s.send(fmt.Sprintf(`{"return": {}, "id": %s}`, r.ID))
}

// connect returns a client whose server runs script after the negotiation.
func connect(t *testing.T, script func(*server)) *Client {
	t.Helper()
	near, far := net.Pipe()
	s := &server{t, far, bufio.NewScanner(far)}
	var wg sync.WaitGroup
	wg.Go(func() {
		defer func() { _ = far.Close() }()
		s.negotiate()
		script(s)
	})
	c, err := New(t.Context(), near)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
	return c
}

func TestExecute(t *testing.T) {
	c := connect(t, func(s *server) {
		for {
			r, ok := s.receive()
			if !ok {
				return
			}
			switch r.Execute {
			case "echo":
				s.send(fmt.Sprintf(`{"return": %s, "id": %s}`, r.Arguments, r.ID))
			default:
				s.send(fmt.Sprintf(`{"error": {"class": "CommandNotFound", "desc": "no such thing"}, "id": %s}`, r.ID))
			}
		}
	})
	if got := c.Version().String(); got != "7.2.22" || c.Version().Package != "Debian" {
		t.Errorf("version %s %q", got, c.Version().Package)
	}
	var got map[string]int
	if err := c.Execute(t.Context(), "echo", map[string]int{"n": 7}, &got); err != nil || got["n"] != 7 {
		t.Errorf("echo: %v, %v", got, err)
	}
	err := c.Execute(t.Context(), "nothing", nil, nil)
	var qe *Error
	if !errors.As(err, &qe) || qe.Class != "CommandNotFound" || qe.Command != "nothing" || qe.Desc != "no such thing" {
		t.Errorf("unknown command: %#v", err)
	}
	if err := c.Execute(t.Context(), "echo", map[string]int{"n": 1}, new(string)); err == nil {
		t.Error("an answer of another type was decoded")
	}
}

// TestConcurrent lets the server answer in reverse order, in the middle of
// events: each caller must get its own answer.
func TestConcurrent(t *testing.T) {
	const callers = 32
	c := connect(t, func(s *server) {
		var all []request
		for range callers {
			r, ok := s.receive()
			if !ok {
				t.Error("a command did not arrive")
				return
			}
			all = append(all, r)
		}
		for i := len(all) - 1; i >= 0; i-- {
			s.send(`{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "TICK"}`)
			s.send(fmt.Sprintf(`{"return": %s, "id": %s}`, all[i].Arguments, all[i].ID))
		}
	})
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			var got struct{ N int }
			if err := c.Execute(t.Context(), "echo", map[string]int{"n": i}, &got); err != nil || got.N != i {
				t.Errorf("caller %d: %d, %v", i, got.N, err)
			}
		})
	}
	wg.Wait()
}

func TestEvents(t *testing.T) {
	c := connect(t, func(s *server) {
		for {
			r, ok := s.receive()
			if !ok {
				return
			}
			for i := range 10 {
				s.send(fmt.Sprintf(`{"timestamp": {"seconds": 5, "microseconds": 250000}, "event": "E%d", "data": {"n": %d}}`, i, i))
			}
			s.send(fmt.Sprintf(`{"return": {}, "id": %s}`, r.ID))
		}
	})
	all, few := c.Subscribe(100), c.Subscribe(3)
	gone := c.Subscribe(1)
	gone.Close()
	gone.Close()
	if err := c.Execute(t.Context(), "go", nil, nil); err != nil {
		t.Fatal(err)
	}
	if n := len(all.Events()); n != 10 || all.Lost() != 0 {
		t.Errorf("%d events, %d lost", n, all.Lost())
	}
	e := <-all.Events()
	if e.Name != "E0" || string(e.Data) != `{"n": 0}` || !e.Time.Equal(time.Unix(5, 250e6)) {
		t.Errorf("first event %+v", e)
	}
	// The one who does not listen lost the oldest and stopped nobody.
	if few.Lost() != 7 {
		t.Errorf("lost %d events, want 7", few.Lost())
	}
	if e := <-few.Events(); e.Name != "E7" {
		t.Errorf("oldest kept event is %s, want E7", e.Name)
	}
	if _, open := <-gone.Events(); open {
		t.Error("a closed subscription got an event")
	}
}

// TestDisconnect: callers and subscribers learn of the end, with its reason.
func TestDisconnect(t *testing.T) {
	c := connect(t, func(s *server) {
		if _, ok := s.receive(); ok {
			s.send(`{"timestamp": {"seconds": 1, "microseconds": 0}, "event": "LAST"}`)
		}
	})
	sub := c.Subscribe(4)
	if err := c.Execute(t.Context(), "quit", nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("command under way: %v", err)
	}
	<-c.Done()
	var names []string
	for e := range sub.Events() {
		names = append(names, e.Name)
	}
	if strings.Join(names, " ") != "LAST" {
		t.Errorf("events %q, want LAST", names)
	}
	if err := c.Execute(t.Context(), "more", nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("command after the end: %v", err)
	}
	if _, open := <-c.Subscribe(1).Events(); open {
		t.Error("event after the end")
	}
	if c.Err() == nil {
		t.Error("no reason for the end")
	}
}

func TestCancel(t *testing.T) {
	release := make(chan struct{})
	c := connect(t, func(s *server) {
		slow, _ := s.receive()
		<-release
		s.send(fmt.Sprintf(`{"return": {"late": true}, "id": %s}`, slow.ID))
		next, _ := s.receive()
		s.send(fmt.Sprintf(`{"return": {"late": false}, "id": %s}`, next.ID))
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.Execute(ctx, "slow", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cancelled command: %v", err)
	}
	close(release)
	// The late answer goes to nobody, least of all to the next caller.
	var got struct{ Late bool }
	if err := c.Execute(t.Context(), "next", nil, &got); err != nil || got.Late {
		t.Errorf("next command: %+v, %v", got, err)
	}
}

func TestBadServer(t *testing.T) {
	for name, first := range map[string]string{
		"garbage":      "hello\n",
		"no greeting":  `{"return": {}}`,
		"end":          "",
		"endless":      `{"QMP": "` + strings.Repeat("x", MaxMessage),
		"refuses":      greeting + `{"error": {"class": "GenericError", "desc": "no"}, "id": "1"}`,
		"wrong answer": greeting + `{"error": {"class": "GenericError", "desc": "unreadable"}}`,
	} {
		t.Run(name, func(t *testing.T) {
			near, far := net.Pipe()
			var wg sync.WaitGroup
			wg.Go(func() {
				defer func() { _ = far.Close() }()
				// The client may hang up in the middle.
				_, _ = far.Write([]byte(first))
				if strings.HasPrefix(first, greeting) {
					_, _ = bufio.NewReader(far).ReadString('\n')
				}
			})
			if c, err := New(t.Context(), near); err == nil {
				t.Error("negotiated")
				_ = c.Close()
			}
			wg.Wait()
		})
	}
}

// TestOversizedLater: a message over the bound ends a connection that worked.
func TestOversizedLater(t *testing.T) {
	c := connect(t, func(s *server) {
		if _, ok := s.receive(); ok {
			_, _ = s.conn.Write([]byte(`{"return": "` + strings.Repeat("x", MaxMessage+1)))
		}
	})
	err := c.Execute(t.Context(), "dump", nil, nil)
	if !errors.Is(err, ErrClosed) || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("oversized answer: %v", err)
	}
}

// TestSilentServer: a monitor that another client holds accepts and says
// nothing.
func TestSilentServer(t *testing.T) {
	near, far := net.Pipe()
	defer func() { _ = far.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := New(ctx, near)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "another client") {
		t.Errorf("silent server: %v", err)
	}
}
