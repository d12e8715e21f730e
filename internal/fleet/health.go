package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/vm"
)

// View is what a check looks at.
type View struct {
	State     api.MachineState
	StartedAt time.Time
	// Ready: the guest has confirmed its identity.
	Ready bool
	// Problem says why its boot has stopped, or why its identity is not
	// confirmed.
	Problem  string
	Forwards []vm.Forward // while it runs
	// Agent asks the agent in the guest; nil where there is no way to one.
	Agent func(context.Context) error
	// Confirm asks the guest, by its agent, whether it is who it is to be; nil where
	// there is no way to one.
	Confirm func(context.Context) error
	// Reached says, of a connection to a port of the host that leads to the
	// guest, whether the guest has taken it; nil where that is not known. QEMU's
	// user network takes every connection before it asks the guest.
	Reached func(ctx context.Context, hostPort int) (bool, error)
}

// Runs says whether a machine in that state executes, or is about to.
func Runs(s api.MachineState) bool {
	switch s {
	case api.Starting, api.Login, api.Running, api.Installing, api.Stuck, api.Paused, api.Renewing:
		return true
	}
	return false
}

// tryTimeout bounds one question to a guest.
const tryTimeout = 5 * time.Second

// Probe asks once whether a machine is healthy, nil, or why it is not. It takes
// at most some seconds.
func Probe(ctx context.Context, h api.Health, v View) error {
	if !Runs(v.State) {
		return fmt.Errorf("it is %s", v.State)
	}
	if v.State == api.Paused {
		return errors.New("it is paused")
	}
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	switch h.Check {
	case CheckNone:
		return nil
	case CheckReady:
		// One that was started warm confirms it by itself.
		if v.Ready {
			return nil
		}
		if v.State != api.Login || v.Confirm == nil {
			return errors.New(cmp.Or(v.Problem, "its guest has not confirmed its identity"))
		}
		if err := v.Confirm(ctx); err != nil {
			return fmt.Errorf("its guest has not confirmed its identity: %w", err)
		}
		return nil
	case CheckAgent:
		if v.Agent == nil {
			return errors.New("there is no way to an agent in its guest")
		}
		if v.State == api.Renewing {
			return errors.New("its guest is becoming itself") // which needs the agent
		}
		if err := v.Agent(ctx); err != nil {
			return fmt.Errorf("the agent in its guest does not answer: %w", err)
		}
		return nil
	case CheckTCP:
		return probeTCP(ctx, h.Port, v)
	case CheckHTTP:
		return probeHTTP(ctx, h.Port, h.Path, v)
	}
	if v.State != api.Login {
		return errors.New(cmp.Or(v.Problem, "it is not at its login prompt"))
	}
	return nil
}

// hostSide is where a TCP port of the guest is reached on the host.
func hostSide(port int, v View) (addr string, hostPort int, err error) {
	for _, f := range v.Forwards {
		if f.GuestPort == port && f.Proto != "udp" {
			addr := cmp.Or(f.HostAddr, "127.0.0.1")
			if addr == "0.0.0.0" {
				addr = "127.0.0.1"
			}
			return net.JoinHostPort(addr, strconv.Itoa(f.HostPort)), f.HostPort, nil
		}
	}
	return "", 0, fmt.Errorf("the guest's port %d is not forwarded", port)
}

// listens is how long a connection must stay open to count where it is not known
// whether the guest has taken it. One that the guest refuses is closed at once.
const listens = 500 * time.Millisecond

// probeTCP connects to a port of the guest.
func probeTCP(ctx context.Context, port int, v View) error {
	addr, hostPort, err := hostSide(port, v)
	if err != nil {
		return err
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("its port %d: %w", port, err)
	}
	defer func() { _ = c.Close() }() // nothing was sent
	if err := c.SetReadDeadline(time.Now().Add(listens)); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 1))
	var timeout net.Error
	if err != nil && !(errors.As(err, &timeout) && timeout.Timeout()) {
		return fmt.Errorf("its port %d is closed in the guest", port)
	}
	if err == nil || v.Reached == nil {
		return nil
	}
	taken, err := v.Reached(ctx, hostPort)
	if err == nil && !taken {
		err = errors.New("the guest does not answer")
	}
	if err != nil {
		return fmt.Errorf("its port %d: %w", port, err)
	}
	return nil
}

// probeHTTP asks for a page: any answer from 200 to 399 is healthy.
func probeHTTP(ctx context.Context, port int, path string, v View) error {
	addr, _, err := hostSide(port, v)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "lamina-fleet")
	// A proxy of the host leads elsewhere, and a kept connection to what was there.
	client := http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("its port %d does not answer %s: %w", port, path, plainHTTP(err))
	}
	_ = res.Body.Close() // what it holds is not asked
	if res.StatusCode < 200 || res.StatusCode > 399 {
		return fmt.Errorf("its port %d answers %s with %s", port, path, res.Status)
	}
	return nil
}

// plainHTTP leaves out the URL, which the caller says better.
func plainHTTP(err error) error {
	if u := errors.Unwrap(err); u != nil {
		return u
	}
	return err
}

// Late says whether the time that a check gives a machine is over.
func Late(h api.Health, v View) bool {
	return !v.StartedAt.IsZero() && time.Since(v.StartedAt) > h.Timeout
}

// lastGrace is the least time that a machine is waited for, in a check's
// intervals: one that is late is asked some times all the same.
const lastGrace = 10

// lastLife is how long a machine must have ended to be given up: one whose process
// fails in the boot is started again, once.
const lastLife = time.Second

// Await asks until a machine is healthy, and gives up when it has ended, when its
// boot has stopped, or when the check's time since its start is over. look is
// called for each try.
func Await(ctx context.Context, h api.Health, look func(context.Context) (View, error)) error {
	began, lived := time.Now(), time.Now()
	tick := time.NewTicker(h.Interval)
	defer tick.Stop()
	for {
		v, err := look(ctx)
		if err != nil {
			return err
		}
		err = Probe(ctx, h, v)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		// What asks a port or the agent does not need a login prompt.
		if v.State == api.Stuck && (h.Check == CheckLogin || h.Check == CheckReady) {
			return fmt.Errorf("its boot has stopped: %w", err)
		}
		if Runs(v.State) {
			lived = time.Now()
		}
		if time.Since(lived) > lastLife {
			return fmt.Errorf("it has ended: %w", err)
		}
		if Late(h, v) && time.Since(began) > lastGrace*h.Interval || time.Since(began) > h.Timeout+lastGrace*h.Interval {
			return fmt.Errorf("it is not healthy (%s) %s after its start: %w", h.Check, h.Timeout, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
