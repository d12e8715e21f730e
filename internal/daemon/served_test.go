package daemon

import (
	"crypto/ed25519"
	"crypto/rand"
	"net"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/vm"
)

// TestSharedHostKey: a guest whose SSH server goes on with the template's key has not
// confirmed its identity.
func TestSharedHostKey(t *testing.T) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	config := &ssh.ServerConfig{NoClientAuth: true}
	config.AddHostKey(signer)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if _, _, _, err := ssh.NewServerConn(conn, config); err == nil {
				t.Error("somebody logged in")
			}
			_ = conn.Close()
		}
	}()
	defer func() { _ = l.Close(); <-done }()
	forwards := []vm.Forward{{Proto: "tcp", HostPort: l.Addr().(*net.TCPAddr).Port, GuestPort: 22}}
	x, _, g := warmTester(t)
	x.warm()
	// One that was told of its keys is not asked.
	if _, _, e := x.cloneWarm(api.CloneRequest{Names: []string{"known"}, MachineConfig: api.MachineConfig{Forwards: forwards}}); e != nil {
		t.Error(e)
	}
	g.strange.Store(true)
	_, _, e := x.cloneWarm(api.CloneRequest{Names: []string{"a"}, MachineConfig: api.MachineConfig{Forwards: forwards}})
	served := string(ssh.MarshalAuthorizedKey(signer.PublicKey()))
	x.says("a server that Lamina does not know", e, served[:len(served)-1], "--cold")
	if e == nil || e.Problem == nil || e.Problem.Kind != KindIdentity {
		t.Errorf("%+v", e)
	}
	if m := x.machine("a"); m.State != api.Stuck || m.Identity != nil {
		t.Errorf("%+v", m)
	}
	// Where nobody answers, nobody serves a key.
	_ = l.Close()
	<-done
	if _, _, e := x.cloneWarm(api.CloneRequest{Names: []string{"b"}, MachineConfig: api.MachineConfig{Forwards: forwards}}); e != nil {
		t.Error(e)
	}
}

func TestSSHAddress(t *testing.T) {
	for want, f := range map[string]vm.Forward{
		"127.0.0.1:2222":    {Proto: "tcp", HostAddr: "0.0.0.0", HostPort: 2222, GuestPort: 22},
		"127.0.0.1:2223":    {HostPort: 2223, GuestPort: 22},
		"192.0.2.1:2224":    {Proto: "tcp", HostAddr: "192.0.2.1", HostPort: 2224, GuestPort: 22},
		"[2001:db8::1]:222": {Proto: "tcp", HostAddr: "2001:db8::1", HostPort: 222, GuestPort: 22},
		"":                  {Proto: "udp", HostPort: 2222, GuestPort: 22},
	} {
		if got := sshAddress([]vm.Forward{{Proto: "tcp", HostPort: 80, GuestPort: 80}, f}); got != want {
			t.Errorf("%+v: %q", f, got)
		}
	}
}
