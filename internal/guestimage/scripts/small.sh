#!/bin/sh
# Builds the small guest: a Debian kernel, busybox and dropbear on a disk that
# boots by BIOS. Runs as root or as an ordinary user; mounts nothing and needs
# no loop device.
#
#   small.sh SOURCES WORK OUTPUT
#
# SOURCES is the folder of this script, WORK an empty scratch folder, OUTPUT
# the raw disk to write.
#
# The disk:  MBR, SYSLINUX's boot code
#            partition 1  FAT16, SYSLINUX, kernel and initramfs
#            partition 2  ext4, label lamina-root
set -eu
export LC_ALL=C
PATH=$PATH:/usr/sbin:/sbin
sources=$1 work=$2 output=$3

boot_start=2048 boot_sectors=63488    # 31 MiB
root_start=65536 root_sectors=131072  # 64 MiB

die() { echo "small guest: $*" >&2; exit 1; }

for tool in apt-get apt-cache dpkg-deb mke2fs sfdisk syslinux mformat mcopy cpio gzip; do
    command -v $tool >/dev/null || die "$tool is not installed: run make deps"
done
mbr=/usr/lib/syslinux/mbr/mbr.bin
[ -r $mbr ] || die "$mbr is missing: install syslinux-common (make deps)"

# An ordinary user's files must be root's in the guest.
as_root=
if [ "$(id -u)" != 0 ]; then
    command -v fakeroot >/dev/null || die "fakeroot is not installed, which a build as an ordinary user needs: run make deps"
    as_root="fakeroot --"
fi

# --- packages: fetched and unpacked, never installed -----------------------

