// Package client speaks the API of package api with the daemon, and starts the
// daemon where there is none.
package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"syscall"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
)

// Client is a way to the daemon of one home. It holds no connection between
// calls and is safe for concurrent use. What the daemon refuses is returned as
// an *api.Error.
type Client struct {
	home home.Home
}

// New returns a client of the daemon of h. It does not start one; see
// [Connect].
func New(h home.Home) *Client { return &Client{home: h} }

// EventFunc is called for each event of an operation, one call at a time, on
// the goroutine that made the request. It is not called for the last event,
// whose result or error the request returns.
type EventFunc func(api.Event)

// Version asks the daemon for its version.
func (c *Client) Version(ctx context.Context) (api.Version, error) {
	return get[api.Version](ctx, c, "/v1/version")
}

// Catalog lists the images that can be pulled by name.
func (c *Client) Catalog(ctx context.Context) ([]api.CatalogEntry, error) {
	return get[[]api.CatalogEntry](ctx, c, "/v1/catalog")
}

// Pull fetches an image into the cache.
func (c *Client) Pull(ctx context.Context, req api.PullRequest, on EventFunc) (api.PullResult, error) {
	return stream[api.PullResult](ctx, c, "POST", "/v1/pull", req, on)
}

// Templates lists the templates.
func (c *Client) Templates(ctx context.Context) ([]api.Template, error) {
	return get[[]api.Template](ctx, c, "/v1/templates")
}

// Template returns the template with the given name or digest.
func (c *Client) Template(ctx context.Context, ref string) (api.Template, error) {
	return get[api.Template](ctx, c, template(ref))
}

// ImportTemplate makes a template of an image.
func (c *Client) ImportTemplate(ctx context.Context, req api.ImportRequest, on EventFunc) (api.Template, error) {
	return stream[api.Template](ctx, c, "POST", "/v1/templates", req, on)
}

// VerifyTemplate reads a template's image and compares it with its digest.
func (c *Client) VerifyTemplate(ctx context.Context, ref string, on EventFunc) (api.Template, error) {
	return stream[api.Template](ctx, c, "POST", template(ref)+"/verify", nil, on)
}

// RemoveTemplate removes a template that no machine needs.
func (c *Client) RemoveTemplate(ctx context.Context, ref string) error {
	return c.call(ctx, "DELETE", template(ref), nil)
}

// Machines lists the machines.
func (c *Client) Machines(ctx context.Context) ([]api.Machine, error) {
	return get[[]api.Machine](ctx, c, "/v1/machines")
}

// Machine returns the machine with the given name.
func (c *Client) Machine(ctx context.Context, name string) (api.Machine, error) {
	return get[api.Machine](ctx, c, machine(name))
}

// Run makes a machine of an image and starts it. The machine stays when ctx
// ends after its start.
func (c *Client) Run(ctx context.Context, req api.RunRequest, on EventFunc) (api.Machine, error) {
	return stream[api.Machine](ctx, c, "POST", "/v1/machines", req, on)
}

// Clone makes machines of a template.
func (c *Client) Clone(ctx context.Context, req api.CloneRequest, on EventFunc) ([]api.Machine, error) {
	return stream[[]api.Machine](ctx, c, "POST", "/v1/clones", req, on)
}

// Define makes a machine of a whole description and, if asked to, starts it. If
// it fails nothing is left, and the files that the request names are as they
// were. Once started, the machine stays when ctx ends.
func (c *Client) Define(ctx context.Context, req api.DefineRequest, on EventFunc) (api.Machine, error) {
	return stream[api.Machine](ctx, c, "POST", "/v1/define", req, on)
}

// Wait waits until a machine has ended or its install phase is over. It returns
// the machine as it is then. A daemon that ends meanwhile is followed by the next
// one, which is started if need be.
func (c *Client) Wait(ctx context.Context, name string, what api.WaitFor) (api.Machine, error) {
	for {
		m, err := stream[api.Machine](ctx, c, "GET", machine(name)+"/wait?for="+url.QueryEscape(string(what)), nil, nil)
		if !errors.Is(err, ErrNoDaemon) || ctx.Err() != nil {
			return m, err
		}
		// Not at once: one that fails again and again is not to be hurried.
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return m, err
		}
		if _, err := Connect(ctx, c.home); err != nil {
			return m, err
		}
	}
}

