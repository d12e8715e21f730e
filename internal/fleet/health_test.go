package fleet

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/vm"
)

// listen serves TCP with f and returns the forward that leads there.
func listen(t *testing.T, f func(net.Conn)) vm.Forward {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go f(c)
		}
	}()
	return fw(l.Addr().(*net.TCPAddr).Port, 80)
}

func TestProbe(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/moved":
			http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
		case "/up":
			_, _ = io.WriteString(w, strings.Repeat("x", 1<<20))
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(web.Close)
	// A proxy of the host is not asked.
	t.Setenv("http_proxy", "http://192.0.2.1:1")
	port := fw(web.Listener.Addr().(*net.TCPAddr).Port, 80)
	every := port
	every.HostAddr = "0.0.0.0"
	closed := listen(t, func(c net.Conn) { _ = c.Close() })
	silent := listen(t, func(c net.Conn) { _, _ = c.Read(make([]byte, 1)); _ = c.Close() })
	banner := listen(t, func(c net.Conn) {
		_, _ = io.WriteString(c, "SSH-2.0\r\n")
		_, _ = c.Read(make([]byte, 1))
		_ = c.Close()
	})
	reached := func(ok bool) func(context.Context, int) (bool, error) {
		return func(_ context.Context, port int) (bool, error) {
			if port != silent.HostPort {
				return false, errors.New("asked of another port")
			}
			return ok, nil
		}
	}
	agent := func(err error) func(context.Context) error { return func(context.Context) error { return err } }
	for name, c := range map[string]struct {
		h    api.Health
		v    View
		want string // "" is healthy
	}{
		"none":              {api.Health{Check: CheckNone}, View{State: api.Starting}, ""},
		"none, stopped":     {api.Health{Check: CheckNone}, View{State: api.Stopped}, "it is stopped"},
		"paused":            {api.Health{Check: CheckNone}, View{State: api.Paused}, "it is paused"},
		"login":             {api.Health{Check: CheckLogin}, View{State: api.Login}, ""},
		"no login":          {api.Health{Check: CheckLogin}, View{State: api.Starting}, "not at its login prompt"},
		"stuck":             {api.Health{Check: CheckLogin}, View{State: api.Stuck, Problem: "no disk"}, "no disk"},
		"ready":             {api.Health{Check: CheckReady}, View{State: api.Login, Ready: true}, ""},
		"ready, cold":       {api.Health{Check: CheckReady}, View{State: api.Login, Confirm: agent(nil)}, ""},
		"ready, booting":    {api.Health{Check: CheckReady}, View{State: api.Starting, Confirm: agent(nil)}, "not confirmed"},
		"not itself":        {api.Health{Check: CheckReady}, View{State: api.Login, Confirm: agent(errors.New("it is web-2"))}, "not confirmed its identity: it is web-2"},
		"agent, renewing":   {api.Health{Check: CheckAgent}, View{State: api.Renewing, Agent: agent(nil)}, "becoming itself"},
		"not ready":         {api.Health{Check: CheckReady}, View{State: api.Login}, "not confirmed"},
		"agent":             {api.Health{Check: CheckAgent}, View{State: api.Running, Agent: agent(nil)}, ""},
		"agent, silent":     {api.Health{Check: CheckAgent}, View{State: api.Running, Agent: agent(errors.New("late"))}, "does not answer: late"},
		"no agent":          {api.Health{Check: CheckAgent}, View{State: api.Running}, "no way to an agent"},
		"http":              {api.Health{Check: CheckHTTP, Port: 80, Path: "/up"}, View{State: api.Running, Forwards: []vm.Forward{port}}, ""},
		"http, every addr":  {api.Health{Check: CheckHTTP, Port: 80, Path: "/up"}, View{State: api.Running, Forwards: []vm.Forward{every}}, ""},
		"http, moved":       {api.Health{Check: CheckHTTP, Port: 80, Path: "/moved"}, View{State: api.Running, Forwards: []vm.Forward{port}}, ""},
		"http, not found":   {api.Health{Check: CheckHTTP, Port: 80, Path: "/x"}, View{State: api.Running, Forwards: []vm.Forward{port}}, "its port 80 answers /x with 404"},
		"http, closed":      {api.Health{Check: CheckHTTP, Port: 80, Path: "/x"}, View{State: api.Running, Forwards: []vm.Forward{closed}}, "its port 80 does not answer /x: "},
		"http, no port":     {api.Health{Check: CheckHTTP, Port: 81, Path: "/x"}, View{State: api.Running, Forwards: []vm.Forward{port}}, "port 81 is not forwarded"},
		"tcp, banner":       {api.Health{Check: CheckTCP, Port: 80}, View{State: api.Running, Forwards: []vm.Forward{banner}, Reached: reached(false)}, ""},
		"tcp, closed":       {api.Health{Check: CheckTCP, Port: 80}, View{State: api.Running, Forwards: []vm.Forward{closed}}, "its port 80 is closed in the guest"},
		"tcp, taken":        {api.Health{Check: CheckTCP, Port: 80}, View{State: api.Running, Forwards: []vm.Forward{silent}, Reached: reached(true)}, ""},
		"tcp, not taken":    {api.Health{Check: CheckTCP, Port: 80}, View{State: api.Running, Forwards: []vm.Forward{silent}, Reached: reached(false)}, "the guest does not answer"},
		"tcp, not known":    {api.Health{Check: CheckTCP, Port: 80}, View{State: api.Running, Forwards: []vm.Forward{silent}}, ""},
		"tcp, udp is other": {api.Health{Check: CheckTCP, Port: 80}, View{State: api.Running, Forwards: []vm.Forward{{Proto: "udp", GuestPort: 80}}}, "not forwarded"},
	} {
		t.Run(name, func(t *testing.T) {
			err := Probe(t.Context(), c.h, c.v)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// TestAwait: what ends the waiting, and what does not.
func TestAwait(t *testing.T) {
	h := api.Health{Check: CheckLogin, Timeout: 50 * time.Millisecond, Interval: time.Millisecond}
	long := h
	long.Timeout = time.Hour
	started := View{State: api.Starting, StartedAt: time.Now()}
	for name, c := range map[string]struct {
		h     api.Health
		views []View // the last one again and again
		want  string
	}{
		"at once":       {long, []View{{State: api.Login}}, ""},
		"in the end":    {long, []View{{State: api.Starting}, {State: api.Starting}, {State: api.Login}}, ""},
		"started again": {long, []View{{State: api.Starting}, {State: api.Crashed}, {State: api.Starting}, {State: api.Login}}, ""},
		"ended":         {long, []View{{State: api.Starting}, {State: api.Stopped}}, "it has ended: it is stopped"},
		"stuck":         {long, []View{{State: api.Starting}, {State: api.Stuck, Problem: "no boot loader"}}, "its boot has stopped: no boot loader"},
		"late":          {h, []View{started}, "it is not healthy (login) 50ms after its start: it is not at its login prompt"},
		// One that is late already is asked some times all the same.
		"late, and then there": {api.Health{Check: CheckLogin, Timeout: time.Hour, Interval: 200 * time.Millisecond}, []View{{State: api.Starting, StartedAt: time.Unix(1, 0)}, {State: api.Login}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var n atomic.Int64
			err := Await(t.Context(), c.h, func(context.Context) (View, error) {
				i := int(n.Add(1)) - 1
				return c.views[min(i, len(c.views)-1)], nil
			})
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(20*time.Millisecond, func() { cancel(errDead) })
	if err := Await(ctx, long, func(context.Context) (View, error) { return started, nil }); !errors.Is(err, errDead) {
		t.Errorf("cancelled: %v", err)
	}
	if err := Await(t.Context(), long, func(context.Context) (View, error) { return View{}, errDead }); !errors.Is(err, errDead) {
		t.Errorf("gone: %v", err)
	}
}
