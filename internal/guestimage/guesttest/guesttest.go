// Package guesttest starts a guest in a test, follows it to its login prompt,
// talks to it over SSH, and stops it.
package guesttest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/lamina-vm/lamina/internal/guest/boot"
	"github.com/lamina-vm/lamina/internal/guest/seed"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/qemu"
)

// How long things may take on a machine that does much else, under TCG.
const (
	stopTimeout = 3 * time.Minute
	sshTimeout  = 3 * time.Minute

	consoleTimeout = 3 * time.Minute
)

// Config says what to start. Disk.Path, Disk.Format and Disk.Bus must be set.
type Config struct {
	Disk   vm.Disk
	Memory int64 // bytes; 0 means 192 MiB
	// Seed is what the guest is told; nil attaches no seed. Keys of the
	// test are added to it.
	Seed *seed.Config
	// CPU is the model, "" for the driver's choice.
	CPU string
	// Agents gives it the channels of both guest agents: see [Guest.Agents].
	Agents bool
	// NoNIC leaves the card out, and a place for it and a drive.
	NoNIC bool
}

// Guest is a running guest. It is killed at the end of the test.
type Guest struct {
	vm.Machine
	t      testing.TB
	dir    string
	user   string
	signer ssh.Signer
	keys   []string // the host keys that the guest must have; nil is any
	hints  boot.Hints
}

// Start starts a guest.
func Start(t testing.TB, c Config) *Guest {
	t.Helper()
	dir := t.TempDir()
	if c.Memory == 0 {
		c.Memory = 192 << 20
	}
	g := &Guest{t: t, dir: filepath.Join(dir, "vm"), hints: boot.Hints{DiskBus: string(c.Disk.Bus), HasSeed: c.Seed != nil, TCG: true}}
	spec := vm.Spec{
		Name:   "guest",
		Memory: c.Memory,
		Accel:  vm.AccelTCG,
		CPU:    c.CPU,
		Disks:  []vm.Disk{c.Disk},
		NICs:   []vm.NIC{{Forwards: []vm.Forward{{GuestPort: 22}}}},
		RNG:    true,
	}
	if c.NoNIC {
		spec.NICs, spec.HotplugPorts = nil, 2
	}
	if c.Agents {
		spec.GenerationID = vm.NewUUID()
		for _, target := range []string{vm.ChannelLamina, vm.ChannelAgent} {
			spec.Channels = append(spec.Channels, vm.Channel{Char: vm.Char{Type: vm.CharUnix, Listen: true}, Target: target})
		}
	}
	if c.Seed != nil {
		s := *c.Seed
		var key string
		g.signer, key = NewKey(t)
		g.user = s.User
		s.SSHKeys = append(s.SSHKeys[:len(s.SSHKeys):len(s.SSHKeys)], key)
		path := filepath.Join(dir, "seed.iso")
		if err := seed.Write(path, s); err != nil {
			t.Fatal(err)
		}
		spec.Disks = append(spec.Disks, vm.SeedDisk(path, c.Disk.Bus))
	}
	m, err := qemu.New(qemu.Options{}).Start(t.Context(), spec, g.dir)
	if err != nil {
		t.Fatal(err)
	}
	g.Machine = m
	t.Cleanup(func() {
		// The test's context is done by now.
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := m.Kill(ctx); err != nil && !errors.Is(err, vm.ErrNotRunning) {
			t.Errorf("kill the guest: %v", err)
		}
		_ = m.Release()
	})
	return g
}

// NewKey makes a person's SSH key and its line of authorized_keys.
func NewKey(t testing.TB) (ssh.Signer, string) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return signer, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
}

// Agents returns the sockets of the channels of Lamina's and of QEMU's agent.
func (g *Guest) Agents() (lamina, qga string) {
	return filepath.Join(g.dir, qemu.ChannelSocket(0)), filepath.Join(g.dir, qemu.ChannelSocket(1))
}

// Become has SSH log in as another user with another key from now on, and insist
// on the guest having these host keys.
func (g *Guest) Become(user string, signer ssh.Signer, hostKeys []string) {
	g.user, g.signer, g.keys = user, signer, hostKeys
}

// checkHostKey is an [ssh.HostKeyCallback].
func (g *Guest) checkHostKey(_ string, _ net.Addr, key ssh.PublicKey) error {
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
	if g.keys != nil && !slices.Contains(g.keys, line) {
		return fmt.Errorf("the guest has the host key %s, not one of %s", line, g.keys)
	}
	return nil
}

// Watch follows the boot from its first byte, with the product's watcher, to
// its end.
func (g *Guest) Watch() boot.Result {
	g.t.Helper()
	r, err := g.watch(g.t.Context(), boot.Options{})
	if err != nil {
		g.t.Fatal(err)
	}
	return r
}

// WatchWait follows the boot until the watcher has something to say of what
// the guest waits for, and returns that and what it would have told in the
// end, without waiting for it. A guest that reaches its login prompt, or
// stops, before that fails the test.
func (g *Guest) WatchWait() (note string, r boot.Result) {
	g.t.Helper()
	ctx, cancel := context.WithCancel(g.t.Context())
	defer cancel()
	r, err := g.watch(ctx, boot.Options{OnEvent: func(e boot.Event) {
		if e.Note != "" {
			note = e.Note
			cancel()
		}
	}})
	if err == nil {
		g.t.Fatalf("the boot ended before it waited for anything: %+v, problem %+v", r, r.Problem)
	}
	// The same log again, with the patience of a few seconds.
	r, err = g.watch(g.t.Context(), boot.Options{Timeout: 3 * time.Second})
	if err != nil {
		g.t.Fatal(err)
	}
	return note, r
}

