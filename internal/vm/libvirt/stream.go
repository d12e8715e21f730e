package libvirt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"

	"github.com/lamina-vm/lamina/internal/vm/screen"
)

// Every stream has a connection of its own: one whose reader is slow holds up
// nobody else, and its end is the end of all that the daemon keeps for it.

// alone runs f on a connection of its own.
func alone[T any](ctx context.Context, c *Conn, op string, f func(*golibvirt.Libvirt) (T, error)) (T, error) {
	own, err := connect(ctx, c.place)
	if err != nil {
		var zero T
		return zero, fmt.Errorf("%s: %w", op, err)
	}
	v, err := call(ctx, own, op, f)
	return v, errors.Join(err, own.Close())
}

// maxScreenshot is more than a PPM of any screen that QEMU has.
const maxScreenshot = 256 << 20

// ErrNoScreen: the domain has no screen, or is not running.
var ErrNoScreen = errors.New("the screen cannot be read")

// screenshotTries is how often a picture is asked for that comes without its
// end, or without any of it: libvirtd may send the stream's first packet before
// its answer to the call, and the RPC library takes the one for the other.
const screenshotTries = 5

// screenshotTimeout bounds one of them.
const screenshotTimeout = 10 * time.Second

// Screenshot returns the picture of the domain's first screen.
func (d *Domain) Screenshot(ctx context.Context) (screen.Picture, error) {
	for try := 1; ; try++ {
		limited, cancel := context.WithTimeout(ctx, screenshotTimeout)
		data, err := d.screenshot(limited)
		late := limited.Err() != nil && ctx.Err() == nil
		cancel()
		if err != nil && !late {
			return screen.Picture{}, fmt.Errorf("%w: %w", ErrNoScreen, err)
		}
		if err == nil {
			var pic screen.Picture
			if pic, err = readPicture(data); err == nil {
				return pic, nil
			}
			err = fmt.Errorf("libvirt's picture of %d bytes: %w", len(data), err)
		}
		if try == screenshotTries {
			return screen.Picture{}, fmt.Errorf("%w: %w", ErrNoScreen, err)
		}
		select {
		case <-ctx.Done():
			return screen.Picture{}, fmt.Errorf("%w: %w", ErrNoScreen, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// screenshot asks for the picture once, and returns the bytes that came.
func (d *Domain) screenshot(ctx context.Context) ([]byte, error) {
	b := &bounded{limit: maxScreenshot}
	_, err := alone(ctx, d.conn, d.op("screenshot of"), func(l *golibvirt.Libvirt) (struct{}, error) {
		_, err := l.DomainScreenshot(d.dom, b, 0, 0)
		var refused golibvirt.Error
		if err != nil && !errors.As(err, &refused) {
			// The library looks for the picture's type in the packet that ends the
			// stream. Whether all of it has come is seen from the picture itself.
			err = nil
		}
		return struct{}{}, err
	})
	data, over := b.take()
	if err == nil && over {
		err = fmt.Errorf("the picture has more than %d bytes", maxScreenshot)
	}
	return data, err
}

// readPicture reads what QEMU draws: PNG where libvirt knows that it can.
func readPicture(data []byte) (screen.Picture, error) {
	if bytes.HasPrefix(data, []byte("\x89PNG")) {
		return screen.ReadPNG(bytes.NewReader(data))
	}
	return screen.ReadPPM(bytes.NewReader(data))
}

// bounded is a writer that keeps up to limit bytes and never fails, as the RPC
// library cannot go on after an error of a stream's writer.
type bounded struct {
	mu    sync.Mutex
	b     bytes.Buffer
	limit int
	over  bool
}

func (w *bounded) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.b.Len()+len(b) > w.limit {
		w.over = true
		return len(b), nil
	}
	return w.b.Write(b)
}

func (w *bounded) take() (b []byte, over bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Bytes(), w.over
}

// Console is an open console. One goroutine may read while another writes;
// Close may be called by any, and ends both.
type Console struct {
	own *Conn
	in  *stuffed // what the guest says
	out *typed   // what is typed

	once sync.Once
	err  error
}

// OpenConsole opens the domain's console device of the given alias ("" is the
// first one, which `virsh console` takes). With force, another client that
// has it is put out; without, that is an error.
func (d *Domain) OpenConsole(ctx context.Context, alias string, force bool) (*Console, error) {
	flags := golibvirt.DomainConsoleSafe
	if force {
		flags = golibvirt.DomainConsoleForce
	}
	own, err := connect(ctx, d.conn.place)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.op("console of"), err)
	}
	c := &Console{own: own, in: newStuffed(), out: newTyped()}
	failed := make(chan error, 1)
	if err := own.begin(); err != nil {
		return nil, errors.Join(err, own.Close())
	}
	go func() {
		defer own.running.Done()
		err := own.rpc.DomainOpenConsoleBidirectional(d.dom, opt(alias), c.out, c.in, uint32(flags))
		err = translate(d.op("console of"), err)
		c.in.end(err)
		c.out.end()
		failed <- err
	}()
	select {
	case <-c.out.wanted: // libvirt has opened it
		return c, nil
	case err = <-failed:
		if err == nil { // it ended as soon as it was opened
			return c, nil
		}
	case <-ctx.Done():
		err = fmt.Errorf("%s: %w", d.op("console of"), ctx.Err())
	}
	return nil, errors.Join(err, c.Close())
}

// Read returns what the guest has said; io.EOF when the domain has stopped.
func (c *Console) Read(b []byte) (int, error) { return c.in.Read(b) }

// Write types; it returns when libvirt's connection has taken it.
func (c *Console) Write(b []byte) (int, error) { return c.out.Write(b) }

// Close lets go of the console.
func (c *Console) Close() error {
	c.once.Do(func() {
		c.in.discard()
		c.out.end()
		c.err = c.own.Close()
	})
	return c.err
}

// stuffed hands what a stream writes to a reader. Its Write waits for the
// reader and never fails: what comes after the end is thrown away.
type stuffed struct {
	mu    sync.Mutex
	moved *sync.Cond
	b     []byte
	done  bool
	err   error
}

func newStuffed() *stuffed {
	s := &stuffed{}
	s.moved = sync.NewCond(&s.mu)
	return s
}

func (s *stuffed) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.b) > 0 && !s.done {
		s.moved.Wait()
	}
	if !s.done {
		s.b = append(s.b[:0], b...)
		s.moved.Broadcast()
	}
	return len(b), nil
}

