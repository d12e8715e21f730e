package cli

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/client"
)

// Backend are machines that the verbs list and manage: the daemon's
// (*client.Client), or those of a libvirt. What it cannot do it refuses with an
// *api.Error that says why. Its methods are safe for concurrent use.
type Backend interface {
	Machines(ctx context.Context) ([]api.Machine, error)
	Machine(ctx context.Context, name string) (api.Machine, error)
	Start(ctx context.Context, name string, req api.StartRequest, on client.EventFunc) (api.Machine, error)
	Stop(ctx context.Context, name string, req api.StopRequest, on client.EventFunc) (api.Machine, error)
	Remove(ctx context.Context, name string, force bool) error
	RemoveDisks(ctx context.Context, name string, force bool, on client.EventFunc) error
	Autostart(ctx context.Context, name string, on bool) error
	Console(ctx context.Context, name string) (io.ReadWriteCloser, error)
	Screen(ctx context.Context, name, format string) ([]byte, error)
	Log(ctx context.Context, name string, follow bool, tail int) (io.ReadCloser, error)
	Attach(ctx context.Context, name string, req api.AttachRequest) (api.Machine, error)
	Detach(ctx context.Context, name string, req api.DetachRequest) (api.Machine, error)
	Resize(ctx context.Context, name string, req api.ResizeRequest) (api.Machine, error)
	Media(ctx context.Context, name string, req api.MediaRequest) (api.Machine, error)
}

// snapshotter is a [Backend] whose machines have snapshots.
type snapshotter interface {
	Snapshots(ctx context.Context, name string) ([]api.Snapshot, error)
	CreateSnapshot(ctx context.Context, name string, req api.SnapshotRequest) (api.Snapshot, error)
	RevertSnapshot(ctx context.Context, name, snapshot string, force bool) error
	DeleteSnapshot(ctx context.Context, name, snapshot string, children bool) error
}

// watcher is a [Backend] that tells what happens to its machines.
type watcher interface {
	Events(ctx context.Context, on func(api.MachineEvent)) error
}

// OpenFunc connects to the machines at a URI.
type OpenFunc func(ctx context.Context, uri string) (Backend, error)

// EnvConnect is the variable with the URI for a verb without --connect.
const EnvConnect = "LAMINA_CONNECT"

// connectFlag lets a verb work on the machines of a libvirt.
func connectFlag(cmd *cobra.Command, a *app) {
	cmd.Flags().StringVar(&a.uri, "connect", "", "work on the machines of the libvirt at `URI`, such as qemu:///system (default "+EnvConnect+" if it is set)")
}

// ownOnly makes a verb refuse --connect and say what to do.
func ownOnly(cmd *cobra.Command, a *app, remedy string) {
	connectFlag(cmd, a)
	_ = cmd.Flags().MarkHidden("connect") // it is there
	before := cmd.PreRunE
	cmd.PreRunE = func(c *cobra.Command, args []string) error {
		if uri := a.connectURI(); uri != "" {
			return fmt.Errorf("%s works on Lamina's own machines, not on those of %s: %s", c.Name(), uri, remedy)
		}
		if before != nil {
			return before(c, args)
		}
		return nil
	}
}

// connectURI is where the machines are; "" is the daemon.
func (a *app) connectURI() string {
	if a.uri != "" {
		return a.uri
	}
	return os.Getenv(EnvConnect)
}

// backend returns the machines that a verb works on. Where those are a libvirt's
// and this program links none, it becomes laminad, which does it all: a verb calls
// this before it has done anything.
func (a *app) backend(ctx context.Context) (Backend, error) {
	uri := a.connectURI()
	if uri == "" {
		return a.connect(ctx)
	}
	if a.heavy.Open == nil {
		return nil, client.Exec(client.ToolVerbs, os.Args[1:]...)
	}
	return a.heavy.Open(ctx, uri)
}
