package qemuimg

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/qemutest"
)

// machine is a way in which QEMU has an image open, by the options of its
// nodes and of its device.
type machine struct {
	name, format string
	node         string
	device       string // "none" for a node that nothing uses
}

var machines = []machine{
	{"guest", "qcow2", "", ""},
	{"guest, share-rw", "qcow2", "", ",share-rw=on"},
	{"guest, read-only", "qcow2", ",read-only=on", ""},
	{"no guest", "qcow2", "", "none"},
	{"guest", "raw", "", ""},
	{"guest, share-rw", "raw", "", ",share-rw=on"},
	{"guest, read-only", "raw", ",read-only=on", ""},
}

// arguments are those of a machine that does not run, with the image of each
// folder.
func (m machine) arguments(image string, dirs ...string) []string {
	args := []string{"-accel", "tcg", "-S", "-nodefaults", "-display", "none", "-m", "4", "-machine", "microvm", "-qmp", "stdio"}
	for i, dir := range dirs {
		args = append(args, "-blockdev", fmt.Sprintf("driver=%s,node-name=n%d,file.driver=file,file.filename=%s%s", m.format, i, filepath.Join(dir, image), m.node))
		if m.device != "none" {
			args = append(args, "-device", fmt.Sprintf("virtio-blk-device,drive=n%d%s", i, m.device))
		}
	}
	return args
}

