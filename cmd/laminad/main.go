// Command laminad is Lamina's daemon: it owns running machines and serves
// their clients on a unix socket. `lamina` starts it when it is needed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/cli"
	"github.com/lamina-vm/lamina/internal/client"
	"github.com/lamina-vm/lamina/internal/daemon"
	"github.com/lamina-vm/lamina/internal/fleet/document"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/tool/virtinstall"
	"github.com/lamina-vm/lamina/internal/virtctl"
	"github.com/lamina-vm/lamina/internal/vm/qemu"
)

const usage = `Usage: laminad [--idle-exit DURATION]

The daemon of lamina: owns the running machines of one home and serves the
commands of its user. lamina starts it when it is needed; as a service, the
systemd units laminad.socket and laminad.service start it.

Options:
  --idle-exit DURATION  end when no machine ran and no command came for that
                        long, as in 5m (default: never)
  --version             print the version and end
  --help                print this and end

The home is the folder in LAMINA_HOME, else the system's folders for root, and
the user's own (XDG) for others. The machines go on when the daemon ends; the
next one takes them over.

Example:
  LAMINA_HOME=/srv/lab laminad --idle-exit 10m
`

func main() {
	if len(os.Args) > 0 {
		if tool, ok := tools[filepath.Base(os.Args[0])]; ok {
			os.Exit(tool(os.Args[1:]))
		}
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// tools are the programs that laminad is under other names: what needs more
// than lamina links is run by it this way (client.Exec).
var tools = map[string]func(args []string) int{
	client.ToolVirtInstall: install,
	client.ToolInstall:     install,
	client.ToolVerbs:       verbs,
}

// verbs is lamina over the machines of a libvirt, or of the documents of fleets.
func verbs(args []string) int {
	return cli.Over(args, cli.Heavy{
		Open:      func(ctx context.Context, uri string) (cli.Backend, error) { return virtctl.Open(ctx, uri) },
		ReadFleet: document.Read,
	})
}

// install is virt-install.
func install(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	return virtinstall.Main(ctx, args, virtinstall.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
}

// run returns the exit status: 0, 1 (failed), 2 (usage).
func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("laminad", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	idle := flags.Duration("idle-exit", 0, "")
	version := flags.Bool("version", false, "")
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		_, _ = io.WriteString(stdout, usage)
		return 0
	case err == nil && flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case err == nil && *idle < 0:
		err = fmt.Errorf("--idle-exit %s is negative", *idle)
	}
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "laminad: %v\nTry 'laminad --help'.\n", err)
		return 2
	}
	if *version {
		_, _ = fmt.Fprintf(stdout, "laminad %s\n", api.BuildVersion)
		return 0
	}
	if err := serve(*idle); err != nil {
		_, _ = fmt.Fprintf(stderr, "laminad: %v\n", err)
		return 1
	}
	return 0
}

func serve(idle time.Duration) (err error) {
	h, err := home.Find()
	if err != nil {
		return err
	}
	listener, err := daemon.Activated()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(h.Data, 0o700); err != nil {
		return err
	}
	logFile, err := daemon.OpenLog(h.DaemonLog())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, logFile.Close()) }()
	log := slog.New(slog.NewTextHandler(logFile, nil))

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The terminal that started it may go.
	signal.Ignore(syscall.SIGHUP)

	d, err := daemon.New(ctx, daemon.Options{
		Home: h, Driver: qemu.New(qemu.Options{CacheDir: h.Cache}), Log: log, Listener: listener, IdleExit: idle,
	})
	if err != nil {
		return err
	}
	return d.Serve(ctx)
}
