package libvirttest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDaemon: the daemon is a private one, and leaves nothing, also where the
// tests left a guest running.
func TestDaemon(t *testing.T) {
	d, err := start(Options{PrivateNetwork: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.close() }()
	pid := d.PID(t)
	if out := d.Virsh(t, "net-list", "--all", "--name"); strings.TrimSpace(out) != "default" {
		t.Errorf("networks %q", out)
	}
	d.Virsh(t, "net-start", "default")
	xml := t.TempDir() + "/d.xml"
	doc := `<domain type='qemu'><name>left</name><memory unit='MiB'>16</memory><os><type machine='pc'>hvm</type></os></domain>`
	if err := os.WriteFile(xml, []byte(doc), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Virsh(t, "create", xml, "--paused")
	out, err := d.Command(t, "virsh", "list", "--name").CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "left" {
		t.Errorf("in the namespace: %q, %v", out, err)
	}
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		t.Fatal(err)
	}
	if n := inNamespace(own); n < 4 { // script, libvirtd, QEMU, dnsmasq
		t.Errorf("%d processes in the namespace", n)
	}
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
	if n := inNamespace(own); n != 0 {
		t.Errorf("%d processes are left in the namespace", n)
	}
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("the daemon is still there: %v", err)
	}
	if _, err := os.Stat(d.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("its folder is still there: %v", err)
	}
}

// inNamespace counts the processes of a mount namespace.
func inNamespace(link string) int {
	n := 0
	all, _ := filepath.Glob("/proc/[0-9]*/ns/mnt") // the pattern is a good one
	for _, p := range all {
		if l, err := os.Readlink(p); err == nil && l == link {
			n++
		}
	}
	return n
}
