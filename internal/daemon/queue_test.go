package daemon

import (
	"context"
	"testing"
	"time"
)

// TestUnderway: an identity waits for the starts before it, but not for ever, and not
// when its machine is gone.
func TestUnderway(t *testing.T) {
	var u underway
	ctx := t.Context()
	u.wait(ctx, time.Hour, nil) // nobody is under way
	first, second := u.begin(), u.begin()
	through := make(chan struct{})
	go func() {
		defer close(through)
		u.wait(ctx, time.Hour, nil)
	}()
	first()
	first() // counts once
	select {
	case <-through:
		t.Fatal("it did not wait for the second")
	case <-time.After(20 * time.Millisecond):
	}
	second()
	<-through
	done := u.begin()
	defer done()
	u.wait(ctx, time.Millisecond, nil)
	gone := make(chan struct{})
	close(gone)
	u.wait(ctx, time.Hour, gone)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	u.wait(ended, time.Hour, nil)
}
