package qmp

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/qemutest"
)

// startQEMU runs a QEMU without a machine and returns its monitor's socket.
func startQEMU(t *testing.T) string {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "q")
	cmd := exec.Command(qemutest.Path(t, "qemu-system-x86_64"),
		"-machine", "none", "-nodefaults", "-display", "none", "-S",
		"-qmp", "unix:"+sock+",server=on,wait=off")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have quit already
		_ = cmd.Wait()
	})
	return sock
}

// dialQEMU waits for the socket of a QEMU that starts.
func dialQEMU(t *testing.T, sock string) *Client {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		c, err := Dial(t.Context(), sock)
		if err == nil {
			t.Cleanup(func() { _ = c.Close() })
			return c
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestQEMU(t *testing.T) {
	sock := startQEMU(t)
	c := dialQEMU(t, sock)
	if got, want := c.Version().String(), qemutest.Version(t, "qemu-system-x86_64"); got != want {
		t.Errorf("version %s, want %s", got, want)
	}

	// A second client is not served while the first one is there.
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, sock); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second client: %v", err)
	}

	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			var st struct{ Status string }
			if err := c.Execute(t.Context(), "query-status", nil, &st); err != nil || st.Status != "prelaunch" {
				t.Errorf("status %q, %v", st.Status, err)
			}
		})
	}
	wg.Wait()
	var schema []any // some 200 KiB
	if err := c.Execute(t.Context(), "query-qmp-schema", nil, &schema); err != nil || len(schema) < 100 {
		t.Errorf("schema of %d entries, %v", len(schema), err)
	}
	var qe *Error
	if err := c.Execute(t.Context(), "no-such-command", nil, nil); !errors.As(err, &qe) || qe.Class != "CommandNotFound" {
		t.Errorf("unknown command: %v", err)
	}

	events := c.Subscribe(8)
	if err := c.Execute(t.Context(), "quit", nil, nil); err != nil {
		t.Errorf("quit: %v", err)
	}
	seen := false
	for e := range events.Events() {
		seen = seen || e.Name == "SHUTDOWN"
	}
	if !seen {
		t.Error("no SHUTDOWN event before the end")
	}
	if err := c.Execute(t.Context(), "query-status", nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("command after quit: %v", err)
	}
}