// Autostart says whether a machine is started when the daemon starts for the
// first time after the host has.
func (c *Client) Autostart(ctx context.Context, name string, on bool) error {
	return c.call(ctx, "POST", machine(name)+"/autostart", api.AutostartRequest{On: on})
}

// Attach gives a machine another drive.
func (c *Client) Attach(ctx context.Context, name string, req api.AttachRequest) (api.Machine, error) {
	return post[api.Machine](ctx, c, machine(name)+"/attach", req)
}

// Detach takes a drive from a machine.
func (c *Client) Detach(ctx context.Context, name string, req api.DetachRequest) (api.Machine, error) {
	return post[api.Machine](ctx, c, machine(name)+"/detach", req)
}

// Resize grows a disk of a machine.
func (c *Client) Resize(ctx context.Context, name string, req api.ResizeRequest) (api.Machine, error) {
	return post[api.Machine](ctx, c, machine(name)+"/resize", req)
}

// Media changes the medium of a drive.
func (c *Client) Media(ctx context.Context, name string, req api.MediaRequest) (api.Machine, error) {
	return post[api.Machine](ctx, c, machine(name)+"/media", req)
}

// Start starts a machine and follows its boot. The machine stays when ctx ends.
func (c *Client) Start(ctx context.Context, name string, req api.StartRequest, on EventFunc) (api.Machine, error) {
	return stream[api.Machine](ctx, c, "POST", machine(name)+"/start", req, on)
}

// Stop stops a machine.
func (c *Client) Stop(ctx context.Context, name string, req api.StopRequest, on EventFunc) (api.Machine, error) {
	return stream[api.Machine](ctx, c, "POST", machine(name)+"/stop", req, on)
}

// Remove removes a machine with all that is its own; a running one only with
// force. The disks of a machine that was made by Define are not its own.
func (c *Client) Remove(ctx context.Context, name string, force bool) error {
	return c.remove(ctx, name, force, false)
}

// RemoveDisks is Remove, and removes the machine's writable disk images too,
// unless another machine needs one of them: then nothing is removed. The daemon
// tells on nothing meanwhile.
func (c *Client) RemoveDisks(ctx context.Context, name string, force bool, _ EventFunc) error {
	return c.remove(ctx, name, force, true)
}

func (c *Client) remove(ctx context.Context, name string, force, disks bool) error {
	q := url.Values{}
	if force {
		q.Set("force", "1")
	}
	if disks {
		q.Set("disks", "1")
	}
	path := machine(name)
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	return c.call(ctx, "DELETE", path, nil)
}

// Boot follows the machine's current boot from its first event until its
// login prompt or its problem, which is returned as an error.
func (c *Client) Boot(ctx context.Context, name string, on EventFunc) error {
	_, err := c.events(ctx, "GET", machine(name)+"/boot", nil, on)
	return err
}

// Log opens the serial log: its last tail lines (all if tail is negative),
// and with follow what comes until the machine ends. Close ends it.
func (c *Client) Log(ctx context.Context, name string, follow bool, tail int) (io.ReadCloser, error) {
	q := url.Values{}
	if follow {
		q.Set("follow", "1")
	}
	if tail >= 0 {
		q.Set("tail", strconv.Itoa(tail))
	}
	path := machine(name) + "/log"
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	r, err := c.send(ctx, "GET", path, nil, "")
	if err != nil {
		return nil, err
	}
	return &bodyCloser{r}, nil
}

// Screen returns the machine's screen as "text" or as "png".
func (c *Client) Screen(ctx context.Context, name, format string) ([]byte, error) {
	path := machine(name) + "/screen?format=" + url.QueryEscape(format)
	r, err := c.send(ctx, "GET", path, nil, "")
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	b, err := io.ReadAll(r.body)
	if err != nil {
		return nil, c.broken(ctx, "GET "+path, err)
	}
	return b, nil
}

