package agent

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// serveKey is an SSH server that nobody may log in to.
func serveKey(t *testing.T, k HostKeys) string {
	t.Helper()
	signer, err := ssh.NewSignerFromKey(k.ed25519)
	if err != nil {
		t.Fatal(err)
	}
	c := &ssh.ServerConfig{PasswordCallback: func(ssh.ConnMetadata, []byte) (*ssh.Permissions, error) {
		t.Error("somebody tried to log in")
		return nil, errors.New("no")
	}}
	c.AddHostKey(signer)
	return serveOnLoopback(t, func(conn net.Conn) {
		_, _, _, err := ssh.NewServerConn(conn, c)
		if err == nil {
			t.Error("somebody logged in")
		}
	})
}

func serveOnLoopback(t *testing.T, serve func(net.Conn)) string {
	t.Helper()
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
			serve(conn)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return l.Addr().String()
}

func TestServedHostKey(t *testing.T) {
	mine, others := testIdentity(t).HostKeys, testIdentity(t).HostKeys
	public, err := mine.Public()
	if err != nil {
		t.Fatal(err)
	}
	r := Report{HostKeys: public}
	if err := r.CheckServed(t.Context(), serveKey(t, mine)); err != nil {
		t.Errorf("its own key: %v", err)
	}
	shared, err := others.Public()
	if err != nil {
		t.Fatal(err)
	}
	err = r.CheckServed(t.Context(), serveKey(t, others))
	if !errors.Is(err, ErrMismatch) || !strings.Contains(err.Error(), shared[0]) || !strings.Contains(err.Error(), "--cold") {
		t.Errorf("another's key: %v", err)
	}
	if err := (Report{}).CheckServed(t.Context(), serveKey(t, others)); !errors.Is(err, ErrMismatch) {
		t.Errorf("a key that the guest does not tell of: %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	_ = l.Close()
	for what, addr := range map[string]string{
		"nobody":            closed,
		"one that hangs up": serveOnLoopback(t, func(net.Conn) {}),
		"another server":    serveOnLoopback(t, func(c net.Conn) { _, _ = c.Write([]byte("220 mail\r\n")) }),
	} {
		if key, err := ServedHostKey(t.Context(), addr); key != "" || err != nil {
			t.Errorf("%s: %q, %v", what, key, err)
		}
	}
	mute := serveOnLoopback(t, func(c net.Conn) { _, _ = c.Write([]byte("SSH-2.0-mute\r\n")) })
	if key, err := ServedHostKey(t.Context(), mute); key != "" || err == nil || !strings.Contains(err.Error(), mute) {
		t.Errorf("a server that keeps its key: %q, %v", key, err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("stopped"))
	if _, err := ServedHostKey(ctx, closed); err == nil || err.Error() != "stopped" {
		t.Errorf("cancelled: %v", err)
	}
}

// TestUnknownServer: the guest says where the script has not found the SSH server that it
// would have to tell of the keys.
func TestUnknownServer(t *testing.T) {
	id := testIdentity(t)
	for what, c := range map[string]struct {
		files   map[string]string
		unknown bool
	}{
		"by another unit":     {map[string]string{"etc/ssh/ssh_host_rsa_key": "x"}, true},
		"a stale pid":         {map[string]string{"etc/ssh/ssh_host_rsa_key": "x", "run/sshd.pid": "4194999\n"}, true},
		"by the unit's group": {map[string]string{"etc/ssh/ssh_host_rsa_key": "x", "sys/fs/cgroup/system.slice/ssh.service/cgroup.procs": "$$\n"}, false},
		"by a socket":         {map[string]string{"etc/ssh/ssh_host_rsa_key": "x", "sys/fs/cgroup/system.slice/ssh.socket/cgroup.procs": ""}, false},
		"dropbear by itself":  {map[string]string{"etc/dropbear/x": ""}, true},
		"none":                {map[string]string{"etc/x": ""}, true},
	} {
		files := map[string]string{"etc/machine-id": "0\n", "proc/sys/kernel/hostname": "h\n"}
		for name, text := range c.files {
			files[name] = text
		}
		_, run := small(t, files)
		vars := id.testVars(t)
		// The shell itself stands in for the server.
		steps := "trap : HUP\nactive() { return 1; }\nhash=\n"
		if f := "sys/fs/cgroup/system.slice/ssh.service/cgroup.procs"; c.files[f] != "" {
			steps += "echo $$ >/" + f + "\n"
		}
		out := run(vars, steps+"renew_ssh\nreport")
		s := parseSaid([]byte(out))
		if got := s.report(time.Now()).ServerUnknown; got != c.unknown {
			t.Errorf("%s: unknown %v\n%s", what, got, out)
		}
	}
}
