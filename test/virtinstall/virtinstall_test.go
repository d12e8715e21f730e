// Package virtinstall runs the command lines that people give virt-install
// with real guests, by libvirt and by plain QEMU.
package virtinstall

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/guestimage"
	"github.com/lamina-vm/lamina/internal/libvirttest"
	"github.com/lamina-vm/lamina/internal/programs"
	"github.com/lamina-vm/lamina/internal/qemutest"
)

// bin is the folder of the programs.
var bin string

func TestMain(m *testing.M) { programs.Main(m, &bin) }

// backEnd is one of the two ways to run machines.
type backEnd struct {
	daemon *libvirttest.Daemon // nil for plain QEMU
	home   string
	dir    string // of the disks
}

// newBackEnd starts one that ends with the test.
func newBackEnd(t *testing.T, useLibvirt bool) *backEnd {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "lamina-vi-") // short, for the sockets in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	b := &backEnd{home: filepath.Join(dir, "home"), dir: filepath.Join(dir, "disks")}
	if err := os.Mkdir(b.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if useLibvirt {
		b.daemon = libvirttest.Start(t)
		if err := os.MkdirAll(filepath.Join(b.daemon.Dir, "lib", "boot"), 0o755); err != nil {
			t.Fatal(err)
		}
		return b
	}
	t.Cleanup(func() {
		for _, name := range strings.Fields(b.run(t, "lamina", "ls", "--names").out) {
			b.run(t, "lamina", "rm", "-f", name)
		}
		b.run(t, "lamina", "daemon", "stop")
	})
	return b
}

// outcome is how a program ended.
type outcome struct {
	out    string
	status int
}

// command is one of our programs, or the stock virt-install ("stock").
func (b *backEnd) command(t *testing.T, tool string, args ...string) *exec.Cmd {
	path := filepath.Join(bin, tool)
	if tool == "stock" {
		path = "/usr/bin/virt-install"
	}
	cmd := exec.Command(path, args...)
	if b.daemon != nil && tool != "lamina" {
		cmd = b.daemon.Command(t, path, append([]string{"--connect", "qemu:///system"}, args...)...)
	}
	cmd.Env = append(cmd.Environ(), "LC_ALL=C", "LAMINA_HOME="+b.home)
	return cmd
}

func (b *backEnd) run(t *testing.T, tool string, args ...string) outcome {
	t.Helper()
	cmd := b.command(t, tool, args...)
	out, err := cmd.CombinedOutput()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return outcome{string(out), cmd.ProcessState.ExitCode()}
}

// machines lists the names of all machines.
func (b *backEnd) machines(t *testing.T) []string {
	t.Helper()
	if b.daemon != nil {
		return strings.Fields(b.daemon.Virsh(t, "list", "--all", "--name"))
	}
	return strings.Fields(b.run(t, "lamina", "ls", "--names").out)
}

// remove ends a machine and forgets it.
func (b *backEnd) remove(t *testing.T, name string) {
	t.Helper()
	if b.daemon != nil {
		b.daemon.Virsh(t, "destroy", name)
		b.daemon.Virsh(t, "undefine", name)
	} else if o := b.run(t, "lamina", "rm", "-f", name); o.status != 0 {
		t.Errorf("rm %s: %s", name, o.out)
	}
}

