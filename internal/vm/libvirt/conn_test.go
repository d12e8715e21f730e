package libvirt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/libvirttest"
)

func TestParseURI(t *testing.T) {
	for uri, want := range map[string]string{
		"test:///default":              "inside libvirt's own library",
		"xen:///system":                "driver xen",
		"qemu:///":                     "neither /system nor /session",
		"/system":                      "names no driver",
		"qemu+tls://host/system":       "TLS",
		"qemu://host/system":           "TLS",
		"qemu+ssh:///system":           "names no host",
		"qemu+unix://host/system":      "unix socket is on this host",
		"qemu+tcp://host/system":       "transport tcp",
		"qemu:///system?x=1":           `unknown option "x"`,
		"qemu:///system?socket=a":      "not an absolute path",
		"qemu:///system?mode=x":        "mode=x",
		"qemu+ssh://-oProxy/system":    "cannot begin with '-'",
		"qemu+ssh://host/system?proxy": "proxy=",
		"qemu:///sys\x00":              "connection URI",
	} {
		if _, err := Connect(t.Context(), uri); !errors.Is(err, ErrBadURI) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", uri, err, want)
		}
	}
}

func TestDefaultURI(t *testing.T) {
	t.Setenv("LIBVIRT_DEFAULT_URI", "qemu+ssh://a/system")
	if got := DefaultURI(); got != "qemu+ssh://a/system" {
		t.Error(got)
	}
	file := filepath.Join(t.TempDir(), "libvirt.conf")
	if err := os.WriteFile(file, []byte("# uri_default = \"x\"\nuri_default = \"qemu:///session\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := configured(file, "uri_default"); got != "qemu:///session" {
		t.Error(got)
	}
}

// TestUnreachable: within moments, with the URI, the socket and what to do.
func TestUnreachable(t *testing.T) {
	dir := t.TempDir()
	none := filepath.Join(dir, "none")
	silent := filepath.Join(dir, "silent")
	garbage := filepath.Join(dir, "garbage")
	for path, answer := range map[string]string{silent: "", garbage: "HTTP/1.1 400 Bad Request\r\n\r\n"} {
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer func() { _ = c.Close() }()
				_, _ = c.Write([]byte(answer))
			}
		}()
	}
	for path, want := range map[string]string{none: "no such file", silent: "deadline", garbage: "not libvirt's protocol"} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		uri := "qemu+unix:///system?socket=" + path
		_, err := Connect(ctx, uri)
		cancel()
		if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), uri) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

// TestSSH: what is run on the other host joins the socket there, by the helper or by
// netcat; a failing ssh is heard.
func TestSSH(t *testing.T) {
	d := libvirttest.Shared(t)
	socket := filepath.Join(d.Dir, "run", "libvirt-sock")
	bin := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+text), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// This ssh runs its last argument where the daemon's sockets are in their
	// usual places, and says what it was given.
	put("ssh", `echo "$@" > `+bin+`/args
for last; do :; done
exec `+strings.Join(d.Command(t, "sh").Args, " ")+` -c "$last"`)
	put("deaf", "echo 'Permission denied (publickey).' >&2; exit 255")
	for _, more := range []string{"socket=" + socket, "", "proxy=native", "proxy=netcat"} {
		c, err := Connect(t.Context(), fmt.Sprintf("qemu+ssh://me@host.example:2222/system?command=%s/ssh&keyfile=/k&no_tty=1&%s", bin, more))
		if err != nil {
			t.Errorf("%s: %v", more, err)
			continue
		}
		if v, err := c.Version(t.Context()); err != nil || v.Major < 5 || !c.Remote() {
			t.Errorf("%s: version %v, %v, remote %v", more, v, err, c.Remote())
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	args, err := os.ReadFile(filepath.Join(bin, "args"))
	if err != nil || !strings.HasPrefix(string(args), "-T -e none -p 2222 -l me -i /k -o BatchMode=yes -- host.example sh -c ") {
		t.Errorf("%q, %v", args, err)
	}
	_, err = Connect(t.Context(), "qemu+ssh://host/system?command="+bin+"/deaf")
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "Permission denied (publickey).") {
		t.Errorf("%v", err)
	}
}

// TestClose: nothing of a connection is left, whatever it was doing.
func TestClose(t *testing.T) {
	d := libvirttest.Shared(t)
	before := runtime.NumGoroutine()
	c, err := Connect(t.Context(), d.URI)
	if err != nil {
		t.Fatal(err)
	}
	done, err := c.Events(t.Context(), func(Event) {})
	if err != nil {
		t.Fatal(err)
	}
	late, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Capabilities(late); !errors.Is(err, context.Canceled) {
		t.Errorf("a call after its context: %v", err)
	}
	for range 2 {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	<-done
	<-c.Done()
	if _, err := c.Capabilities(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("a call after Close: %v", err)
	}
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines, %d before", n, before)
	}
}

// TestSession: the user's own daemon is started where it does not run, by
// whatever of its programs is installed.
func TestSession(t *testing.T) {
	d := libvirttest.Shared(t)
	run, bin := t.TempDir(), t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", run)
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	// For root a session daemon is the system's, so another one stands in.
	script := fmt.Sprintf("#!/bin/sh\n[ \"$*\" = '--timeout=120 --daemon' ] && mkdir -p %s/libvirt && ln -s %s %s/libvirt/libvirt-sock\n",
		run, filepath.Join(d.Dir, "run", "libvirt-sock"), run)
	if err := os.WriteFile(filepath.Join(bin, "virtqemud"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	c := open(t, "qemu:///session")
	if _, err := c.Domains(t.Context()); err != nil || !c.Session() {
		t.Errorf("%v, session %v", err, c.Session())
	}
}