// Console connects to the machine's serial port: what is read comes from the
// guest, what is written goes to it. Reading and writing may run at once.
func (c *Client) Console(ctx context.Context, name string) (io.ReadWriteCloser, error) {
	path := machine(name) + "/console"
	r, err := c.send(ctx, "POST", path, nil, "lamina-console")
	if err != nil {
		return nil, err
	}
	if r.status != 101 {
		_ = r.Close()
		return nil, fmt.Errorf("console of %s: the daemon answered with HTTP status %d, not with the console", name, r.status)
	}
	return &console{r}, nil
}

// Shutdown ends the daemon; the machines go on. It returns when the daemon
// has taken the request.
func (c *Client) Shutdown(ctx context.Context) error {
	return c.call(ctx, "POST", "/v1/shutdown", nil)
}

func machine(name string) string { return "/v1/machines/" + url.PathEscape(name) }

// dial opens a connection, or says why there is none.
func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", c.home.Socket())
	if err != nil {
		return nil, c.dialError(err)
	}
	return conn, nil
}

// broken explains an exchange that ended in its middle.
func (c *Client) broken(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE} {
		if errors.Is(err, end) {
			err = endedError{log: c.home.DaemonLog()}
			break
		}
	}
	return fmt.Errorf("%s: %w", what, err)
}

// endedError: the daemon ended before it had answered. It is an ErrNoDaemon.
type endedError struct{ log string }

func (e endedError) Error() string {
	return "the daemon ended in the middle of its answer; its log may say why: " + e.log
}

func (e endedError) Is(target error) bool { return target == ErrNoDaemon }

// get fetches a value.
func get[T any](ctx context.Context, c *Client, path string) (T, error) {
	return value[T](ctx, c, "GET", path, nil)
}

// post makes a request that answers with a value.
func post[T any](ctx context.Context, c *Client, path string, body any) (T, error) {
	return value[T](ctx, c, "POST", path, body)
}

func value[T any](ctx context.Context, c *Client, method, path string, body any) (T, error) {
	var v, zero T
	r, err := c.send(ctx, method, path, body, "")
	if err != nil {
		return zero, err
	}
	defer func() { _ = r.Close() }()
	if err := json.NewDecoder(r.body).Decode(&v); err != nil {
		return zero, c.broken(ctx, method+" "+path, err)
	}
	return v, nil
}

// call makes a request whose answer has no content.
func (c *Client) call(ctx context.Context, method, path string, body any) error {
	r, err := c.send(ctx, method, path, body, "")
	if err != nil {
		return err
	}
	return r.Close()
}

// stream makes a request that answers with events and returns its result.
func stream[T any](ctx context.Context, c *Client, method, path string, body any, on EventFunc) (T, error) {
	var v, zero T
	result, err := c.events(ctx, method, path, body, on)
	if err != nil {
		return zero, err
	}
	if err := json.Unmarshal(result, &v); err != nil {
		return zero, fmt.Errorf("%s %s: result: %w", method, path, err)
	}
	return v, nil
}

// events reads the stream of events to its last one.
func (c *Client) events(ctx context.Context, method, path string, body any, on EventFunc) (json.RawMessage, error) {
	r, err := c.send(ctx, method, path, body, "")
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	for d := json.NewDecoder(r.body); ; {
		var e api.Event
		if err := d.Decode(&e); err != nil {
			return nil, c.broken(ctx, method+" "+path, err)
		}
		switch {
		case e.Done && e.Error != nil:
			return nil, e.Error
		case e.Done:
			return e.Result, nil
		case on != nil:
			on(e)
		}
	}
}

// bodyCloser is the body of an answer.
type bodyCloser struct{ r *response }

func (b *bodyCloser) Read(p []byte) (int, error) { return b.r.body.Read(p) }
func (b *bodyCloser) Close() error               { return b.r.Close() }

// console is an upgraded connection.
type console struct{ r *response }

func (c *console) Read(p []byte) (int, error)  { return c.r.body.Read(p) }
func (c *console) Write(p []byte) (int, error) { return c.r.conn.Write(p) }
func (c *console) Close() error                { return c.r.Close() }
