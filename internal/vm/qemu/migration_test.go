package qemu

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"testing"
	"testing/synctest"

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
