package libvirt

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/libvirttest"
)

// TestSSHServer: libvirtd through a real sshd on this host: by the helper and
// by netcat, a machine's life and picture; a server with another key, a key
// that is not let in, and a session that is killed are told apart.
func TestSSHServer(t *testing.T) {
	s := startSSHServer(t)
	docs := map[string]string{"": "ssh-auto", "proxy=native": "ssh-native", "proxy=netcat": "ssh-netcat", "socket=" + filepath.Join(s.daemon.Dir, "run", "libvirt-sock"): "ssh-socket"}
	for more, name := range docs {
		c := open(t, s.uri("me", more))
		dom, err := c.Create(t.Context(), tiny(t, name), StartOptions{Paused: true})
		if err != nil {
			t.Fatalf("%s: %v", more, err)
		}
		if pic, err := dom.Screenshot(t.Context()); err != nil || pic.Width == 0 {
			t.Errorf("%s: picture %dx%d, %v", more, pic.Width, pic.Height, err)
		}
		if err := dom.Destroy(t.Context(), true); err != nil {
			t.Errorf("%s: %v", more, err)
		}
	}
	for user, want := range map[string]string{"stranger": "Permission denied", "elsewhere": "Host key verification failed"} {
		c, err := Connect(t.Context(), s.uri(user, ""))
		if err == nil {
			_ = c.Close()
			t.Errorf("%s: connected", user)
		} else if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", user, err, want)
		}
	}
	c := open(t, s.uri("me", ""))
	if err := s.killSessions(t); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.Done():
	case <-time.After(time.Minute):
		t.Fatal("the connection outlives its session")
	}
	if _, err := c.Version(t.Context()); err == nil {
		t.Error("a call over a session that was killed succeeded")
	}
}

// sshServer is an sshd where the tests' daemon has its sockets in their usual
// places, with configuration, keys and port of its own.
type sshServer struct {
	daemon *libvirttest.Daemon
	dir    string
	port   int
	cmd    *exec.Cmd
}

func startSSHServer(t *testing.T) *sshServer {
	t.Helper()
	s := &sshServer{daemon: libvirttest.Shared(t), dir: t.TempDir()}
	for _, key := range []string{"host", "me", "stranger"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", key, "-f", filepath.Join(s.dir, key)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v: %s", err, out)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.port = l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s.configure(t)
	// It wants this folder, which the system's own has too.
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		t.Fatal(err)
	}
	const program = "/usr/sbin/sshd"
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("%v: run make deps", err)
	}
	log, err := os.Create(filepath.Join(s.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	s.cmd = s.daemon.Command(t, program, "-D", "-e", "-f", filepath.Join(s.dir, "sshd_config"))
	s.cmd.Stderr = log
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(s.dir, "log"))
			t.Logf("sshd: %s", b)
		}
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	})
	s.await(t)
	return s
}

// configure writes the server's configuration, and those of ssh for who may
// come in, for another key, and for who expects another server.
func (s *sshServer) configure(t *testing.T) {
	t.Helper()
	read := func(name string) string {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	file := func(name string) string { return filepath.Join(s.dir, name) }
	// Without PAM nobody gets in whose password is locked.
	pam := map[bool]string{true: "yes", false: "no"}[regexp.MustCompile(`(?m)^root:!`).MatchString(read("/etc/shadow"))]
	known := func(key string) string { return fmt.Sprintf("[127.0.0.1]:%d %s", s.port, read(file(key+".pub"))) }
	texts := map[string]string{
		"sshd_config": fmt.Sprintf("ListenAddress 127.0.0.1:%d\nHostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nPidFile none\nUsePAM %s\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n",
			s.port, file("host"), file("me.pub"), pam),
		"known": known("host"), "known-elsewhere": known("stranger"),
	}
	for user, key := range map[string]string{"me": "me", "stranger": "stranger", "elsewhere": "me"} {
		hosts := file("known")
		if user == "elsewhere" {
			hosts = file("known-elsewhere")
		}
		texts["config-"+user] = fmt.Sprintf("IdentityFile %s\nIdentitiesOnly yes\nUserKnownHostsFile %s\nGlobalKnownHostsFile none\n", file(key), hosts)
		texts["ssh-"+user] = fmt.Sprintf("#!/bin/sh\nexec ssh -F %s \"$@\"\n", file("config-"+user))
	}
	for name, text := range texts {
		if err := os.WriteFile(file(name), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
}

// uri leads to the daemon by ssh, as one of those whom configure knows.
func (s *sshServer) uri(user, more string) string {
	return fmt.Sprintf("qemu+ssh://root@127.0.0.1:%d/system?command=%s&no_tty=1&%s", s.port, filepath.Join(s.dir, "ssh-"+user), more)
}

// await waits until the server listens.
func (s *sshServer) await(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)))
		if err == nil {
			_ = c.Close()
			return
		}
		if time.Now().After(end) {
			t.Fatalf("sshd does not listen: %v", err)
		}
	}
}

// killSessions kills the server's processes for its connections.
func (s *sshServer) killSessions(t *testing.T) error {
	t.Helper()
	pid := s.cmd.Process.Pid
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return err
	}
	if len(strings.Fields(string(b))) == 0 {
		return errors.New("sshd has no session")
	}
	for _, word := range strings.Fields(string(b)) {
		child, err := strconv.Atoi(word)
		if err != nil {
			return err
		}
		p, err := os.FindProcess(child)
		if err == nil {
			err = p.Kill()
		}
		if err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
	}
	return nil
}
