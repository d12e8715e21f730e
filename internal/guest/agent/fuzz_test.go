package agent

import (
	"context"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// runShell feeds a script to a shell's standard input.
func runShell(t *testing.T, shell []string, script string) (out string, status int) {
	t.Helper()
	cmd := exec.Command(shell[0], shell[1:]...)
	cmd.Stdin = strings.NewReader(script)
	b, err := cmd.Output()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return string(b), cmd.ProcessState.ExitCode()
}

// fuzzWire lets a guest say data to a client of each kind, and then hang up.
// Nothing may panic, hang or be believed that was not asked for.
func fuzzWire(f *testing.F, kind Kind) {
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, theirs := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			go func() {
				var b [4096]byte
				for {
					if _, err := theirs.Read(b[:]); err != nil {
						return
					}
				}
			}()
			_, _ = theirs.Write(data)
			_ = theirs.Close()
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		c := NewConn(kind, ours)
		if kind == KindLamina {
			// The nonce cannot be guessed: no answer is one.
			if r, err := c.Run(ctx, "echo", nil); err == nil {
				t.Errorf("believed %q", r.Output)
			}
		} else if r, err := c.Run(ctx, "echo", nil); err == nil && (len(r.Output) > MaxOutput || r.Status < 0 || r.Status > 255) {
			t.Errorf("status %d, %d bytes", r.Status, len(r.Output))
		}
		if ctx.Err() != nil {
			t.Error("it hung")
		}
		_ = c.Close()
		<-done
	})
}

func FuzzLamina(f *testing.F) {
	f.Add([]byte("\n@lamina 0\nout\n@end 0 0\n"))
	f.Add([]byte("@end "))
	fuzzWire(f, KindLamina)
}

func FuzzQGA(f *testing.F) {
	f.Add([]byte("{\"return\": {\"pid\": 1}}\n{\"return\": {\"exited\": true, \"exitcode\": 0, \"out-data\": \"cmFuCg==\"}}\n"))
	f.Add([]byte("\xff{\"return\": 1}\n{\"error\": {\"class\": \"x\", \"desc\": \"y\"}}\n"))
	f.Add([]byte("{\"return\": {\"pid\": 1}}\n{\"return\": {\"exited\": false}}\n{\"return\": {\"exited\": true, \"signal\": 9}}\n"))
	fuzzWire(f, KindQEMU)
}

// FuzzResult has the fuzzer write what stands between the marks of an answer.
func FuzzResult(f *testing.F) {
	f.Add([]byte("out\n"), "0\n")
	f.Add([]byte(""), "255\n@end")
	f.Fuzz(func(t *testing.T, out []byte, status string) {
		ours, theirs := net.Pipe()
		go func() {
			_, _ = theirs.Write(append(append(out, "\n@end id "...), status...))
			_ = theirs.Close()
		}()
		_ = ours.SetDeadline(time.Now().Add(10 * time.Second))
		r, err := newLamina(ours).result("@end id ", nil)
		if err == nil && (r.Status < 0 || r.Status > 255 || len(r.Output) > MaxOutput) {
			t.Errorf("status %d, %d bytes", r.Status, len(r.Output))
		}
		_ = ours.Close()
	})
}
