package qemuimg

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/qemutest"
)

// heldLines are the verbs on images that somebody else has open: a.qcow2 with
// its backing file b.qcow2, and r.raw. HELD is the one.
var heldLines = []string{
	"info HELD", "info -U HELD", "map HELD", "map -U HELD", "check HELD", "check -U HELD", "check -r all HELD",
	"convert -O raw HELD x", "convert -U -O raw HELD x", "convert -n -O FORMAT small HELD", "convert -O FORMAT small HELD",
	"create -q -f FORMAT HELD 1M", "create -q -f qcow2 -b HELD -F FORMAT x", "create -q -u -f qcow2 -b HELD -F FORMAT x 1M",
	"resize -q -f FORMAT HELD 2M", "snapshot -l HELD", "snapshot -U -l HELD", "snapshot -c s HELD", "snapshot -U -c s HELD", "snapshot -d s0 HELD", "snapshot -a s0 HELD",
	"rebase -u -b b.qcow2 -F qcow2 HELD", "rebase -U -u -b b.qcow2 -F qcow2 HELD", "rebase -f qcow2 -b '' HELD",
	"commit HELD", "amend -f FORMAT -o lazy_refcounts=on HELD", "bitmap --add HELD bm", "compare -f FORMAT HELD HELD", "compare -U HELD HELD",
	"dd -f FORMAT if=HELD of=x", "dd -U -f FORMAT if=HELD of=x", "dd -O FORMAT if=small of=HELD", "measure -O qcow2 HELD", "measure -U -O qcow2 HELD",
	"bench -c 5 -f FORMAT HELD", "bench -U -c 5 -f FORMAT HELD", "bench -w -c 5 -f FORMAT HELD",
	"map over.qcow2", "convert -O raw over.qcow2 x", "commit -f qcow2 over.qcow2", "rebase -f qcow2 -b '' over.qcow2",
}

// holding says how the image is held: by a bench without end.
var holding = []string{"bench -c 2000000000 -d 1 -f FORMAT HELD", "bench -w -c 2000000000 -d 1 -f FORMAT HELD", "bench -U -c 2000000000 -d 1 -f FORMAT HELD"}

// TestHeld has each tool use an image that each tool holds: what the stock
// tool does beside the stock tool is what ours does beside the stock tool, and
// the stock tool beside ours.
func TestHeld(t *testing.T) {
	base := heldFixtures(t)
	for _, f := range []struct{ format, file string }{{"qcow2", "a.qcow2"}, {"qcow2", "b.qcow2"}, {"raw", "r.raw"}} {
		fill := strings.NewReplacer("FORMAT", f.format, "HELD", f.file)
		for _, hold := range holding {
			if f.format == "raw" && strings.HasPrefix(hold, "bench -w") {
				continue // a raw image that we write is not shared with another writer: see docs/compatibility.md
			}
			for _, line := range heldLines {
				if f.file == "b.qcow2" && !strings.Contains(line, "over") && !strings.HasPrefix(line, "info") && !strings.HasPrefix(line, "resize") {
					continue // as the backing file of others
				}
				hold, line := fill.Replace(hold), fill.Replace(line)
				t.Run(strings.Fields(hold)[1]+" "+line, func(t *testing.T) {
					t.Parallel()
					want := heldResult(t, base, false, hold, false, line)
					for _, who := range []struct{ holder, user bool }{{false, true}, {true, false}} {
						got := heldResult(t, base, who.holder, hold, who.user, line)
						if got != want {
							t.Errorf("held by %s: %s: %s\n%s\nstock beside stock:\n%s", toolName(who.holder), hold, toolName(who.user), got, want)
						}
					}
				})
			}
		}
	}
}

func toolName(ours bool) string {
	if ours {
		return "ours"
	}
	return "stock"
}

func heldFixtures(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, line := range []string{
		"create -q -f raw small 64k", "create -q -f raw r.raw 1M", "create -q -f qcow2 b.qcow2 1M",
		"create -q -f qcow2 -b b.qcow2 -F qcow2 a.qcow2", "snapshot -c s0 a.qcow2", "create -q -f qcow2 -b b.qcow2 -F qcow2 over.qcow2",
	} {
		if r := runTool(t, false, dir, words(line)); r.status != 0 {
			t.Fatalf("%s: %s", line, r.stderr)
		}
	}
	qemutest.IO(t, "qcow2", filepath.Join(dir, "over.qcow2"), "write -P 3 0 8k")
	return dir
}

// heldResult runs a line on a copy of the images while a tool holds one.
func heldResult(t *testing.T, base string, oursHolds bool, hold string, oursRuns bool, line string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(base)); err != nil {
		t.Fatal(err)
	}
	args := words(hold)
	cmd := exec.Command(qemutest.Path(t, "qemu-img"), args...)
	if oursHolds {
		cmd = start(t, dir, nil, args...)
	}
	cmd.Dir = dir
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	awaitOpen(t, cmd.Process.Pid, filepath.Join(dir, args[len(args)-1]), args[1] != "-U")
	r := runTool(t, oursRuns, dir, words(line))
	// What else it says is compared elsewhere.
	var said []string
	for l := range strings.SplitSeq(r.stderr, "\n") {
		if strings.Contains(l, `" lock`) || strings.Contains(l, "another process") || strings.Contains(l, "force-share") {
			said = append(said, l)
		}
	}
	return fmt.Sprintf("%s\nstatus %d", strings.Join(said, "\n"), r.status)
}

// awaitOpen waits until a process has a file open and, if it takes locks,
// holds some.
func awaitOpen(t *testing.T, pid int, path string, locks bool) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	inode := fmt.Sprintf(":%d ", st.Sys().(*syscall.Stat_t).Ino)
	for range 2000 {
		time.Sleep(5 * time.Millisecond)
		if locks {
			b, err := os.ReadFile("/proc/locks")
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(b), inode) {
				// All of them, and what probing left behind is gone.
				time.Sleep(50 * time.Millisecond)
				return
			}
			continue
		}
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			if to, err := os.Stat(fmt.Sprintf("/proc/%d/fd/%s", pid, fd.Name())); err == nil && os.SameFile(to, st) {
				time.Sleep(50 * time.Millisecond)
				return
			}
		}
	}
	t.Fatalf("%s was not opened", path)
}
