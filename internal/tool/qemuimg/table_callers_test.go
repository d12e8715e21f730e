package qemuimg

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// callersTable is command lines of programs that run qemu-img, each as it is
// in their source, and devices, which such programs name.
var callersTable = []diffGroup{
	{name: "callers", fixtures: "convert -O qcow2 a.raw base.qcow2; snapshot -c snap1 base.qcow2; create -q -f qcow2 -b base.qcow2 -F qcow2 leaf.qcow2; bitmap --add leaf.qcow2 b0; " +
		"convert -O qcow2 a.raw file:co:lon.qcow2; create -q -f qcow2 -b base.qcow2 -F qcow2 fresh.qcow2",
		prepare: prepareCallers,
		cases: []diffCase{
			// KubeVirt's importer.
			{lines: "info --output=json base.qcow2; convert -t writeback -p -O raw base.qcow2 x", why: whySteps, has: "(100.00/100%)"},
			{lines: "convert -t none -O raw base.qcow2 x -o preallocation=falloc; resize -f raw x 20971520; resize --preallocation=falloc -f raw x 30M"},
			{lines: "create -f raw x 10485760 -o preallocation=falloc; rebase -u -b '' -f qcow2 leaf.qcow2; commit -t none -q fresh.qcow2"},
			{lines: "convert -t writeback -n -O raw base.qcow2 a.raw; convert -t writeback -n -O raw base.qcow2 small"},
			// OpenStack: nova, glance, cinder.
			{lines: "info base.qcow2 --force-share --output=json; info base.qcow2 --force-share --output=json -f qcow2; info nope --force-share --output=json"},
			{lines: "convert -O raw -t none -T none -f qcow2 base.qcow2 x; convert -t writeback -O qcow2 -f qcow2 fresh.qcow2 y; convert -t none -O qcow2 -f qcow2 -c base.qcow2 z"},
			{lines: "create -f qcow2 -o backing_file=base.qcow2,backing_fmt=qcow2,size=21474836480 x; info --output=json x; resize x 32212254720; create -f qcow2 -o backing_file=base.qcow2 y"},
			{lines: "rebase -b base.qcow2 -F qcow2 fresh.qcow2; rebase -u -b base.qcow2 -F qcow2 fresh.qcow2; rebase -b '' fresh.qcow2; rebase -u -b base.qcow2 fresh.qcow2"},
			{lines: "convert -f qcow2 -O raw -l snap1 base.qcow2 x; convert -f qcow2 -O qcow2 -s snap1 base.qcow2 y; snapshot -c two base.qcow2; snapshot -d two base.qcow2"},
			{lines: "convert -O raw -t none -T none -f raw -n -W small a.raw; convert -O luks base.qcow2 x"},
			// oVirt's vdsm.
			{lines: `measure --output json -O qcow2 'json:{"file": {"driver": "file", "filename": "leaf.qcow2"}, "driver": "qcow2", "backing": null}'; measure --output json 'json:{"file": {"driver": "file", "filename": "leaf.qcow2"}}'`},
			{lines: `measure --output json -O qcow2 'json:{"file": {"driver": "host_device", "filename": "leaf.qcow2"}, "driver": "qcow2"}'`},
			{lines: "create -f qcow2 -o compat=1.1 -b nope -F qcow2 -u x 1048576; create -f qcow2 -o compat=1.1 -b nope x 1048576; create -f qcow2 -o compat=1.1 -b base.qcow2 -F qcow2 -o preallocation=metadata y"},
			{lines: "check --output json -f qcow2 base.qcow2; check --output json small; amend -o compat=0.10 v2.qcow2; amend -o compat=1.1 v2.qcow2; info v2.qcow2"},
			{lines: "convert -t none -T none -f qcow2 -O qcow2 -o compat=1.1 -W leaf.qcow2 x; convert -t none -T none -f qcow2 -O qcow2 -o compat=1.1 --bitmaps leaf.qcow2 y; info y"},
			{lines: "convert -t none -T none -f qcow2 -O qcow2 -n -B base.qcow2 leaf.qcow2 fresh.qcow2"},
			{lines: "convert -t none -T none -f qcow2 -O raw -n -B base.qcow2 base.qcow2 a.raw; convert -n -O foo -B base.qcow2 base.qcow2 a.raw"},
			{lines: "commit -t none -d -f qcow2 leaf.qcow2; commit -t none -b base.qcow2 -f qcow2 leaf.qcow2; commit -t none -b nope -f qcow2 leaf.qcow2"},
			{lines: "map --output json leaf.qcow2; resize -f qcow2 base.qcow2 20971520; rebase -t none -T none -f qcow2 -F qcow2 -b base.qcow2 leaf.qcow2"},
			{lines: "compare -f qcow2 -F raw base.qcow2 a.raw; compare -s -f qcow2 -F qcow2 base.qcow2 leaf.qcow2; compare -s base.qcow2 fresh.qcow2"},
			{lines: "bitmap --add --enable fresh.qcow2 b1; bitmap --add --disable fresh.qcow2 b2 -g 65536; bitmap --merge b0 -F qcow2 -b leaf.qcow2 fresh.qcow2 b1; bitmap --merge b0 -F qcow2 -b leaf.qcow2 fresh.qcow2 nope; bitmap --remove fresh.qcow2 b2; info --output=json fresh.qcow2"},
			{lines: "convert -n --target-is-zero -O qcow2 -B base.qcow2 leaf.qcow2 fresh.qcow2", why: "a copy that is not made is an error, and so is the exit status", has: "Cannot use --target-is-zero when the destination image has a backing file"},
			{lines: "convert -n --target-is-zero -W -O raw base.qcow2 a.raw; convert -n -f raw -O raw a.raw zeroinit:small"},
			// libvirt's storage driver.
			{lines: "create -f qcow2 -b base.qcow2 -F qcow2 -o compat=1.1,lazy_refcounts x 10240K; create -f qcow2 -o compat=1.1,lazy_refcounts,nocow=on,preallocation=metadata y 1024K; info x; info y"},
			{lines: "convert -f raw -O qcow2 -o compat=1.1,lazy_refcounts a.raw x; convert -f raw -O raw -o nocow=on a.raw y; create -f qcow2 -o cluster_size=131072,extended_l2=on,compat=1.1 z 1024K"},
			{lines: "convert --image-opts -n --target-image-opts --object secret,id=v0,data=abc driver=raw,file.filename=small driver=luks,file.filename=a.raw,key-secret=v0"},
			// libguestfs, virt-sparsify, virt-v2v.
			{lines: "info -U --output json base.qcow2; info -U --output=json --backing-chain leaf.qcow2; info --output json /dev/fd/0"},
			{lines: "create -q -f qcow2 -b a.raw -F raw -o compat=1.1 x; convert -q -f qcow2 -O qcow2 -c -o compat=1.1 x y; create -f qcow2 -o preallocation=off,compat=1.1,cluster_size=65536 z 1048576"},
			{lines: `create -q -f qcow2 -b 'json:{"file.driver":"file","file.filename":"a.raw"}' -F raw x; info x; convert x y; info --output=json 'json: { "file.driver": "file", "file.filename": "base.qcow2" }'`},
			// Packer, Proxmox, Vagrant, Lima, Incus, Ganeti, image builders.
			{lines: "create -f qcow2 x 40960M; convert -O qcow2 -c base.qcow2 x.convert; resize -f qcow2 base.qcow2 40960M; create -f qcow2 -b base.qcow2 -F qcow2 y 107374182400"},
			{lines: "create -F qcow2 -b ./base.qcow2 -f qcow2 x; info -f qcow2 x --output=json; convert -n -T none -t none -l snapshot.name=snap1 -f qcow2 -O raw base.qcow2 a.raw; resize --preallocation=metadata -f qcow2 x 20971520"},
			{lines: "dd -n -f raw -O raw osize=1M if=a.raw of=x; snapshot -a nosuch base.qcow2; snapshot -d nosuch base.qcow2; snapshot -a snap1 base.qcow2; snapshot -l base.qcow2"},
			{lines: "convert -S 16k -O qcow2 leaf.qcow2 x; rebase -b '' leaf.qcow2; convert leaf.qcow2 y -O raw; convert -fraw -Oqcow2 a.raw z; create x2 -f qcow2 1M; create -qf qcow2 -b base.qcow2 -F qcow2 x3"},
			{lines: "convert -c -f raw -O qcow2 a.raw x -o cluster_size=2M; convert -f raw -O qcow2 -o compat=0.10 -c a.raw y; measure -O qcow2 -o cluster_size=2M --size 10G --output=json"},
			// Names with a colon, and long options of newer versions.
			{lines: "info file:co:lon.qcow2; map file:co:lon.qcow2; info ./co:lon.qcow2; info co:lon.qcow2; info --output=json file:base.qcow2; convert file:co:lon.qcow2 x"},
			{lines: "create -f qcow2 -b file:co:lon.qcow2 -F qcow2 x; info --backing-chain x; create -f qcow2 -b co:lon.qcow2 -F qcow2 y"},
			{lines: "create --format qcow2 --backing base.qcow2 -B qcow2 --backing-unsafe --options compat=1.1 x 10M; info x", why: whyNewer, has: "backing file: base.qcow2", otherFiles: true},
			{lines: "convert --source-format raw -O qcow2 -b base.qcow2 -F qcow2 --oob-writes --parallel 2 a.raw x; info x", why: whyNewer, has: "backing file format: qcow2", otherFiles: true},
			{lines: "rebase --backing-unsafe --backing-cache none --backing '' leaf.qcow2; snapshot --format qcow2 --create two --quiet base.qcow2; snapshot --list -f qcow2 base.qcow2; snapshot --apply two base.qcow2; snapshot --delete two base.qcow2", why: whyNewer, has: "two", otherFiles: true},
			// Sizes at the end of the numbers.
			{lines: "create x 9223372036854775807", why: whyRemoved, has: "Could not resize file: Invalid argument", otherFiles: true},
			{lines: "create x 9223372036854775296", why: whyRemoved, has: "The image size is too large for file format 'raw'", otherFiles: true},
			{lines: "create -f qcow2 x 9223372036854775807; resize -f raw a.raw +7E; resize -f raw a.raw 9223372036854775807; resize v2.qcow2 9223372036854775807"},
			// Devices without a size, and a pipe. Locks of a device are everybody's:
			// one line alone writes to one of them.
			{lines: "info /dev/zero; info -f raw --output=json /dev/null; map /dev/null; map --output=json /dev/zero; check /dev/null; measure /dev/zero; info -f qcow2 /dev/null; info -f raw /dev/urandom"},
			{lines: "convert /dev/null x; convert -f raw -O qcow2 /dev/zero y; dd if=/dev/zero of=z bs=1M count=2; compare /dev/null empty; create -f qcow2 -b /dev/null -F raw w; snapshot -l /dev/null"},
			{lines: "create /dev/full 1M; convert a.raw /dev/full; convert -n a.raw /dev/full; dd if=small of=/dev/full; create -o preallocation=full /dev/full 1M; convert -O qcow2 -n small /dev/full; " +
				"resize /dev/full 1M; resize -f raw --shrink /dev/full 1M; resize -f raw --preallocation=full /dev/full 1M; snapshot -c x /dev/full; convert empty /dev/full; create /dev/full 0; convert -T none /dev/zero x; commit -f raw /dev/full; rebase -u -f raw -b small -F raw /dev/full"},
			{lines: "create -f qcow2 /dev/random 1M", why: "a device that is too small is full; the stock tool looks for the header that it could not write", has: "No space left on device"},
			{lines: "info --image-opts driver=file,filename=/dev/null; info --image-opts driver=host_device,filename=/dev/null; info --image-opts file.driver=host_device,file.filename=small; info --image-opts file.filename=/dev/null,driver=raw"},
			{lines: "create fifo/ff 1M; create -f qcow2 fifo/ff 1M; convert a.raw fifo/ff; dd if=small of=fifo/ff bs=1M"},
			{lines: "info /dev/ptmx", why: "of character devices only the kernel's memory devices are opened: others may do something when they are", has: "to be a regular file"},
		}},
}

const (
	whyNewer   = "options of newer versions of the stock tool are taken too"
	whyRemoved = "a file that could not be made into an image is removed"
)

// prepareCallers fills the overlay, and makes a pipe: with it a tool opens for
// writing alone what nobody reads.
func prepareCallers(t *testing.T, dir string) {
	t.Helper()
	if r := runTool(t, false, dir, words("bench -w -c 5 -S 300k -o 1M --pattern 7 -f qcow2 leaf.qcow2")); r.status != 0 {
		t.Fatal(r.stderr)
	}
	if err := os.Mkdir(filepath.Join(dir, "fifo"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo", "ff"), 0o600); err != nil {
		t.Fatal(err)
	}
}
