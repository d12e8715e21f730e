package boot

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestWatchToLogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		go func() {
			for _, s := range []string{"GRUB loading.\r\n", "[    0.000000] Linux version 6.1\r\n", "[  OK  ] Started x.\r\n", "\r\nweb lo", "gin: "} {
				time.Sleep(2 * time.Second)
				_, _ = io.WriteString(w, s)
			}
		}()
		var stages []Stage
		res, err := Watch(t.Context(), Sources{Serial: r}, Options{OnEvent: func(e Event) { stages = append(stages, e.Stage) }})
		if err != nil || !res.Login || res.Via != "serial" || res.Took != 10*time.Second {
			t.Errorf("%+v, %v", res, err)
		}
		if len(stages) != 4 || stages[3] != StageLogin {
			t.Errorf("stages %v", stages)
		}
		_ = r.Close()
	})
}

// Where the serial port says nothing the screen is asked, once a second and
// never twice at a time; a picture that fails is left out.
func TestWatchScreen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		var at []time.Duration
		var busy atomic.Int32
		start := time.Now()
		screen := func(ctx context.Context) ([]string, error) {
			if busy.Add(1) != 1 {
				t.Error("two at a time")
			}
			defer busy.Add(-1)
			at = append(at, time.Since(start))
			time.Sleep(300 * time.Millisecond)
			switch len(at) {
			case 1:
				return nil, errors.New("not yet")
			case 2:
				return nil, nil
			case 3:
				return []string{"Booting from Hard Disk...", ""}, nil
			}
			return []string{"Alpine", "", "box login: ", "", ""}, nil
		}
		res, err := Watch(t.Context(), Sources{Serial: r, Screen: screen}, Options{})
		if err != nil || !res.Login || res.Via != "screen" {
			t.Errorf("%+v, %v", res, err)
		}
		if len(at) != 4 || at[0] < time.Second || at[3] > 5*time.Second {
			t.Errorf("asked at %v", at)
		}
		_ = w.Close()
	})
}

func TestWatchEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		res, err := Watch(t.Context(), Sources{Serial: strings.NewReader("[    0.000000] Linux version 6.1\n[ 1.000000] reboot: Power down\n")}, Options{})
		if err != nil || res.Problem == nil || res.Problem.Kind != KindEnded || res.Took > time.Second {
			t.Errorf("the machine ended: %+v, %v", res, err)
		}

		r, w := io.Pipe()
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() {
			_, _ = io.WriteString(w, "GRUB loading.\n")
			time.Sleep(time.Second)
			cancel(errors.New("ctrl-c"))
		}()
		res, err = Watch(ctx, Sources{Serial: r}, Options{})
		if err == nil || !strings.Contains(err.Error(), "ctrl-c") || res.Stage != StageBootLoader {
			t.Errorf("broken off: %+v, %v", res, err)
		}
		_ = r.Close()

		r, w = io.Pipe()
		_ = w.CloseWithError(os.ErrPermission)
		if _, err = Watch(t.Context(), Sources{Serial: r}, Options{}); !errors.Is(err, os.ErrPermission) {
			t.Errorf("a broken log: %v", err)
		}
		if _, err = Watch(t.Context(), Sources{}, Options{}); err == nil {
			t.Error("no log, no error")
		}
	})
}

// A log that grows while it is read, from before it exists to the end of the
// machine, comes out whole.
func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "serial.log")
	done := make(chan struct{})
	f, err := Follow(t.Context(), path, done)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var want strings.Builder
	wrote := make(chan error, 1)
	go func() {
		wrote <- func() error {
			time.Sleep(30 * time.Millisecond)
			w, err := os.Create(path)
			if err != nil {
				return err
			}
			for i := range 20 {
				s := strings.Repeat(string(rune('a'+i)), 1000*i) + "\n"
				want.WriteString(s)
				if _, err := w.WriteString(s); err != nil {
					return err
				}
				time.Sleep(5 * time.Millisecond)
			}
			close(done)
			return w.Close()
		}()
	}()
	got, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	if string(got) != want.String() {
		t.Errorf("%d bytes, want %d", len(got), want.Len())
	}
}

func TestFollowStops(t *testing.T) {
	path := filepath.Join(t.TempDir(), "serial.log")
	if err := os.WriteFile(path, []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10)

	ctx, cancel := context.WithCancel(t.Context())
	f, err := Follow(ctx, path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := f.Read(buf); err != nil || string(buf[:n]) != "abc" {
		t.Errorf("%q, %v", buf[:n], err)
	}
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := f.Read(buf); !errors.Is(err, context.Canceled) {
		t.Errorf("after cancel: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}

	f, err = Follow(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Read(buf); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(10*time.Millisecond, func() { _ = f.Close() })
	if _, err := f.Read(buf); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}

	// A log that was cut is a new boot's.
	f, err = Follow(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.Read(buf); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(10*time.Millisecond, func() { _ = os.WriteFile(path, []byte("x"), 0o600) })
	if n, err := f.Read(buf); err != nil || string(buf[:n]) != "x" {
		t.Errorf("after a cut: %q, %v", buf[:n], err)
	}

	if _, err := Follow(t.Context(), filepath.Join(path, "none"), nil); err == nil {
		t.Error("a path that cannot be, no error")
	}
}