# The meta package names the kernel of the day.
kernel=$(apt-cache depends --no-recommends --no-suggests linux-image-amd64 |
    sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
[ -n "$kernel" ] || die "apt knows no linux-image-amd64: run apt-get update as root"

mkdir -p "$work/deb" "$work/pkg"
(cd "$work/deb" && apt-get -qq -o APT::Sandbox::User="$(id -un)" download \
    "$kernel" busybox-static dropbear-bin libtomcrypt1 libtommath1 libgmp10 \
    zlib1g libcrypt1 libc6) || die "apt-get download: run apt-get update as root if the package lists are old"
for deb in "$work"/deb/*.deb; do
    dpkg-deb -x "$deb" "$work/pkg"
done
pkg=$work/pkg
release=$(ls "$pkg/lib/modules")
moddir=$pkg/lib/modules/$release
busybox=$pkg/bin/busybox

# --- modules: what QEMU's machines have, and what those need ---------------

boot_modules="virtio_pci virtio_blk virtio_scsi sd_mod ata_piix ahci nvme usb-storage uhci-hcd ehci-pci xhci-pci ext4 crc32c_generic"
root_modules="sr_mod isofs virtio_net e1000 virtio-rng virtio_console button evdev floppy"

"$busybox" depmod -b "$pkg" "$release"

# with_deps prints the given modules' files and all that they need.
with_deps() {
    for m in "$@"; do
        grep "/$m\.ko:" "$moddir/modules.dep" || die "the kernel $release has no module $m"
    done | tr -d : | tr ' ' '\n' | sort -u
}

# install_modules ROOT MODULE...
install_modules() {
    to=$1/lib/modules/$release
    shift
    mkdir -p "$to"
    for f in $(with_deps "$@"); do
        mkdir -p "$to/${f%/*}"
        cp "$moddir/$f" "$to/$f"
    done
}

# --- initramfs --------------------------------------------------------------

ram=$work/initramfs
mkdir -p "$ram/bin" "$ram/dev" "$ram/proc" "$ram/sys" "$ram/root"
cp "$busybox" "$ram/bin/busybox"
for a in sh mount modprobe usleep switch_root cat findfs; do ln -s busybox "$ram/bin/$a"; done
install_modules "$ram" $boot_modules
"$busybox" depmod -b "$ram" "$release"
rm -f "$ram/lib/modules/$release"/modules.symbols
cp "$sources/small/init" "$ram/init"
cp "$sources/small/devices" "$ram/devices"
chmod 755 "$ram/init"
(cd "$ram" && find . | sort | $as_root cpio --quiet -R 0:0 -o -H newc) | gzip -9n >"$work/initrd"

# --- root file system -------------------------------------------------------

root=$work/root
mkdir -p "$root"
for d in bin dev etc home lib lib64 mnt proc root run sys tmp usr var var/lib var/log etc/dropbear home/lamina; do
    mkdir -p "$root/$d"
done
for l in sbin usr/bin usr/sbin; do ln -s /bin "$root/$l"; done
ln -s /lib "$root/usr/lib"
ln -s /run "$root/var/run"
cp "$busybox" "$root/bin/busybox"
for a in $("$busybox" --list); do
    [ "$a" = busybox ] || ln -s busybox "$root/bin/$a"
done
cp "$pkg/usr/sbin/dropbear" "$pkg/usr/bin/dropbearkey" "$root/bin/"
cp -L "$pkg/lib64/ld-linux-x86-64.so.2" "$root/lib64/"
for lib in libtomcrypt.so.1 libtommath.so.1 libgmp.so.10 libz.so.1 libcrypt.so.1 libc.so.6 \
    libnss_files.so.2; do
    f=$(find "$pkg/lib" "$pkg/usr/lib" -name "$lib" | head -n 1)
    [ -n "$f" ] || die "no package brought $lib"
    cp -L "$f" "$root/lib/$lib"
done
install_modules "$root" $boot_modules $root_modules
"$busybox" depmod -b "$root" "$release"
cp -R "$sources/small/root/." "$root/"
cp "$sources/small/devices" "$root/lib/lamina/devices"
sed -i "s/@RELEASE@/$release/" "$root/etc/os-release"

find "$root" -type d -exec chmod 755 {} +
find "$root/etc" -type f -exec chmod 644 {} +
chmod 755 "$root"/lib/lamina/* "$root"/etc/acpi/PWRF/* "$root"/bin/*
chmod 600 "$root/etc/shadow"
chmod 700 "$root/root"
chmod 1777 "$root/tmp"

# --- disk -------------------------------------------------------------------

# A fixed disk signature and UUID: two builds of the same packages differ only
# in times.
rm -f "$output"
truncate -s $(((root_start + root_sectors) * 512)) "$output"
sfdisk -q "$output" <<EOF
label: dos
label-id: 0x6c616d69
start=$boot_start, size=$boot_sectors, type=e, bootable
start=$root_start, size=$root_sectors, type=83
EOF
dd if=$mbr of="$output" bs=440 count=1 conv=notrunc status=none

# The ext4 partition is made as a file of its own, for mke2fs fills from its
# beginning, and copied into its place with its holes.
# Everything is initialised here: nothing writes to a new machine's disk in
# the background.
$as_root sh -c '
    chown -R 0:0 "$1"
    chown -R 1000:1000 "$1/home/lamina"
    chmod 4755 "$1/bin/busybox" # for su; chown takes the bit away
    mke2fs -q -t ext4 -L lamina-root -U 6c616d69-6e61-4000-8000-736d616c6c30 \
        -m 0 -J size=4 -O ^metadata_csum,^64bit,^orphan_file \
        -E lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner=0:0 \
        -d "$1" "$2" "$3"
' sh "$root" "$work/root.ext4" $((root_sectors / 2))k
dd if="$work/root.ext4" of="$output" bs=1M seek=$((root_start / 2048)) conv=notrunc,sparse status=none

# The first three settings have a fixed width: variant.go changes them in
# place. Timeouts are in tenths of a second.
common="console=tty0 console=ttyS0,115200 quiet nomodeset mitigations=off random.trust_cpu=on nokaslr no_timer_check cryptomgr.notests"
{
    echo "SERIAL 0 115200"
    echo "DEFAULT lamina  "
    echo "PROMPT 0"
    echo "TIMEOUT 1"
    sed "s/@COMMON@/$common/" "$sources/small/labels"
} >"$work/syslinux.cfg"
fat="$output@@$((boot_start * 512))"
export MTOOLS_SKIP_CHECK=1
mformat -i "$fat" -T $boot_sectors -h 64 -s 32 -H $boot_start -v LAMINA ::
mcopy -i "$fat" "$pkg/boot/vmlinuz-$release" ::vmlinuz
mcopy -i "$fat" "$work/initrd" ::initrd
mcopy -i "$fat" "$work/syslinux.cfg" ::syslinux.cfg
syslinux --offset $((boot_start * 512)) --install "$output"
