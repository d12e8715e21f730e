package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPasswordInterrupted: Ctrl-C at the question for a password ends it, and
// the terminal shows again what is typed.
func TestPasswordInterrupted(t *testing.T) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	// The question stays blocked on the slave: that one ends with the test
	// program.
	defer func() { _ = master.Close() }()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	echo := func() bool {
		mode, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		return mode.Lflag&unix.ECHO != 0
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	ctx, cancel := context.WithCancelCause(t.Context())
	asked := make(chan error, 1)
	go func() {
		_, err := newApp(slave, null, null, Heavy{}).askPassword(ctx, "the guest")
		asked <- err
	}()
	for end := time.Now().Add(5 * time.Second); echo(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no question")
		}
	}
	cancel(errInterrupted)
	select {
	case err := <-asked:
		if !errors.Is(err, errInterrupted) {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the question goes on")
	}
	if !echo() {
		t.Error("the terminal is left without echo")
	}
}
