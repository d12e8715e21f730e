package fleet

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/libvirttest"
)

const domain = `<domain type='qemu'>
  <name>%s</name>
  <memory unit='MiB'>%d</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <features><acpi/><apic/></features>
  <cpu mode='custom' match='exact'><model>qemu64</model></cpu>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s'/><target dev='vda' bus='virtio'/></disk>
    <serial type='file'><source path='%s'/><target port='0'/></serial>
    <console type='file'><source path='%s'/><target type='serial' port='0'/></console>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
  </devices>
</domain>
`

// virtClone copies a machine with virt-clone, through a libvirtd, and boots the
// copy.
func virtClone(b *testing.B, g guest) (t copyTimes) {
	d := libvirttest.Start(b)
	dir := b.TempDir()
	original := filepath.Join(dir, "original.qcow2")
	image, err := os.ReadFile(g.image)
	if err == nil {
		err = os.WriteFile(original, image, 0o644)
	}
	log := filepath.Join(dir, "original.log")
	document := filepath.Join(dir, "original.xml")
	if err == nil {
		err = os.WriteFile(document, fmt.Appendf(nil, domain, "original", g.memory>>20, original, log, log), 0o644)
	}
	if err != nil {
		b.Fatal(err)
	}
	d.Virsh(b, "define", document)
	for i := range 2 {
		name := fmt.Sprintf("copy-%d", i)
		disk, log := filepath.Join(dir, name+".qcow2"), filepath.Join(dir, name+".log")
		begun := time.Now()
		command(b, d.Command(b, "virt-clone", "--connect", "qemu:///system", "--original", "original", "--name", name, "--file", disk))
		t.copied = append(t.copied, time.Since(begun))
		t.disk = allocated(b, disk)
		// The copy's serial port, too, is to have a log of its own.
		copied := strings.ReplaceAll(d.Virsh(b, "dumpxml", name), filepath.Join(dir, "original.log"), log)
		if err := os.WriteFile(document, []byte(copied), 0o644); err != nil {
			b.Fatal(err)
		}
		d.Virsh(b, "define", document)
		d.Virsh(b, "start", name)
		awaitLogin(b, log, g.boot)
		t.login = append(t.login, time.Since(begun))
		d.Virsh(b, "destroy", name)
	}
	return t
}

// awaitLogin waits for a login prompt in a log.
func awaitLogin(b *testing.B, log string, limit time.Duration) {
	b.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		text, err := os.ReadFile(log)
		if err != nil && !os.IsNotExist(err) {
			b.Fatal(err)
		}
		if bytes.Contains(text, []byte("login:")) {
			return
		}
		if time.Now().After(end) {
			b.Fatalf("no login prompt in %s after %s: %q", log, limit, tail(text))
		}
	}
}