// boot starts a machine in a folder. It is there, or the text says why not,
// when boot returns; end ends it.
func boot(t *testing.T, dir string, args []string) (refused string, end func()) {
	t.Helper()
	cmd := exec.Command(qemutest.Path(t, "qemu-system-x86_64"), args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	end = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	limit := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer limit.Stop()
	// It answers once everything is set up; to write to one that has ended
	// fails, which reading says too.
	_, _ = io.WriteString(in, `{"execute": "qmp_capabilities"}`+"\n")
	for d := json.NewDecoder(out); ; {
		var answer struct{ Return *struct{} }
		if err := d.Decode(&answer); err != nil {
			_ = cmd.Wait()
			return fmt.Sprintf("%sstatus %d", stderr.String(), cmd.ProcessState.ExitCode()), func() {}
		}
		if answer.Return != nil {
			return "", end
		}
	}
}

// serve is boot for qemu-nbd.
func serve(t *testing.T, dir string, args ...string) (refused string, end func()) {
	t.Helper()
	// A socket's name must be short.
	sockets, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(sockets, "s")
	cmd := exec.Command(qemutest.Path(t, "qemu-nbd"), append([]string{"-t", "-k", socket}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	end = func() {
		_ = cmd.Process.Kill()
		<-ended
		_ = os.RemoveAll(sockets)
	}
	for limit := time.Now().Add(time.Minute); time.Now().Before(limit); time.Sleep(5 * time.Millisecond) {
		select {
		case <-ended:
			end()
			return fmt.Sprintf("%sstatus %d", stderr.String(), cmd.ProcessState.ExitCode()), func() {}
		default:
		}
		// It listens before it opens the image, and greets after that.
		c, err := net.Dial("unix", socket)
		if err != nil {
			continue
		}
		_ = c.SetReadDeadline(limit)
		_, err = io.ReadFull(c, make([]byte, 8))
		if err := errors.Join(err, c.Close()); err == nil {
			return "", end
		}
	}
	end()
	t.Fatalf("qemu-nbd %q does not answer", args)
	return "", nil
}

// qemuUse is one way in which a program of QEMU uses an image: it opens it in
// some folders at once.
type qemuUse struct {
	name, format, image string
	start               func(t *testing.T, dir string, dirs ...string) (refused string, end func())
}

// skips says which lines show nothing that the others do not.
func (u qemuUse) skips(line string) bool {
	verb, _, _ := strings.Cut(line, " ")
	switch {
	case u.format == "raw": // which cannot do these
		return slices.Contains([]string{"check", "snapshot", "rebase", "commit", "amend", "bitmap"}, verb)
	case u.name == "guest, share-rw" || u.name == "no guest": // qcow2 shares nothing itself
		return !slices.Contains([]string{"info HELD", "map -U HELD", "convert -O raw HELD x", "snapshot -c s HELD", "bench -w -c 5 -f FORMAT HELD"}, line)
	}
	return false
}

func qemuUses() []qemuUse {
	images := map[string]string{"qcow2": "a.qcow2", "raw": "r.raw"}
	var all []qemuUse
	for _, m := range machines {
		image := images[m.format]
		all = append(all, qemuUse{m.name, m.format, image, func(t *testing.T, dir string, dirs ...string) (string, func()) {
			return boot(t, dir, m.arguments(image, dirs...))
		}})
	}
	for format, image := range images {
		for _, options := range [][]string{{"-f", format}, {"-r", "-f", format}} {
			all = append(all, qemuUse{"qemu-nbd " + options[0], format, image, func(t *testing.T, dir string, dirs ...string) (string, func()) {
				var ends []func()
				endAll := func() {
					for _, end := range ends {
						end()
					}
				}
				for _, d := range dirs {
					refused, end := serve(t, dir, append(options, filepath.Join(d, image))...)
					if ends = append(ends, end); refused != "" {
						endAll()
						return refused, func() {}
					}
				}
				return "", endAll
			}})
		}
	}
	return all
}

// TestHeldByQEMU uses images that a machine or qemu-nbd has open, line by line
// with both tools: all that they say, and what they leave, is the same.
func TestHeldByQEMU(t *testing.T) {
	base := heldData(t)
	for _, use := range qemuUses() {
		t.Run(use.name+" "+use.format, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			names := []string{"stock", "ours"}
			for _, name := range names {
				if err := os.CopyFS(filepath.Join(dir, name), os.DirFS(base)); err != nil {
					t.Fatal(err)
				}
			}
			refused, end := use.start(t, dir, names...)
			if refused != "" {
				t.Fatal(refused)
			}
			whole, err := os.ReadFile(filepath.Join(base, use.image))
			if err != nil {
				t.Fatal(err)
			}
			refusals := 0
			for _, line := range heldLines {
				if use.skips(line) {
					continue
				}
				line = strings.NewReplacer("FORMAT", use.format, "HELD", use.image).Replace(line)
				var said [2]string
				for i, name := range names {
					r := runTool(t, name == "ours", filepath.Join(dir, name), words(line))
					out := diskSize.ReplaceAllString(dates.ReplaceAllString(r.stdout, "DATE"), "${1}X")
					said[i] = fmt.Sprintf("%s%sstatus %d", benchTime.ReplaceAllString(out, "Run completed in X seconds"), r.stderr, r.status)
				}
				switch {
				case said[0] == said[1]:
				case use.format == "raw" && (strings.Contains(said[1], `Failed to get "resize" lock`) || strings.Contains(said[1], `Failed to get shared "write" lock`)):
					// A raw image that others write, or may, is not written by
					// ours: see docs/compatibility.md. The next lines find
					// the same image again.
					for _, name := range names {
						if err := os.WriteFile(filepath.Join(dir, name, use.image), whole, 0o600); err != nil {
							t.Fatal(err)
						}
					}
				default:
					t.Errorf("%s\nours:\n%s\nstock:\n%s", line, said[1], said[0])
				}
				if strings.Contains(said[0], `" lock`) {
					refusals++
				}
			}
			if refusals == 0 {
				t.Error("nothing was refused")
			}
			end()
			sameFiles(t, filepath.Join(dir, "ours"), filepath.Join(dir, "stock"))
		})
	}
}

// TestQEMUBesideOurs has machines and qemu-nbd open what our tool has open:
// they say what they say where the stock tool has it open.
func TestQEMUBesideOurs(t *testing.T) {
	base := heldData(t)
	for format, image := range map[string]string{"qcow2": "a.qcow2", "raw": "r.raw"} {
		for _, hold := range holding {
			if format == "raw" && strings.HasPrefix(hold, "bench -w") {
				continue // see TestHeld
			}
			line := strings.NewReplacer("FORMAT", format, "HELD", image).Replace(hold)
			t.Run(line, func(t *testing.T) {
				t.Parallel()
				var said [2]string
				for i, ours := range []bool{false, true} {
					dir := t.TempDir()
					if err := os.CopyFS(dir, os.DirFS(base)); err != nil {
						t.Fatal(err)
					}
					cmd := exec.Command(qemutest.Path(t, "qemu-img"), words(line)...)
					if ours {
						cmd = start(t, dir, nil, words(line)...)
					}
					cmd.Dir = dir
					if err := cmd.Start(); err != nil {
						t.Fatal(err)
					}
					defer func() {
						_ = cmd.Process.Kill()
						_ = cmd.Wait()
					}()
					awaitRequests(t, cmd.Process.Pid)
					for _, use := range qemuUses() {
						if use.format != format {
							continue
						}
						refused, end := use.start(t, dir, ".")
						end()
						said[i] += fmt.Sprintf("%s: %s\n", use.name, refused)
					}
					_ = cmd.Process.Kill()
					_ = cmd.Wait()
				}
				if said[0] != said[1] {
					t.Errorf("beside ours:\n%s\nbeside stock:\n%s", said[1], said[0])
				}
				if format == "qcow2" && !strings.Contains(line, "-U") && !strings.Contains(said[0], `" lock`) {
					t.Errorf("nothing was refused:\n%s", said[0])
				}
			})
		}
	}
}

// heldData is heldFixtures with data in the images that are held.
func heldData(t *testing.T) string {
	t.Helper()
	dir := heldFixtures(t)
	qemutest.IO(t, "qcow2", filepath.Join(dir, "a.qcow2"), "write -P 5 0 1M")
	qemutest.IO(t, "raw", filepath.Join(dir, "r.raw"), "write -P 6 0 1M")
	return dir
}

// awaitRequests waits until a bench is at work, which it is once it has all
// its locks: it has read or written more than a program does to start.
func awaitRequests(t *testing.T, pid int) {
	t.Helper()
	for limit := time.Now().Add(time.Minute); time.Now().Before(limit); time.Sleep(5 * time.Millisecond) {
		f, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
		if err != nil {
			t.Fatal(err)
		}
		var chars, written, reads, writes int64
		if _, err := fmt.Sscanf(string(f), "rchar: %d\nwchar: %d\nsyscr: %d\nsyscw: %d\n", &chars, &written, &reads, &writes); err != nil {
			t.Fatalf("%v: %s", err, f)
		}
		if chars+written > 16<<20 {
			return
		}
	}
	t.Fatal("the bench does nothing")
}
