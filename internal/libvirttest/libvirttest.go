// Package libvirttest is the door through which tests reach a real libvirtd:
// a private one, with configuration, state, sockets and logs of its own, that
// neither meets the host's daemon nor those of other tests. It must run as
// root; a missing libvirtd fails the test and names `make deps`.
//
// A test starts one, or shares that of its test binary:
//
//	d := libvirttest.Start(t) // ended with t
//	conn, err := libvirt.Connect(t.Context(), d.URI)
//	d.Virsh(t, "list", "--all")
//
//	func TestMain(m *testing.M) { libvirttest.Main(m) }
//	d := libvirttest.Shared(t) // started when first asked for, ended by Main
//
// The daemon lives in a mount namespace, where its folders lie over those of
// the host: [Daemon.Command] runs a program there, for which qemu:///system is
// this daemon, so that the stock virt-install can be run as people run it. All
// other paths are those of the host.
//
// Guests run as root, under TCG (type='qemu') on most machines; nothing
// confines them (no cgroups, no security driver, no mount namespaces). There
// is no network and no storage pool until a test defines one. A test that
// starts a network asks for [Options.PrivateNetwork], as bridges and their
// addresses are the host's otherwise.
package libvirttest

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Daemon is a private libvirtd.
type Daemon struct {
	// URI is how any process of this host reaches it.
	URI string
	// Dir holds the daemon's folders: run (of /run/libvirt), etc (of
	// /etc/libvirt), lib (of /var/lib/libvirt) and log (of /var/log/libvirt).
	Dir string

	network bool
	script  *exec.Cmd
	input   io.WriteCloser
	words   bytes.Buffer // of the script; read it after its end
	once    sync.Once
	err     error
}

// Options are those of [StartWith].
type Options struct {
	// PrivateNetwork puts the daemon and its guests into a network namespace
	// with nothing but a loopback, and defines the network "default" as
	// distributions do (not started). TCP ports of guests are out of reach.
	PrivateNetwork bool
}

//go:embed daemon.sh
var script string

// startLimit bounds the daemon's start on a busy machine.
const startLimit = time.Minute

// qemuConf keeps the daemon from what needs more than a bare machine has.
const qemuConf = `user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
stdio_handler = "file"
`

const defaultNetwork = `<network>
  <name>default</name>
  <uuid>5d9b4b7c-5c3a-4f0e-9b7e-0d6f4f3a7a11</uuid>
  <forward mode='nat'/>
  <bridge name='virbr0' stp='on' delay='0'/>
  <ip address='192.168.122.1' netmask='255.255.255.0'>
    <dhcp><range start='192.168.122.2' end='192.168.122.254'/></dhcp>
  </ip>
</network>
`

// Start starts a daemon that ends with the test.
func Start(t testing.TB) *Daemon {
	t.Helper()
	return StartWith(t, Options{})
}

// StartWith is [Start] with options.
func StartWith(t testing.TB, o Options) *Daemon {
	t.Helper()
	d, err := start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func start(o Options) (*Daemon, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("a private libvirtd needs root: run the tests as root")
	}
	for _, tool := range []string{"libvirtd", "virsh", "nsenter", "ip", "tini"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("%s is not installed: run make deps", tool)
		}
	}
	// The path is short, as sockets' paths must be.
	dir, err := os.MkdirTemp("/tmp", "libvirt-test-")
	if err != nil {
		return nil, err
	}
	d := &Daemon{
		Dir:     dir,
		URI:     "qemu+unix:///system?socket=" + filepath.Join(dir, "run", "libvirt-sock"),
		network: o.PrivateNetwork,
	}
	if err := d.begin(); err != nil {
		return nil, errors.Join(err, d.close(), os.RemoveAll(dir))
	}
	return d, nil
}