// serial is what the machine has said on its serial port.
func (b *backEnd) serial(t *testing.T, name string) string {
	if b.daemon == nil {
		return b.run(t, "lamina", "logs", name).out
	}
	text, err := os.ReadFile(b.log(name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func (b *backEnd) log(name string) string { return filepath.Join(b.dir, name+".log") }

// bootLimit bounds a boot on a busy machine.
const bootLimit = 3 * time.Minute

// await waits until the machine has said something.
func (b *backEnd) await(t *testing.T, name, words string) {
	t.Helper()
	for deadline := time.Now().Add(bootLimit); ; time.Sleep(100 * time.Millisecond) {
		text := b.serial(t, name)
		if strings.Contains(text, words) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not say %q:\n%s", name, words, text)
		}
	}
}

// each runs a test on both back ends, at the same time.
func each(t *testing.T, test func(t *testing.T, b *backEnd)) {
	for _, useLibvirt := range []bool{true, false} {
		t.Run(map[bool]string{true: "libvirt", false: "qemu"}[useLibvirt], func(t *testing.T) {
			t.Parallel()
			test(t, newBackEnd(t, useLibvirt))
		})
	}
}

// bootISO makes a disc whose boot prompt shows on the serial port.
func bootISO(t *testing.T, path string) {
	t.Helper()
	root := t.TempDir()
	for name, from := range map[string]string{"isolinux.bin": "/usr/lib/ISOLINUX/isolinux.bin", "ldlinux.c32": "/usr/lib/syslinux/modules/bios/ldlinux.c32"} {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatalf("%v: run make deps", err)
		}
		if err := os.WriteFile(filepath.Join(root, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	config := "serial 0 115200\nprompt 1\ntimeout 0\nlabel x\n localboot 0\n"
	if err := os.WriteFile(filepath.Join(root, "isolinux.cfg"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	r := qemutest.Run(t, "genisoimage", "-quiet", "-R", "-V", "LAMINA", "-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", "-o", path, root)
	if r.Status != 0 {
		t.Fatal(r.Stderr)
	}
}

// nvme is how to say that a machine has an overlay on NVMe: this libvirt has no
// word for it, but hands on QEMU's.
func (b *backEnd) nvme(t *testing.T, base string) string {
	t.Helper()
	disk := filepath.Join(b.dir, "nvme.qcow2")
	if b.daemon == nil {
		return "--disk " + disk + ",bus=nvme,size=2,backing_format=qcow2,backing_store=" + base
	}
	qemutest.Img(t, "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, disk)
	return "--disk none '--qemu-commandline=-drive if=none,id=n,format=qcow2,file=" + disk + " -device nvme,drive=n,serial=1,addr=0x1a,bootindex=1'"
}

// words splits a command line at spaces, but for those between quotes.
func words(line string) []string {
	var list []string
	for i, part := range strings.Split(line, "'") {
		if i%2 == 1 {
			list = append(list, part)
		} else {
			list = append(list, strings.Fields(part)...)
		}
	}
	return list
}

// floppyReader has a guest tell what is on its floppy disk.
const floppyReader = "#cloud-config\nruncmd:\n- modprobe floppy; head -c 20 /dev/fd0 >/dev/console\n"

// TestCommandLines boots the small guest from each bus, with cache modes and
// kinds of images between them, and a disc; one has a floppy disk too.
func TestCommandLines(t *testing.T) {
	small := guestimage.Small(t)
	each(t, func(t *testing.T, b *backEnd) {
		made := filepath.Join(b.dir, "made.qcow2")
		qemutest.Img(t, "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", small, made)
		iso := filepath.Join(b.dir, "boot.iso")
		bootISO(t, iso)
		floppy, userData := filepath.Join(b.dir, "floppy.img"), filepath.Join(b.dir, "user-data")
		for name, text := range map[string]string{floppy: "THE FLOPPY WAS READ" + strings.Repeat("\n", 1440<<10-19), userData: floppyReader} {
			if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		over := func(name string) string {
			return filepath.Join(b.dir, name+".qcow2") + ",size=2,backing_store=" + small + ",backing_format=qcow2"
		}
		for _, c := range []struct{ name, line, says string }{
			{"ide", "--import --osinfo centos6.10 --graphics none --disk " + over("ide") + ",bus=ide,cache=writethrough --disk " + floppy + ",device=floppy --cloud-init user-data=" + userData, "THE FLOPPY WAS READ"},
			{"sata", "--import --osinfo debian11 --graphics none --disk " + over("sata") + ",bus=sata,cache=writeback", "login: "},
			{"virtio", "--import --osinfo debian11 --graphics none --disk " + made + ",bus=virtio,cache=none", "login: "},
			{"scsi", "--import --osinfo debian11 --graphics none --disk " + over("scsi") + ",bus=scsi,cache=unsafe,discard=unmap --cloud-init disable=on", "login: "},
			{"usb", "--import --osinfo debian11 --graphics none --disk " + over("usb") + ",bus=usb", "login: "},
			{"nvme", "--import --osinfo debian11 --graphics none " + b.nvme(t, small), "login: "},
			{"disc", "--cdrom " + iso + " --osinfo debian11 --graphics vnc --disk " + filepath.Join(b.dir, "new.qcow2") + ",size=1,cache=directsync", "boot:"},
			{"none", "--import --osinfo generic --graphics none --disk none", ""},
		} {
			t.Run(c.name, func(t *testing.T) {
				line := "--name " + c.name + " --memory 160 --vcpus 1 --network none --check all=off --noautoconsole " + c.line
				if b.daemon != nil {
					line += " --virt-type qemu --serial file,path=" + b.log(c.name)
				}
				o := b.run(t, "virt-install", words(line)...)
				if o.status != 0 {
					t.Fatalf("virt-install %s: %d\n%s", line, o.status, o.out)
				}
				b.await(t, c.name, c.says)
				b.remove(t, c.name)
			})
		}
		if left := b.machines(t); len(left) > 0 {
			t.Errorf("machines are left: %q", left)
		}
	})
}

// TestNothingIsLeft has runs fail late, and be interrupted, and looks for what
// they leave.
func TestNothingIsLeft(t *testing.T) {
	each(t, func(t *testing.T, b *backEnd) {
		reached := make(chan struct{}, 10)
		release := make(chan struct{})
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "initrd.gz") && len(r.Header.Get("Range")) == 0 {
				w.Header().Set("Content-Length", "1000000")
				_, _ = w.Write(bytes.Repeat([]byte("x"), 1000))
				w.(http.Flusher).Flush()
				reached <- struct{}{}
				select {
				case <-release:
				case <-r.Context().Done():
				}
				return
			}
			if strings.HasSuffix(r.URL.Path, "vmlinuz") {
				_, _ = w.Write([]byte("kernel"))
				return
			}
			http.NotFound(w, r)
		}))
		defer srv.Close()
		defer close(release)
		used := filepath.Join(b.dir, "used.raw")
		if err := os.WriteFile(used, make([]byte, 1<<20), 0o644); err != nil {
			t.Fatal(err)
		}
		disk := filepath.Join(b.dir, "new.qcow2")
		common := "--name left --memory 64 --osinfo generic --graphics none --noautoconsole --disk " + disk + ",size=1 "
		if b.daemon != nil {
			common += "--virt-type qemu "
		}
		check := func(t *testing.T) {
			t.Helper()
			if names := b.machines(t); len(names) > 0 {
				t.Errorf("machines: %q", names)
			}
			entries, err := os.ReadDir(b.dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if e.Name() != "used.raw" {
					t.Errorf("a file is left: %s", e.Name())
				}
			}
			where := filepath.Join(b.home, "images")
			if b.daemon != nil {
				where = filepath.Join(b.daemon.Dir, "lib", "boot")
			}
			if files, _ := filepath.Glob(filepath.Join(where, "*")); len(files) > 0 {
				t.Errorf("files are left: %q", files)
			}
		}
		// QEMU finds the lock of another program, after all else is made.
		t.Run("locked", func(t *testing.T) {
			holder := holdLock(t, used)
			o := b.run(t, "virt-install", strings.Fields(common+"--network none --import --cloud-init disable=on --check all=off --disk "+used)...)
			if o.status != 1 || !strings.Contains(o.out, "lock") {
				t.Errorf("status %d: %s", o.status, o.out)
			}
			holder()
			check(t)
		})
		t.Run("refused", func(t *testing.T) {
			o := b.run(t, "virt-install", strings.Fields(common+"--network network=nowhere --import --cloud-init disable=on")...)
			if o.status != 1 || !strings.Contains(o.out, "nowhere") {
				t.Errorf("status %d: %s", o.status, o.out)
			}
			check(t)
		})
		t.Run("interrupted", func(t *testing.T) {
			cmd := b.command(t, "virt-install", strings.Fields(common+"--network none --location "+srv.URL+",kernel=vmlinuz,initrd=initrd.gz")...)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			<-reached // it looked whether the file is there
			<-reached // it fetches it
			if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGINT); err != nil {
				t.Error(err)
			}
			_ = cmd.Wait()
			if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(out.String(), "aborted") {
				t.Errorf("status %d: %s", cmd.ProcessState.ExitCode(), out.String())
			}
			check(t)
		})
	})
}

// TestSeedKept: with an install phase a seed goes when that has begun; without
// one, on libvirt, the definition names it, and it stays.
func TestSeedKept(t *testing.T) {
	b := newBackEnd(t, true)
	userData := filepath.Join(b.dir, "user-data")
	if err := os.WriteFile(userData, []byte("#cloud-config\n{}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for more, kept := range map[string]bool{"--import": false, "--import --install no_install=yes": true} {
		o := b.run(t, "virt-install", strings.Fields("--name seeded --memory 64 --osinfo generic --graphics none --network none --disk none --virt-type qemu --noautoconsole --cloud-init user-data="+userData+" "+more)...)
		if o.status != 0 {
			t.Fatalf("%s: %d: %s", more, o.status, o.out)
		}
		seeds, err := filepath.Glob(filepath.Join(b.daemon.Dir, "lib", "boot", "*"))
		if err != nil {
			t.Fatal(err)
		}
		definition := b.daemon.Virsh(t, "dumpxml", "--inactive", "seeded")
		if kept != (len(seeds) == 1) || kept != strings.Contains(definition, "/virtinst-") {
			t.Errorf("%s: seeds %q, and the definition is\n%s", more, seeds, definition)
		}
		for _, s := range seeds {
			if !strings.Contains(definition, filepath.Base(s)) {
				t.Errorf("%s: nothing names %s", more, s)
			}
			if err := os.Remove(s); err != nil {
				t.Error(err)
			}
		}
		b.remove(t, "seeded")
	}
}

// holdLock has the stock qemu-io hold an image open until the function that is
// returned is called.
func holdLock(t *testing.T, path string) func() {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, qemutest.Path(t, "qemu-io"), "-f", "raw", path)
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
	if _, err := fmt.Fprintln(in, "length"); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil { // it has the image open
		t.Fatal(err)
	}
	return func() {
		_ = in.Close()
		cancel()
		_ = cmd.Wait()
	}
}

// TestWallTime compares the time of --import --noautoconsole with that of the
// stock tool. The issue asks for a quarter.
func TestWallTime(t *testing.T) {
	stock, ours := newBackEnd(t, true), newBackEnd(t, false)
	small := guestimage.Small(t)
	measure := func(b *backEnd, tool, extra string) time.Duration {
		best := time.Hour
		for i := range 4 {
			disk := filepath.Join(b.dir, fmt.Sprintf("%s%d.qcow2", tool, i))
			qemutest.Img(t, "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", small, disk)
			begun := time.Now()
			o := b.run(t, tool, strings.Fields("--name timed --memory 128 --osinfo debian11 --import --graphics none --network none --noautoconsole --disk "+disk+extra)...)
			took := time.Since(begun)
			if o.status != 0 {
				t.Fatalf("%s: %s", tool, o.out)
			}
			b.remove(t, "timed")
			if i > 0 { // the first finds out what the host can
				best = min(best, took)
			}
		}
		return best
	}
	a, b := measure(stock, "stock", " --virt-type qemu"), measure(ours, "virt-install", "")
	t.Logf("stock %v, ours %v: %.2f", a, b, float64(b)/float64(a))
	if 4*b > a {
		t.Errorf("ours takes %v, stock %v: more than a quarter", b, a)
	}
}