func (s *stuffed) Read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.b) == 0 && !s.done {
		s.moved.Wait()
	}
	if len(s.b) == 0 {
		if s.err != nil {
			return 0, s.err
		}
		return 0, io.EOF
	}
	n := copy(b, s.b)
	s.b = s.b[n:]
	s.moved.Broadcast()
	return n, nil
}

// end marks the end of the stream; what is there can still be read.
func (s *stuffed) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.done {
		s.done, s.err = true, err
	}
	s.moved.Broadcast()
}

// discard ends the stream from the reader's side.
func (s *stuffed) discard() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.done {
		s.done, s.err = true, ErrClosed
	}
	s.b = nil
	s.moved.Broadcast()
}

// typed is the reader that a stream takes its bytes from.
type typed struct {
	r      *io.PipeReader
	w      *io.PipeWriter
	wanted chan struct{} // closed by the first Read
	first  sync.Once
}

func newTyped() *typed {
	r, w := io.Pipe()
	return &typed{r: r, w: w, wanted: make(chan struct{})}
}

func (t *typed) Read(b []byte) (int, error) {
	t.first.Do(func() { close(t.wanted) })
	return t.r.Read(b)
}

func (t *typed) Write(b []byte) (int, error) {
	n, err := t.w.Write(b)
	if errors.Is(err, io.ErrClosedPipe) {
		err = ErrClosed
	}
	return n, err
}

// end lets the reader see the end, and writers ErrClosed.
func (t *typed) end() {
	_ = t.w.Close() // never fails
	_ = t.r.CloseWithError(ErrClosed)
}
