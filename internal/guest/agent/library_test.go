package agent

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
)

// counted counts what the host sends.
type counted struct {
	net.Conn
	sent atomic.Int64
}

func (c *counted) Write(p []byte) (int, error) {
	c.sent.Add(int64(len(p)))
	return c.Conn.Write(p)
}

// TestLibraryIsKept: what the agent keeps need not be sent to it again, by no
// client; an agent that has nothing, or something else, gets all of it.
func TestLibraryIsKept(t *testing.T) {
	for _, shell := range shells {
		t.Run(strings.Join(shell, " "), func(t *testing.T) {
			ctx := testContext(t)
			conn := &counted{Conn: resident(t, shell)}
			ask := func(c *Conn) (sent int64) {
				t.Helper()
				before := conn.sent.Load()
				s, err := runLibrary(ctx, c, "machine_id=1\nmacs=\n", []string{"active none || echo \"=works $machine_id\"", "cards", "echo =end"}, nil)
				if err != nil || s.one("works") != "1" || len(s.noise) > 0 {
					t.Fatalf("%+v, %v", s, err)
				}
				return conn.sent.Load() - before
			}
			if sent := ask(NewConn(KindLamina, conn)); sent < int64(len(library())) {
				t.Errorf("%d bytes to an agent that keeps nothing", sent)
			}
			if err := keepLibrary(ctx, NewConn(KindLamina, conn)); err != nil {
				t.Fatal(err)
			}
			if sent := ask(NewConn(KindLamina, conn)); sent > 512 {
				t.Errorf("%d bytes to an agent that has the library", sent)
			}
			if r, err := NewConn(KindLamina, conn).wire.(*lamina).define("lamina_library=other"); err != nil || r.Status != 0 {
				t.Fatal(r, err)
			}
			if sent := ask(NewConn(KindLamina, conn)); sent < int64(len(library())) {
				t.Errorf("%d bytes to an agent that has another library", sent)
			}
		})
	}
}

// An agent of an older image is not asked for what it does not know.
func TestOldAgentKeepsNothing(t *testing.T) {
	c := guest(t, func(script string) string {
		if strings.Contains(script, "$lamina_agent") {
			return "\n"
		}
		t.Errorf("it was asked %q", script)
		return ""
	})
	if err := keepLibrary(testContext(t), c); err != nil {
		t.Error(err)
	}
}

// TestRenewIsOneRequest: a guest that asks for addresses in the script is not asked
// again, and its card comes when it has said its new name, not for an old one.
func TestRenewIsOneRequest(t *testing.T) {
	id := testIdentity(t)
	for _, named := range []string{"web " + id.MachineID, "old " + id.MachineID, ""} {
		asks := 0
		plugged := make(chan struct{})
		id.Plug = func(context.Context) error { close(plugged); return nil }
		c := guest(t, func(string) string {
			asks++
			return "=named " + named + "\n=asked " + testMAC + "\n" + strings.TrimSuffix(goodCards, "=end\n") + good(t, id)
		})
		r, err := Renew(testContext(t), c, id)
		if err != nil || len(r.Addresses) != 1 {
			t.Fatal(r, err)
		}
		<-plugged
		if asks != 1 {
			t.Errorf("it was asked %d times", asks)
		}
		p := plugging{ctx: t.Context(), id: id}
		p.told("=named old " + id.MachineID)
		if p.done != nil {
			t.Error("the card comes for a guest that has its old name")
		}
	}
}
