#!/bin/sh
# Builds the Debian guest: Debian 12 with systemd, cloud-init, OpenSSH and the
# QEMU guest agent on a disk that boots by BIOS. Runs as root; needs no loop
# device.
#
#   debian.sh SOURCES WORK OUTPUT
#
# SOURCES is the folder of this script, WORK an empty scratch folder, OUTPUT
# the raw disk to write.
#
# The disk:  MBR, SYSLINUX's boot code
#            partition 1  FAT16, SYSLINUX, kernel and initramfs
#            partition 2  ext4, label lamina-root, the last: growpart can grow it
set -eu
export LC_ALL=C
PATH=$PATH:/usr/sbin:/sbin
sources=$1 work=$2 output=$3

boot_start=2048 boot_sectors=129024      # 63 MiB
root_start=131072 root_sectors=3014656   # 1472 MiB

die() { echo "debian guest: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || die "only root can build it"
for tool in apt-get mmdebstrap mke2fs sfdisk syslinux mformat mcopy; do
    command -v $tool >/dev/null || die "$tool is not installed: run make deps"
done
mbr=/usr/lib/syslinux/mbr/mbr.bin
[ -r $mbr ] || die "$mbr is missing: install syslinux-common (make deps)"

# --- Debian, from where the host gets it --------------------------------------

# An option that a source does not have is printed as its own name.
apt-get indextargets 'Created-By: Packages' 'Origin: Debian' \
    --format '$(REPO_URI) $(RELEASE) $(COMPONENT) trusted=$(TRUSTED) signed-by=$(SIGNED_BY)' |
    awk '$2 ~ /^bookworm/ && $3 == "main" {
        options = ""
        for (i = 4; i <= NF; i++)
            if ($i !~ /=(\$.*)?$/) options = options " " $i
        print "deb" (options == "" ? "" : " [" substr(options, 2) "]"), $1, $2, $3
    }' |
    sort -u >"$work/sources.list"
grep -q ' bookworm main' "$work/sources.list" || die "apt on this machine knows no Debian 12 (bookworm)"

packages=linux-image-amd64,initramfs-tools,systemd,systemd-sysv,udev,dbus
packages=$packages,cloud-init,cloud-guest-utils,openssh-server,qemu-guest-agent
packages=$packages,sudo,iproute2,e2fsprogs,ca-certificates

# Drivers of hardware that no machine of ours has are most of the kernel
# package; documentation and translations most of the rest.
set --
for dir in gpu sound media net/wireless net/ethernet infiniband staging iio hwmon leds isdn \
    bluetooth nfc usb mtd thunderbolt comedi edac mmc; do
    set -- "$@" "--dpkgopt=path-exclude=/lib/modules/*/kernel/drivers/$dir/*"
done
for dir in sound net/bluetooth net/mac80211 net/wireless fs/xfs fs/btrfs fs/ocfs2 fs/gfs2 \
    fs/ceph fs/smb fs/nfs fs/nfsd fs/jfs fs/reiserfs fs/f2fs fs/ntfs3 fs/afs; do
    set -- "$@" "--dpkgopt=path-exclude=/lib/modules/*/kernel/$dir/*"
done
for dir in doc man locale info lintian; do
    set -- "$@" "--dpkgopt=path-exclude=/usr/share/$dir/*"
done
set -- "$@" '--dpkgopt=path-include=/lib/modules/*/kernel/drivers/net/ethernet/intel/e1000/*'

root=$work/root
mmdebstrap --quiet --variant=minbase --include=$packages "$@" \
    --aptopt='Acquire::Languages "none"' --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt=force-unsafe-io \
    --essential-hook="cp -R '$sources/debian/early/.' \"\$1/\"" \
    --customize-hook="cp -R '$sources/debian/root/.' \"\$1/\"" \
    --customize-hook="cp '$sources/debian/customize' \"\$1/customize\"; chroot \"\$1\" sh /customize; rm \"\$1/customize\"" \
    bookworm "$root" "$work/sources.list"

# --- disk -----------------------------------------------------------------------

rm -f "$output"
truncate -s $(((root_start + root_sectors) * 512)) "$output"
sfdisk -q "$output" <<EOF
label: dos
label-id: 0x6c616d64
start=$boot_start, size=$boot_sectors, type=e, bootable
start=$root_start, size=$root_sectors, type=83
EOF
dd if=$mbr of="$output" bs=440 count=1 conv=notrunc status=none

kernel=$(echo "$root"/boot/vmlinuz-*)
initrd=$(echo "$root"/boot/initrd.img-*)
cat >"$work/syslinux.cfg" <<EOF
SERIAL 0 115200
DEFAULT debian
PROMPT 0
TIMEOUT 1

LABEL debian
  KERNEL vmlinuz
  INITRD initrd
  APPEND root=LABEL=lamina-root ro console=tty0 console=ttyS0,115200 nomodeset mitigations=off random.trust_cpu=on net.ifnames=0
EOF
fat="$output@@$((boot_start * 512))"
export MTOOLS_SKIP_CHECK=1
mformat -i "$fat" -T $boot_sectors -h 64 -s 32 -H $boot_start -v LAMINA ::
mcopy -i "$fat" "$kernel" ::vmlinuz
mcopy -i "$fat" "$initrd" ::initrd
mcopy -i "$fat" "$work/syslinux.cfg" ::syslinux.cfg
syslinux --offset $((boot_start * 512)) --install "$output"
rm -f "$kernel" "$initrd"

mke2fs -q -t ext4 -L lamina-root -U 6c616d69-6e61-4000-8000-646562313200 \
    -m 1 -J size=16 -O ^orphan_file -E lazy_itable_init=0,lazy_journal_init=0,nodiscard \
    -d "$root" "$work/root.ext4" $((root_sectors / 2))k
dd if="$work/root.ext4" of="$output" bs=1M seek=$((root_start / 2048)) conv=notrunc,sparse status=none
