package osinfo

import (
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// builtinSystems is what is known of the systems that people meet most where
// the host has no osinfo-db. It was written for Lamina, from what kernels and
// installers have drivers for and what their vendors' discs are called; it is
// no extract of the database, whose licence would not allow that. A test holds
// that both lead to the same machine (sizes aside).
//
// One line describes the releases of one vendor that are alike:
//
//	short id; name; id; family; distro; releases; drivers; size; volume id; kernel; initrd
//
// where %s is the release and %r the release as a regular expression. A range
// such as 8.0-8.10 counts its last number. Nothing but media of x86_64 is
// described; no date is.
const builtinSystems = `
debian%s;Debian %s;debian.org/debian/%s;linux;debian;8;early;server;^Debian %r\.[0-9.]+ amd64;install.amd/vmlinuz;install.amd/initrd.gz
debian%s;Debian %s;debian.org/debian/%s;linux;debian;9-10;virtio1;server;^Debian %r\.[0-9.]+ amd64;install.amd/vmlinuz;install.amd/initrd.gz
debian%s;Debian %s;debian.org/debian/%s;linux;debian;11-13;modern;server;^Debian %r\.[0-9.]+ amd64;install.amd/vmlinuz;install.amd/initrd.gz
debian%s;Debian %s;debian.org/debian/%s;linux;debian;testing;modern;server
ubuntu%s;Ubuntu %s LTS;ubuntu.com/ubuntu/%s;linux;ubuntu;14.04 16.04;virtio0;server;^Ubuntu(-Server)? %r(\.[0-9]+)? LTS amd64
ubuntu%s;Ubuntu %s LTS;ubuntu.com/ubuntu/%s;linux;ubuntu;18.04;modern;server;^Ubuntu(-Server)? %r(\.[0-9]+)? LTS amd64
ubuntu%s;Ubuntu %s LTS;ubuntu.com/ubuntu/%s;linux;ubuntu;20.04;modern;desktop;^Ubuntu(-Server)? %r(\.[0-9]+)? LTS amd64;casper/vmlinuz;casper/initrd
ubuntu%s;Ubuntu %s LTS;ubuntu.com/ubuntu/%s;linux;ubuntu;22.04 24.04;virtio1;desktop;^Ubuntu(-Server)? %r(\.[0-9]+)? LTS amd64;casper/vmlinuz;casper/initrd
fedora%s;Fedora Linux %s;fedoraproject.org/fedora/%s;linux;fedora;34-44;modern;server;^Fedora-[A-Za-z]+-(dvd-x86_64|netinst-x86_64|Live)-%r;images/pxeboot/vmlinuz;images/pxeboot/initrd.img
centos%s;CentOS %s;centos.org/centos/%s;linux;centos;6.0-6.10;virtio0+agent;server;^CentOS_?%r;images/pxeboot/vmlinuz;images/pxeboot/initrd.img
centos%s;CentOS %s;centos.org/centos/%s;linux;centos;7.0;virtio1;server;^CentOS 7 x86_64;images/pxeboot/vmlinuz;images/pxeboot/initrd.img
centos%s;CentOS %s;centos.org/centos/%s;linux;centos;8;modern;server;^CentOS-8-[0-9];images/pxeboot/vmlinuz;images/pxeboot/initrd.img
centos-stream%s;CentOS Stream %s;centos.org/centos-stream/%s;linux;centos;8-10;virtio1;server;^CentOS-Stream-%r-;images/pxeboot/vmlinuz;images/pxeboot/initrd.img
rhel%s;Red Hat Enterprise Linux %s;redhat.com/rhel/%s;linux;rhel;6.0-6.10;virtio0+agent;server
rhel%s;Red Hat Enterprise Linux %s;redhat.com/rhel/%s;linux;rhel;7.0-7.1;virtio0+usb3;server;^RHEL-%r Server\.x86_64;images/pxeboot/vmlinuz;images/pxeboot/initrd.img
rhel%s;Red Hat Enterprise Linux %s;redhat.com/rhel/%s;linux;rhel;7.2-7.9;virtio1;server;^RHEL-%r Server\.x86_64;images/pxeboot/vmlinuz;images/pxeboot/initrd.img
rhel%s;Red Hat Enterprise Linux %s;redhat.com/rhel/%s;linux;rhel;8.0-8.10 9.0-9.8 10.0-10.2;modern;server;^RHEL-%d-[0-9]+-BaseOS-x86_64;images/pxeboot/vmlinuz;images/pxeboot/initrd.img
almalinux%s;AlmaLinux %s;almalinux.org/almalinux/%s;linux;almalinux;8-10;modern;server;^AlmaLinux-%r-;images/pxeboot/vmlinuz;images/pxeboot/initrd.img
rocky%s;Rocky Linux %s;rockylinux.org/rocky/%s;linux;rocky;8-10;modern;server;^Rocky-%r-;images/pxeboot/vmlinuz;images/pxeboot/initrd.img
ol%s;Oracle Linux %s;oracle.com/ol/%s;linux;ol;8.0-8.10 9.0-9.6;modern;server;^OL-%d-;images/pxeboot/vmlinuz;images/pxeboot/initrd.img
opensuse%s;openSUSE Leap %s;opensuse.org/opensuse/%s;linux;opensuse;15.0-15.6;modern;server;^openSUSE-Leap-%r-;boot/x86_64/loader/linux;boot/x86_64/loader/initrd
opensusetumbleweed;openSUSE Tumbleweed;opensuse.org/opensuse/tumbleweed;linux;opensuse;tumbleweed;modern;server;^openSUSE-Tumbleweed-;boot/x86_64/loader/linux;boot/x86_64/loader/initrd
archlinux;Arch Linux;archlinux.org/archlinux/rolling;linux;archlinux;rolling;modern;server;^ARCH_20[0-9]{4}$;arch/boot/x86_64/vmlinuz-linux;arch/boot/x86_64/initramfs-linux.img
alpinelinux%s;Alpine Linux %s;alpinelinux.org/alpinelinux/%s;linux;alpinelinux;3.12-3.22;virtio1;small;^alpine-[a-z]+ %r\.[0-9]+ x86_64
gentoo;Gentoo Linux;gentoo.org/gentoo/rolling;linux;gentoo;rolling;virtio1;server
voidlinux;Void Linux;voidlinux.org/voidlinux/rolling;linux;voidlinux;rolling;virtio1;server
cirros%s;CirrOS %s;cirros-cloud.net/cirros/%s;linux;cirros;0.3.0-0.3.5;virtio0;tiny
cirros%s;CirrOS %s;cirros-cloud.net/cirros/%s;linux;cirros;0.4.0 0.5.0-0.5.2 0.6.0-0.6.3;cirros;tiny
linux%s;Generic Linux %s;libosinfo.org/linux/%s;linux;;2016;virtio0;server
linux%s;Generic Linux %s;libosinfo.org/linux/%s;linux;;2018 2020 2022 2024;modern;desktop
freebsd%s;FreeBSD %s;freebsd.org/freebsd/%s;freebsd;freebsd;11.0-11.4 12.0-12.4 13.0-13.5 14.0-14.3;virtio0;small;^%u_RELEASE_AMD64
openbsd%s;OpenBSD %s;openbsd.org/openbsd/%s;openbsd;openbsd;6.0-6.9 7.0-7.8;virtio0;small;^OpenBSD/amd64 +%r
netbsd%s;NetBSD %s;netbsd.org/netbsd/%s;netbsd;netbsd;8.0-8.2 9.0-9.4;none;small
winxp;Microsoft Windows XP;microsoft.com/win/xp;winnt;win;5.1;none;small
win2k3;Microsoft Windows Server 2003;microsoft.com/win/2k3;winnt;win;5.2;none;small
win%s;Microsoft Windows %s;microsoft.com/win/%s;winnt;win;7;chipset;desktop
win%s;Microsoft Windows %s;microsoft.com/win/%s;winnt;win;8 8.1 10;chipset+usb3;desktop
win%s;Microsoft Windows %s;microsoft.com/win/%s;winnt;win;11;chipset+usb3;large
win2k8r2;Microsoft Windows Server 2008 R2;microsoft.com/win/2k8r2;winnt;win;6.1;chipset;desktop
win2k12r2;Microsoft Windows Server 2012 R2;microsoft.com/win/2k12r2;winnt;win;6.3;chipset+usb3;desktop
win2k%s;Microsoft Windows Server 20%s;microsoft.com/win/2k%s;winnt;win;16 19 22 25;chipset+usb3;desktop
`

// builtinDrivers are the device sets of the table.
func builtinDrivers(set string) []Feature {
	switch set {
	case "virtio0": // virtio before its version 1.0
		return []Feature{VirtioNet, VirtioBlock}
	case "virtio0+agent":
		return []Feature{VirtioNet, VirtioBlock, VirtioSerial}
	case "virtio0+usb3":
		return []Feature{VirtioNet, VirtioBlock, VirtioSerial, VirtioRNG, XHCI}
	case "early":
		return []Feature{VirtioNet, VirtioBlock, VirtioSCSI, VirtioSerial, VirtioBalloon, VirtioRNG, XHCI}
	case "cirros":
		return []Feature{Virtio10, VirtioBlock, VirtioSCSI, VirtioSerial, VirtioBalloon, VirtioRNG}
	case "virtio1":
		return append(builtinDrivers("cirros"), Q35, XHCI)
	case "modern":
		return append(builtinDrivers("virtio1"), VirtioGPU, VirtioInput)
	case "chipset":
		return []Feature{Q35, E1000E}
	case "chipset+usb3":
		return []Feature{Q35, E1000E, XHCI}
	}
	return nil
}

// builtinSizes are the sizes of the table: round figures of ours, with which
// such systems install and work.
func builtinSizes(size string) (minimum, recommended requirement) {
	const mib, gib = 1 << 20, 1 << 30
	switch size {
	case "tiny":
		return requirement{"all", false, 1, 128 * mib, gib}, requirement{"all", false, 1, 256 * mib, gib}
	case "small":
		return requirement{"all", false, 1, 512 * mib, 5 * gib}, requirement{"all", false, 1, gib, 10 * gib}
	case "desktop":
		return requirement{"all", false, 1, 2 * gib, 25 * gib}, requirement{"all", false, 2, 4 * gib, 40 * gib}
	case "large":
		return requirement{"all", false, 2, 4 * gib, 64 * gib}, requirement{"all", false, 2, 8 * gib, 64 * gib}
	}
	return requirement{"all", false, 1, gib, 10 * gib}, requirement{"all", false, 2, 2 * gib, 20 * gib}
}

// builtinIndex is the table as a database's index.
var builtinIndex = sync.OnceValue(func() map[string]*entry {
	index := map[string]*entry{}
	for line := range strings.Lines(builtinSystems) {
		fields := strings.Split(strings.TrimSpace(line), ";")
		if len(fields) < 8 {
			continue // the empty first line
		}
		fields = append(fields, "", "", "") // of what has no media
		for _, release := range releases(fields[5]) {
			r := builtinRecord(fields, release)
			key := entityKey("os", r.id)
			index[key] = &entry{key: key, read: func() (*record, error) { return r, nil }}
		}
	}
	return index
})

func builtinRecord(fields []string, release string) *record {
	major, _, _ := strings.Cut(release, ".")
	fill := strings.NewReplacer("%s", release, "%r", regexp.QuoteMeta(release), "%d", major, "%u", strings.ReplaceAll(release, ".", "_")).Replace
	minimum, recommended := builtinSizes(fields[7])
	r := &record{
		id: "http://" + fill(fields[2]), shortIDs: []string{fill(fields[0])}, name: fill(fields[1]),
		version: release, family: fields[3], distro: fields[4],
		resources: resourceLists{minimum: []requirement{minimum}, recommended: []requirement{recommended}},
	}
	if release == "rolling" || release == "tumbleweed" {
		r.status = "rolling"
	}
	for _, f := range builtinDrivers(fields[6]) {
		r.devices = append(r.devices, deviceLink{id: f.deviceIDs()[0]})
	}
	if fields[8] != "" {
		r.media = []Media{{
			Arch: "x86_64", VolumeID: fill(fields[8]), Kernel: fields[9], Initrd: fields[10],
			Installer: true, InstallerReboots: 1, EjectAfterInstall: true,
		}}
	}
	return r
}

// releases expands "8.0-8.10 9" to 8.0, 8.1, ... 8.10, 9.
func releases(spec string) []string {
	var all []string
	for _, part := range strings.Fields(spec) {
		first, last, found := strings.Cut(part, "-")
		if !found {
			all = append(all, part)
			continue
		}
		dot := strings.LastIndexByte(first, '.') + 1
		from, _ := strconv.Atoi(first[dot:])
		to, _ := strconv.Atoi(last[strings.LastIndexByte(last, '.')+1:])
		for n := from; n <= to; n++ {
			all = append(all, first[:dot]+strconv.Itoa(n))
		}
	}
	return all
}

// builtinDevice names the devices of the table.
func builtinDevice(id string) (name, class string) {
	for _, d := range []struct {
		of          Feature
		name, class string
	}{
		{VirtioNet, "virtio-net", "net"}, {Virtio10, "virtio1.0-net", "net"}, {E1000E, "e1000e", "net"},
		{VirtioBlock, "virtio-block", "block"}, {VirtioSCSI, "virtio-scsi", "block"}, {VirtioSerial, "virtio-console", "console"},
		{VirtioBalloon, "virtio-balloon", "memory.balloon"}, {VirtioRNG, "virtio-rng", "rng"}, {VirtioGPU, "virtio1.0-gpu", "video"},
		{VirtioInput, "virtio1.0-input", "input"}, {XHCI, "qemu-xhci", "controller.usb"}, {Q35, "qemu-x86-q35", "chipset"},
	} {
		if d.of.deviceIDs()[0] == id {
			return d.name, d.class
		}
	}
	return "", ""
}