func (g *Guest) watch(ctx context.Context, o boot.Options) (boot.Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	o.Hints = g.hints
	done := make(chan struct{})
	go func() {
		_, _ = g.Wait(ctx)
		close(done)
	}()
	log, err := boot.Follow(ctx, g.SerialLog(), done)
	if err != nil {
		return boot.Result{}, err
	}
	defer func() { _ = log.Close() }()
	return boot.Watch(ctx, boot.Sources{Serial: log, Screen: g.ScreenText}, o)
}

// Login follows the boot, which must reach the login prompt.
func (g *Guest) Login() boot.Result {
	g.t.Helper()
	r := g.Watch()
	if !r.Login {
		g.t.Fatalf("no login prompt: %+v", r.Problem)
	}
	return r
}

// SSH runs a command in the guest as the seed's user and returns its standard
// output. It tries until the guest's SSH server answers; a command that fails
// fails the test.
func (g *Guest) SSH(command string) string {
	g.t.Helper()
	if g.signer == nil {
		g.t.Fatal("no SSH key: the guest has no seed, and was not told to become anybody")
	}
	deadline := time.Now().Add(sshTimeout)
	for {
		client, err := g.dial()
		if err == nil {
			defer func() { _ = client.Close() }()
			return g.runSSH(client, command)
		}
		if time.Now().After(deadline) {
			g.t.Fatalf("ssh: %v", err)
		}
		time.Sleep(300 * time.Millisecond)
	}
}

// Console logs in at the serial port of the small guest, which is at its login
// prompt, runs a command as root and returns what it prints, without the space around
// it. It takes neither the network nor SSH, which come after the prompt.
func (g *Guest) Console(command string) string {
	g.t.Helper()
	conn, err := net.Dial("unix", g.SerialSocket())
	if err != nil {
		g.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(consoleTimeout)); err != nil {
		g.t.Fatal(err)
	}
	// The shell writes the marks in another way than the console echoes them.
	say(g.t, conn, "root\n", "# ")
	out := say(g.t, conn, "printf '<%s>' begin; "+command+"; printf '<%s>' end\n", "<end>")
	_, out, _ = strings.Cut(out, "<begin>")
	out = strings.ReplaceAll(strings.TrimSuffix(out, "<end>"), "\r", "")
	return strings.TrimSpace(out)
}

// say types text and reads until mark has come.
func say(t testing.TB, conn net.Conn, text, mark string) string {
	t.Helper()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	var seen []byte
	for b := make([]byte, 1); !bytes.HasSuffix(seen, []byte(mark)); seen = append(seen, b[0]) {
		if _, err := conn.Read(b); err != nil {
			t.Fatalf("the console says %q and then %v; want %q", seen, err, mark)
		}
	}
	return string(seen)
}

func (g *Guest) dial() (*ssh.Client, error) {
	forwards := g.Info().Forwards
	if d, ok := g.Machine.(vm.Described); ok && len(forwards) == 0 {
		for _, n := range d.RunningSpec().NICs { // one that was plugged in
			forwards = append(forwards, n.Forwards...)
		}
	}
	if len(forwards) == 0 {
		return nil, errors.New("the driver reports no forwarded port")
	}
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(forwards[0].HostPort))
	const handshake = 30 * time.Second
	conn, err := net.DialTimeout("tcp", addr, handshake)
	if err != nil {
		return nil, err
	}
	// QEMU accepts before the guest does: the handshake needs a limit too.
	_ = conn.SetDeadline(time.Now().Add(handshake))
	c, chans, reqs, err := ssh.NewClientConn(conn, addr, &ssh.ClientConfig{
		User: g.user,
		Auth: []ssh.AuthMethod{ssh.PublicKeys(g.signer)},
		// What both guests have.
		HostKeyAlgorithms: []string{ssh.KeyAlgoED25519},
		HostKeyCallback:   g.checkHostKey,
	})
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	return ssh.NewClient(c, chans, reqs), nil
}

func (g *Guest) runSSH(client *ssh.Client, command string) string {
	g.t.Helper()
	session, err := client.NewSession()
	if err != nil {
		g.t.Fatalf("ssh: %v", err)
	}
	defer func() { _ = session.Close() }()
	var out, errs strings.Builder
	session.Stdout, session.Stderr = &out, &errs
	if err := session.Run(command); err != nil {
		g.t.Fatalf("ssh %q: %v\n%s%s", command, err, out.String(), errs.String())
	}
	return out.String()
}

// Stop presses the power button and waits for the guest to power off.
func (g *Guest) Stop() {
	g.t.Helper()
	if err := g.Shutdown(g.t.Context()); err != nil {
		g.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(g.t.Context(), stopTimeout)
	defer cancel()
	exit, err := g.Wait(ctx)
	if err != nil {
		log, _ := os.ReadFile(g.SerialLog())
		g.t.Fatalf("the power button was pressed, and the guest still runs: %v; its serial log ends with\n%s", err, log[max(0, len(log)-2000):])
	}
	if exit.State != vm.StateStopped {
		g.t.Fatalf("the guest ended as %s: %s", exit.State, exit.Reason)
	}
}
