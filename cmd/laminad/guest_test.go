package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/client"
	"github.com/lamina-vm/lamina/internal/guest/boot"
	"github.com/lamina-vm/lamina/internal/guestimage"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

// TestGuest takes a real guest from its image to nothing left behind, with a
// change of daemon in the middle of its boot.
func TestGuest(t *testing.T) {
	image := guestimage.Small(t)
	h := newHome(t)
	p := start(t, h)
	c := client.New(h)
	ctx := t.Context()
	tm, err := c.ImportTemplate(ctx, api.ImportRequest{Source: image, Name: "small", User: guestimage.User}, nil)
	if err != nil {
		t.Fatal(err)
	}
	signer, public := newKey(t)
	list, err := c.Clone(ctx, api.CloneRequest{Template: "small", Names: []string{"w-{1..2}"},
		MachineConfig: api.MachineConfig{Memory: 128 << 20, Accel: vm.AccelTCG, SSHKeys: []string{public}}}, nil)
	if err != nil || len(list) != 2 {
		t.Fatalf("%d clones, %v", len(list), err)
	}
	for _, m := range list {
		t.Logf("%s: %d bytes on disk, %s", m.Name, m.DiskSize, m.State)
	}
	if _, err := c.Start(ctx, "w-1", api.StartRequest{NoWait: true}, nil); err != nil {
		t.Fatal(err)
	}
	p.end(t, syscall.SIGKILL) // in the middle of the boot
	p = start(t, h)
	var seen []string
	err = c.Boot(ctx, "w-1", func(e api.Event) {
		if e.Boot != nil {
			seen = append(seen, e.Boot.Stage.String())
		}
	})
	if err != nil || len(seen) < 2 {
		t.Fatalf("boot: %q, %v", seen, err)
	}
	m, err := c.Machine(ctx, "w-1")
	if err != nil || m.State != api.Login || m.Stage != boot.StageLogin || m.SSHPort == 0 {
		t.Fatalf("%+v, %v", m, err)
	}
	t.Logf("login after %s by way of %q; %d MiB of memory, %d KiB on disk", m.LoginIn.Round(time.Millisecond), seen, m.Memory>>20, m.DiskSize>>10)
	typeOnConsole(t, c, "w-1")
	if out := overSSH(t, m, signer, "hostname"); out != "w-1\n" {
		t.Errorf("host name over SSH: %q", out)
	}
	// Its sibling on the same template starts beside it.
	if m2, err := c.Start(ctx, "w-2", api.StartRequest{}, nil); err != nil || m2.State != api.Login || m2.SSHPort == m.SSHPort {
		t.Errorf("%+v, %v", m2, err)
	}
	if m, err = c.Stop(ctx, "w-1", api.StopRequest{}, nil); err != nil || m.State != api.Stopped || m.Exit == nil {
		t.Errorf("%+v, %v", m, err)
	}
	if _, err := c.VerifyTemplate(ctx, tm.Digest, nil); err != nil {
		t.Error(err)
	}
	leaveNothing(t, c, h)
	p.end(t, syscall.SIGTERM)
}

func newKey(t *testing.T) (ssh.Signer, string) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return signer, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))) + " test"
}

// typeOnConsole logs in on the serial port and has the guest compute.
func typeOnConsole(t *testing.T, c *client.Client, name string) {
	t.Helper()
	console, err := c.Console(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = console.Close() }()
	for _, step := range []struct{ wait, send string }{
		{"login:", guestimage.User}, {"assword:", guestimage.Password}, {"$", "echo answer-$((6*7))"}, {"answer-42", "exit"},
	} {
		var got []byte
		for b := make([]byte, 1); !strings.Contains(string(got), step.wait); {
			if _, err := console.Read(b); err != nil {
				t.Fatalf("console after %q: %v; want %q", got, err, step.wait)
			}
			got = append(got, b[0])
		}
		if _, err := io.WriteString(console, step.send+"\n"); err != nil {
			t.Fatal(err)
		}
	}
}

// overSSH runs a command in the guest.
func overSSH(t *testing.T, m api.Machine, key ssh.Signer, command string) string {
	t.Helper()
	conf := &ssh.ClientConfig{User: m.User, Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, Timeout: 30 * time.Second,
		// The guest has this kind of key only, and its dropbear ends on an
		// assertion when a client would rather have another.
		HostKeyAlgorithms: []string{ssh.KeyAlgoED25519},
		HostKeyCallback:   ssh.InsecureIgnoreHostKey()} // a guest made a moment ago
	var conn *ssh.Client
	var err error
	// Its network and its host keys may come after the prompt.
	for end := time.Now().Add(2 * time.Minute); time.Now().Before(end); {
		if conn, err = ssh.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", m.SSHPort), conf); err == nil {
			break
		}
		time.Sleep(500 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	s, err := conn.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.Output(command)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// executes says whether a process is there and has not ended: one whose parent died
// may wait for init to notice its end.
func executes(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(rest, "Z") && !strings.HasPrefix(rest, "X")
}

// leaveNothing removes every machine and template.
func leaveNothing(t *testing.T, c *client.Client, h home.Home) {
	t.Helper()
	machines, err := c.Machines(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range machines {
		if err := c.Remove(t.Context(), m.Name, true); err != nil {
			t.Error(err)
		}
		if m.Run != nil && executes(m.Run.PID) {
			t.Errorf("%s outlives its removal", m.Name)
		}
	}
	templates, err := c.Templates(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, tm := range templates {
		if err := c.RemoveTemplate(t.Context(), tm.Name); err != nil {
			t.Error(err)
		}
	}
	for _, dir := range []string{h.Machines(), h.Templates(), filepath.Join(h.Run)} {
		left, err := os.ReadDir(dir)
		if err != nil {
			t.Error(err)
		}
		for _, e := range left {
			if !strings.HasPrefix(e.Name(), "laminad.") {
				t.Errorf("left behind: %s", filepath.Join(dir, e.Name()))
			}
		}
	}
}
