package virtinstall

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/libvirttest"
	"github.com/lamina-vm/lamina/internal/qemutest"
)

// fixtures makes the files that the command lines name, in a folder that is
// the working directory of both tools.
func fixtures(t testing.TB) string {
	t.Helper()
	// Both tools go there as root; a pool of libvirt is called after it.
	dir := filepath.Join(t.TempDir(), "work")
	files := map[string]string{
		"vmlinuz": "kernel", "initrd.img": "initrd", "user-data": "#cloud-config\n{}\n", "meta-data": "instance-id: x\n",
		"network-config": "version: 2\n", "key.pub": "ssh-rsa AAAA someone\n", "password": "secret\n", "ks.cfg": "text\n", "dsdt.aml": "x",
		"OVMF_CODE.fd": strings.Repeat("x", 4096), "OVMF_VARS.fd": strings.Repeat("x", 4096), "host/file": "x", "raw.img": strings.Repeat("\x00", 1<<20),
		// The discs' content: what Debian's and Fedora's installers have.
		"debian/install.amd/vmlinuz": "kernel", "debian/install.amd/initrd.gz": "initrd", "debian/boot/isolinux.bin": strings.Repeat("b", 2048),
		"fedora/images/pxeboot/vmlinuz": "kernel", "fedora/images/pxeboot/initrd.img": "initrd", "fedora/isolinux/isolinux.bin": strings.Repeat("b", 2048),
		"fedora/isolinux/vmlinuz": "kernel", "fedora/isolinux/initrd.img": "initrd", "fedora/.treeinfo": treeinfo, "tree/.treeinfo": treeinfo, "tree/images/pxeboot/vmlinuz": "kernel", "tree/images/pxeboot/initrd.img": "initrd",
		"tree/images/boot.iso": "iso", "bare/vmlinuz": "kernel", "plain/boot.bin": strings.Repeat("b", 2048),
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	for _, d := range []string{"imgs", "empty"} {
		if err := os.Mkdir(in(d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{
		{"qemu-img", "create", "-q", "-f", "qcow2", in("disk.qcow2"), "10G"},
		{"qemu-img", "create", "-q", "-f", "qcow2", "-b", in("disk.qcow2"), "-F", "qcow2", in("over.qcow2")},
		{"qemu-img", "create", "-q", "-f", "vmdk", in("disk.vmdk"), "1G"},
		{"qemu-img", "create", "-q", "-f", "qcow2", in("used.qcow2"), "1G"},
		{"qemu-img", "create", "-q", "-f", "qcow2", in("imgs/vol.qcow2"), "1G"},
		{"qemu-img", "create", "-q", "-f", "raw", in("imgs/vol.img"), "1M"},
		{"genisoimage", "-quiet", "-R", "-V", "Debian 11.6.0 amd64 n", "-b", "boot/isolinux.bin", "-no-emul-boot", "-o", in("debian.iso"), in("debian")},
		{"genisoimage", "-quiet", "-R", "-V", "Fedora-S-dvd-x86_64-36", "-b", "isolinux/isolinux.bin", "-no-emul-boot", "-o", in("fedora.iso"), in("fedora")},
		{"genisoimage", "-quiet", "-R", "-V", "CCCOMA_X64FRE_EN-US_DV9", "-p", "MICROSOFT CORPORATION", "-publisher", "MICROSOFT CORPORATION", "-b", "boot.bin", "-no-emul-boot", "-o", in("win10.iso"), in("plain")},
		{"genisoimage", "-quiet", "-R", "-V", "NOTHING KNOWN", "-b", "boot.bin", "-no-emul-boot", "-o", in("plain.iso"), in("plain")},
		{"genisoimage", "-quiet", "-R", "-V", "DATA", "-o", in("data.iso"), in("host")},
	} {
		if r := qemutest.Run(t, args[0], args[1:]...); r.Status != 0 {
			t.Fatalf("%q: %s", args, r.Stderr)
		}
	}
	return dir
}

// treeinfo is that of Fedora's installation trees.
const treeinfo = `[general]
arch = x86_64
family = Fedora
name = Fedora 36
platforms = x86_64,xen
version = 36
[images-x86_64]
boot.iso = images/boot.iso
initrd = images/pxeboot/initrd.img
kernel = images/pxeboot/vmlinuz
[release]
name = Fedora
short = Fedora
version = 36
[tree]
arch = x86_64
platforms = x86_64,xen
`

// define makes what the command lines find on the daemon: pools, networks and
// machines.
func define(t testing.TB, d *libvirttest.Daemon, dir string) {
	t.Helper()
	xml := func(verb, doc string) {
		t.Helper()
		path := filepath.Join(t.TempDir(), "doc.xml")
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(doc, "DIR", dir)), 0o600); err != nil {
			t.Fatal(err)
		}
		d.Virsh(t, verb, path)
	}
	// The daemon has /var/lib/libvirt/images in its own namespace only.
	if out, err := d.Command(t, "mkdir", "-p", "/var/lib/libvirt/images", "/var/lib/libvirt/boot").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	xml("pool-define", `<pool type='dir'><name>default</name><target><path>/var/lib/libvirt/images</path></target></pool>`)
	xml("pool-define", `<pool type='dir'><name>imgs</name><target><path>DIR/imgs</path></target></pool>`)
	xml("pool-define", `<pool type='dir'><name>stopped</name><target><path>DIR/empty</path></target></pool>`)
	for _, pool := range []string{"default", "imgs"} {
		d.Virsh(t, "pool-start", pool)
	}
	d.Virsh(t, "vol-create-as", "default", "web.qcow2", "1G", "--format", "qcow2")
	xml("net-define", `<network><name>isolated</name><bridge name='virbr9'/><ip address='192.168.9.1' netmask='255.255.255.0'/></network>`)
	xml("define", `<domain type='qemu'><name>taken</name><uuid>11111111-2222-4333-8444-555555555555</uuid><memory unit='MiB'>64</memory><os><type machine='pc'>hvm</type></os>
	<devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='DIR/used.qcow2'/><target dev='vda' bus='virtio'/></disk>
	<interface type='network'><mac address='52:54:00:aa:bb:cc'/><source network='default'/></interface></devices></domain>`)
}
