package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// How often the watcher looks: at the time, and at the screen while the serial
// port says nothing.
const (
	tickInterval   = 100 * time.Millisecond
	screenInterval = time.Second
)

// Watch follows a boot until the login prompt, until it is plain that the
// prompt will not come, or until ctx ends (then the error is its cause; a
// boot that stops is a Result with a Problem, not an error). The goroutine
// that reads src.Serial ends with its next byte, error or end: close a
// followed log when Watch has returned.
func Watch(ctx context.Context, src Sources, o Options) (Result, error) {
	if src.Serial == nil {
		return Result{}, errors.New("boot: no serial log to watch")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	start := time.Now()
	since := func() time.Duration { return time.Since(start) }

	serial := readChunks(ctx, src.Serial)
	shots := make(chan []string, 1)
	var askScreen chan struct{}
	if src.Screen != nil {
		askScreen = make(chan struct{}, 1)
		go pollScreen(ctx, src.Screen, askScreen, shots)
	}

	a := newAnalyser(o)
	ticker := time.NewTicker(tickInterval)
	defer ticker.Stop()
	asked := time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return a.soFar(), fmt.Errorf("boot: %w", context.Cause(ctx))
		case c, ok := <-serial:
			if !ok || c.err != nil {
				if ok && c.err != io.EOF {
					return a.soFar(), fmt.Errorf("boot: serial log: %w", c.err)
				}
				a.ended(since())
				break
			}
			a.write(since(), c.data)
		case lines := <-shots:
			a.show(since(), lines)
		case <-ticker.C:
			now := since()
			a.tick(now)
			if askScreen != nil && now-asked >= screenInterval && now-a.serial.seen >= screenInterval {
				select {
				case askScreen <- struct{}{}:
					asked = now
				default: // the last picture is still being taken
				}
			}
		}
		for _, e := range a.events {
			if o.OnEvent != nil {
				o.OnEvent(e)
			}
		}
		a.events = a.events[:0]
		if a.result != nil {
			return *a.result, nil
		}
	}
}

// soFar is the result of a watch that was broken off.
func (a *analyser) soFar() Result { return Result{Stage: a.stage, Took: a.now, Via: a.via} }

type chunk struct {
	data []byte
	err  error
}

// readChunks reads r to its end, two chunks ahead at most.
func readChunks(ctx context.Context, r io.Reader) <-chan chunk {
	out := make(chan chunk, 1)
	go func() {
		defer close(out)
		for {
			buf := make([]byte, 16<<10)
			n, err := r.Read(buf)
			for _, c := range []chunk{{data: buf[:n]}, {err: err}} {
				if len(c.data) == 0 && c.err == nil {
					continue
				}
				select {
				case out <- c:
				case <-ctx.Done():
					return
				}
			}
			if err != nil {
				return
			}
		}
	}()
	return out
}

// pollScreen takes a picture each time that it is asked. One that fails is left
// out: the machine may be about to end, which the serial port tells.
func pollScreen(ctx context.Context, screen func(context.Context) ([]string, error), ask <-chan struct{}, shots chan<- []string) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-ask:
		}
		lines, err := screen(ctx)
		if err != nil {
			continue
		}
		select {
		case shots <- lines:
		case <-ctx.Done():
			return
		}
	}
}

// short writes a duration for a person: "1m30s", "12s".
func short(d time.Duration) string {
	if d < 10*time.Second {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
