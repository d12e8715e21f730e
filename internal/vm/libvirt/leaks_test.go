package libvirt

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/lamina-vm/lamina/internal/libvirttest"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/domain"
	"github.com/lamina-vm/lamina/internal/vm/vmtest"
)

// TestHundredCycles: domains that are defined, started, stopped and undefined
// leave nothing, here or with libvirtd.
func TestHundredCycles(t *testing.T) {
	d := libvirttest.Shared(t)
	conn := open(t, d.URI)
	docs := make([]string, vmtest.Workers)
	for i := range docs {
		docs[i] = tiny(t, fmt.Sprintf("cycle-%d", i))
	}
	daemon := d.PID(t)
	counts := map[string]func() int{
		"libvirtd's descriptors": func() int { return vmtest.Descriptors(t, daemon) },
		"libvirtd's files": func() int {
			return vmtest.Files(t, filepath.Join(d.Dir, "run"), filepath.Join(d.Dir, "etc"), filepath.Join(d.Dir, "lib"), filepath.Join(d.Dir, "log"))
		},
		"processes of libvirtd": func() int { return inNamespaceOf(t, daemon) },
	}
	vmtest.NoLeaks(t, counts, func(worker int) {
		dom, err := conn.Define(t.Context(), docs[worker], false)
		if err != nil {
			t.Error(err)
			return
		}
		// The guest need not execute to have all that can be left behind.
		if err := dom.Start(t.Context(), StartOptions{Paused: true}); err != nil {
			t.Error(err)
		} else if err := dom.Destroy(t.Context(), true); err != nil {
			t.Error(err)
		}
		if err := dom.Undefine(t.Context(), UndefineOptions{}); err != nil {
			t.Error(err)
		}
	})
}

// tiny is the document of a small machine with the tiny guest's disk.
func tiny(t *testing.T, name string) string {
	t.Helper()
	s := vmtest.Spec(t)
	s.Name = name
	s.Graphics.VNC = vm.VNCNone
	root, err := domain.Marshal(s.WithDefaults(), domain.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return root.String()
}

// open connects for the time of the test.
func open(t *testing.T, uri string) *Conn {
	t.Helper()
	c, err := Connect(t.Context(), uri)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// inNamespaceOf counts the processes in the mount namespace of one: libvirtd's
// guests and helpers.
func inNamespaceOf(t *testing.T, pid int) int {
	t.Helper()
	link := func(pid int) string {
		to, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "ns", "mnt"))
		if err != nil {
			return "" // gone
		}
		return to
	}
	own := link(pid)
	return vmtest.Processes(t, func(p, _ int) bool { return link(p) == own })
}
