#!/usr/bin/env bash
# Installs what the demo and the tests need from the distribution's packages.
# Does nothing, quickly, where everything is there.
set -euo pipefail

packages=(
  # what Lamina runs on
  qemu-system-x86 seabios ipxe-qemu ovmf swtpm openssh-client
  # the stock tools that the tests compare with
  qemu-utils hyperfine virtinst libosinfo-bin osinfo-db
  # libvirt: the daemon of the tests, its tools and its networks' DHCP server
  libvirt-daemon-system libvirt-clients dnsmasq-base iproute2 netcat-openbsd openssh-server tini
  # the race detector's C library (the product itself uses no cgo)
  gcc libc6-dev
  # the test guests' builders
  mmdebstrap fakeroot busybox-static cpio zstd dosfstools mtools e2fsprogs fdisk gdisk syslinux syslinux-common
  # makers of the file systems that a look into an image finds
  xfsprogs btrfs-progs f2fs-tools ntfs-3g squashfs-tools
  # readers of what we write
  genisoimage xorriso isolinux openssl systemd cryptsetup-bin
  # the tests' ordinary user
  util-linux
)

missing=()
for p in "${packages[@]}"; do
  dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null | grep -qx installed || missing+=("$p")
done
# The guests' builders download packages without installing them: apt must know them.
case $(apt-cache policy linux-image-amd64 2>/dev/null) in
*'Candidate: '[0-9]*) lists=yes ;;
*) lists= ;;
esac
[ ${#missing[@]} -eq 0 ] && [ "$lists" ] && exit 0

sudo=
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "deps: run as root (or install sudo): apt-get install ${missing[*]}" >&2; exit 1; }
  sudo=sudo
fi
command -v apt-get >/dev/null || { echo "deps: this is not a Debian machine; install the like of: ${missing[*]}" >&2; exit 1; }
echo "deps: installing ${missing[*]:-the package lists}" >&2
install() { $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; }
# The lists may be missing or old: refresh them only when needed, as it takes a while.
if [ -z "$lists" ] || ! install >/dev/null 2>&1; then
  $sudo apt-get update -q
  [ ${#missing[@]} -eq 0 ] || install
fi
