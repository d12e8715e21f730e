package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/libvirttest"
)

// TestPrintXMLTime: `virt-install --print-xml --dry-run` takes at most a tenth
// of the stock tool's time, on QEMU alone and on a libvirtd. What other
// programs take is not ours, so the shortest of some runs counts, and there are
// more while that is too long.
func TestPrintXMLTime(t *testing.T) {
	const limit, atLeast, atMost = 0.1, 5, 30
	const stockTool = "/usr/bin/virt-install"
	if _, err := os.Stat(stockTool); err != nil {
		t.Fatalf("%v: run make deps", err)
	}
	d := libvirttest.StartWith(t, libvirttest.Options{PrivateNetwork: true})
	dir := t.TempDir()
	ours := filepath.Join(bin, "virt-install")
	args := []string{"--print-xml", "--dry-run", "--name", "web", "--osinfo", "debian11", "--import", "--disk", "none", "--memory", "1024"}
	run := func(tool string, more ...string) time.Duration {
		t.Helper()
		cmd := exec.Command(tool, append(more, args...)...)
		cmd.Env = append(os.Environ(), home.Env+"="+filepath.Join(dir, "home"), "XDG_CACHE_HOME="+filepath.Join(dir, "cache"))
		start := time.Now()
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %q: %v\n%s", tool, cmd.Args, err, out)
		}
		return time.Since(start)
	}
	kinds := []struct {
		name string
		more []string
	}{{"QEMU alone", nil}, {"libvirtd", []string{"--connect", d.URI}}}
	least := []time.Duration{time.Hour, time.Hour}
	stock := time.Hour
	slow := func(i int) bool { return float64(least[i]) > limit*float64(stock) }
	for n := 0; n < atLeast || n < atMost && (slow(0) || slow(1)); n++ {
		if n < atLeast {
			stock = min(stock, run(stockTool, "--connect", d.URI))
		}
		for i, k := range kinds {
			least[i] = min(least[i], run(ours, k.more...))
		}
	}
	for i, k := range kinds {
		t.Logf("%s: %v, stock %v: %.3f", k.name, least[i], stock, float64(least[i])/float64(stock))
		if slow(i) {
			t.Errorf("on %s it takes %v, of stock's %v more than %v", k.name, least[i], stock, limit)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "home")); !os.IsNotExist(err) {
		t.Errorf("it made a home: %v", err)
	}
}