// begin writes the configuration, runs the script and waits for the socket.
func (d *Daemon) begin() error {
	files := map[string]string{"etc/qemu.conf": qemuConf, "etc/libvirtd.conf": ""}
	if d.network {
		files["etc/qemu/networks/default.xml"] = defaultNetwork
	}
	for name, text := range files {
		path := filepath.Join(d.Dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return fmt.Errorf("where to keep what libvirt knows of QEMU: %w", err)
	}
	outer, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	text, flags := script, uintptr(syscall.CLONE_NEWNS)
	if d.network {
		text, flags = "ip link set lo up\n"+text, flags|syscall.CLONE_NEWNET
	}
	// What libvirt finds out of QEMU takes seconds, and is kept for all tests.
	// libvirtd waits for the end of a guest that it has killed, which is there
	// until its parent has looked at it: not that of the host, which may take
	// its time, but tini.
	cmd := exec.Command("tini", "-s", "--", "sh", "-c", text, "daemon.sh", d.Dir, outer, filepath.Join(cache, "lamina-libvirt"))
	// Go makes the mounts of the new namespace private.
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: flags}
	cmd.Stdout, cmd.Stderr = &d.words, &d.words
	if d.input, err = cmd.StdinPipe(); err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("namespaces for a private libvirtd: %w", err)
	}
	d.script = cmd
	return d.await()
}

// await waits until the daemon answers.
func (d *Daemon) await() error {
	deadline := time.Now().Add(startLimit)
	for {
		c, err := net.Dial("unix", filepath.Join(d.Dir, "run", "libvirt-sock"))
		if err == nil {
			return c.Close()
		}
		gone := d.script.Process.Signal(syscall.Signal(0)) != nil || d.ended()
		if gone || time.Now().After(deadline) {
			return fmt.Errorf("the private libvirtd did not start: %w\n%s", err, d.Log())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// ended says whether the script is a zombie, as it is when it fails.
func (d *Daemon) ended() bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.script.Process.Pid))
	_, rest, found := bytes.Cut(b, []byte(") "))
	return err != nil || found && bytes.HasPrefix(rest, []byte("Z"))
}

// close ends the daemon and everything that it runs, and removes its folders.
func (d *Daemon) close() error {
	if d.script == nil {
		return nil
	}
	d.once.Do(func() {
		_ = d.input.Close() // this is what the script waits for
		if err := d.script.Wait(); err != nil {
			d.err = fmt.Errorf("the private libvirtd: %w\n%s", err, d.words.String())
		}
	})
	return d.err
}

// PID is the daemon's process.
func (d *Daemon) PID(t testing.TB) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(d.Dir, "libvirtd.pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// Log is what the daemon has said.
func (d *Daemon) Log() string {
	b, err := os.ReadFile(filepath.Join(d.Dir, "libvirtd.log"))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Command is a command that runs in the daemon's namespace: there
// qemu:///system, also as the default URI, is this daemon.
func (d *Daemon) Command(t testing.TB, name string, args ...string) *exec.Cmd {
	t.Helper()
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	enter := []string{"--target", strconv.Itoa(d.PID(t)), "--mount", "--wd=" + wd}
	if d.network {
		enter = append(enter, "--net")
	}
	cmd := exec.Command("nsenter", append(append(enter, "--", name), args...)...)
	cmd.Env = append(cmd.Environ(), "LC_ALL=C", "LIBVIRT_DEFAULT_URI=qemu:///system")
	return cmd
}

// Virsh runs the stock virsh on the daemon, which must succeed, and returns
// what it prints.
func (d *Daemon) Virsh(t testing.TB, args ...string) string {
	t.Helper()
	cmd := exec.Command("virsh", append([]string{"-c", d.URI}, args...)...)
	cmd.Env = append(cmd.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("virsh %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// shared is the daemon of the test binary.
var shared struct {
	sync.Mutex
	managed bool // by Main
	daemon  *Daemon
	err     error
}

// Main runs the tests of a package that uses [Shared], ends the shared daemon
// and exits.
func Main(m *testing.M) {
	shared.Lock()
	shared.managed = true
	shared.Unlock()
	status := m.Run()
	shared.Lock()
	defer shared.Unlock()
	if shared.daemon != nil {
		if err := shared.daemon.close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			status = 1
		}
	}
	os.Exit(status)
}

// Shared returns the daemon that all tests of the package use, who give their
// domains, pools and networks names of their own and remove them.
func Shared(t testing.TB) *Daemon {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if !shared.managed {
		t.Fatal("libvirttest.Shared needs a TestMain that calls libvirttest.Main")
	}
	if shared.daemon == nil && shared.err == nil {
		shared.daemon, shared.err = start(Options{})
	}
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.daemon
}
