package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lamina-vm/lamina/internal/qmp"
)

// TestMigrationEnd: the last byte of the stream comes before QEMU says that it was
// the last one, also where nothing else is waited for just then.
func TestMigrationEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer func() { _ = far.Close() }()
		say := func(line string) {
			if _, err := fmt.Fprintln(far, line); err != nil {
				t.Error(err)
			}
		}
		go func() {
			say(`{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}`)
			in := bufio.NewReader(far)
			_, err := in.ReadString('\n')
			if err != nil {
				t.Error(err)
			}
			say(`{"return": {}, "id": "1"}`)
			_, _ = io.Copy(io.Discard, in) // no further command is answered
		}()
		client, err := qmp.New(t.Context(), near)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = client.Close() }()
		stream, peer := net.Pipe()
		defer func() { _ = peer.Close() }()
		g := &migration{
			m:      &machine{client: client, proc: &process{done: make(chan struct{})}},
			events: client.Subscribe(1), conn: stream, done: make(chan struct{}),
		}
		ended := make(chan error, 1)
		go func() { ended <- g.awaitEnd(t.Context()) }()
		synctest.Wait() // it waits for whatever comes first
		close(g.done)
		synctest.Wait()
		say(`{"event": "MIGRATION", "data": {"status": "completed"}, "timestamp": {"seconds": 1, "microseconds": 0}}`)
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestMigrationLostEvent: an event that did not come, as more came at once than a
// subscription holds, is asked for: a guest is not left stopped for ever.
func TestMigrationLostEvent(t *testing.T) {
	for want, answer := range map[string]string{
		"":                         `{"status": "completed"}`,
		"QEMU ended the migration": `{"status": "failed", "error-desc": "no memory"}`,
		"pass 3 status \"active\"": `{"status": "active", "ram": {"dirty-sync-count": 3}}`,
	} {
		synctest.Test(t, func(t *testing.T) {
			near, far := net.Pipe()
			defer func() { _ = far.Close() }()
			go func() {
				say := func(line string) { _, _ = fmt.Fprintln(far, line) }
				say(`{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}`)
				for in := bufio.NewScanner(far); in.Scan(); {
					var c struct {
						Execute string          `json:"execute"`
						ID      json.RawMessage `json:"id"`
					}
					if err := json.Unmarshal(in.Bytes(), &c); err != nil {
						t.Error(err)
					}
					result := `{}`
					if c.Execute == "query-migrate" {
						result = answer
					}
					say(fmt.Sprintf(`{"return": %s, "id": %s}`, result, c.ID))
				}
			}()
			client, err := qmp.New(t.Context(), near)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = client.Close() }()
			stream, peer := net.Pipe()
			defer func() { _ = peer.Close() }()
			g := &migration{
				m:      &machine{client: client, proc: &process{done: make(chan struct{})}},
				events: client.Subscribe(1), conn: stream, done: make(chan struct{}),
			}
			close(g.done) // the stream has ended
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // of the bubble's clock
			defer cancel()
			if strings.HasPrefix(want, "pass") {
				for _, pass := range []int{3, 0} { // the second time it is none that is new
					status, got, err := g.next(ctx)
					if err != nil || got != pass || status != "active" {
						t.Errorf("pass %d, status %q, %v", got, status, err)
					}
				}
				return
			}
			if err := g.awaitEnd(ctx); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("%v; want %q", err, want)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("after %s", took)
			}
		})
	}
}
