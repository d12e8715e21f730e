#!/bin/sh
# Records the transcripts that stock QEMU makes by itself, into this folder:
#
#   record.sh KERNEL
#
# KERNEL is the vmlinuz of Debian's linux-image-cloud-amd64 (6.1), which has
# its disk drivers as modules. Needs qemu-system-x86, ovmf, grub-pc-bin,
# grub2-common, xorriso, mtools, isolinux, genisoimage, busybox-static and
# cpio. The other transcripts have their origin in README.md.
set -eu
kernel=$1
out=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

qemu-img create -q -f qcow2 empty.qcow2 64M

# boot SECONDS NAME OPTIONS...: a machine's serial port.
boot() {
    seconds=$1 name=$2
    shift 2
    rm -f serial
    timeout "$seconds" qemu-system-x86_64 -accel tcg -display none -monitor none \
        -no-reboot -serial file:serial "$@" </dev/null >/dev/null 2>&1 || :
    cp serial "$out/$name.txt"
}

# linux SECONDS NAME MEMORY PARAMETERS OPTIONS...
linux() {
    s=$1 n=$2 m=$3 p=$4
    shift 4
    boot "$s" "$n" -m "$m" -net none -kernel "$kernel" -append "console=ttyS0 $p" "$@"
}

# initrd NAME [WITHOUT]: a busybox initramfs with the script on standard input
# as init; WITHOUT is a command that it lacks.
initrd() {
    rm -rf root
    mkdir -p root/bin root/proc root/dev
    cp /bin/busybox root/bin/
    ln -s busybox root/bin/sh
    cat >root/init
    chmod 755 root/init
    [ $# = 1 ] || rm "root/bin/$2"
    (cd root && find . | cpio --quiet -o -H newc) | gzip -9 >"$1"
}

# SeaBIOS writes to the serial port when QEMU has no screen at all.
timeout 6 qemu-system-x86_64 -accel tcg -nographic -monitor none -net none \
    -drive file=empty.qcow2 >"$out/empty-disk-seabios.txt" 2>/dev/null </dev/null || :
timeout 15 qemu-system-x86_64 -accel tcg -nographic -monitor none \
    -drive file=empty.qcow2 >"$out/empty-disk-ipxe.txt" 2>/dev/null </dev/null || :

cp /usr/share/OVMF/OVMF_VARS.fd vars.fd
boot 60 empty-disk-ovmf -m 256 -net none -drive file=empty.qcow2 \
    -drive if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE.fd \
    -drive if=pflash,format=raw,file=vars.fd

linux 60 panic-wrong-bus 512 "root=/dev/vda1 panic=-1" -drive file=empty.qcow2,if=ide
linux 60 panic-no-driver 512 "root=/dev/sda1 panic=-1" -drive file=empty.qcow2,if=ide

echo '#!/bin/sh
exit 3' | initrd exits.gz
linux 60 panic-init-ended 512 "panic=-1" -initrd exits.gz

echo '#!/bin/none' | initrd none.gz sh
linux 60 panic-no-init 512 "panic=-1" -initrd none.gz

# An initramfs with damage in its middle.
head -c 400000 exits.gz >damaged.gz
head -c 200000 /dev/zero >>damaged.gz
linux 60 initramfs-damaged 512 "panic=-1" -initrd damaged.gz

# More initramfs than memory.
rm -rf root
mkdir root
head -c 70000000 /dev/urandom >root/big
(cd root && find . | cpio --quiet -o -H newc) | gzip -1 >big.gz
linux 60 initramfs-too-big 192 "panic=-1" -initrd big.gz

# A process that eats the memory.
echo '#!/bin/busybox sh
/bin/busybox mkdir /t
/bin/busybox mount -t ramfs ramfs /t
exec /bin/busybox yes >/t/x' | initrd eats.gz
linux 60 oom-panic 128 "panic=-1" -initrd eats.gz

# GRUB without a configuration, with one that waits, and with a wrong one.
grub() {
    name=$1 seconds=$2
    mkdir -p iso/boot/grub
    {
        echo 'serial --unit=0 --speed=115200'
        echo 'terminal_input serial console'
        echo 'terminal_output serial console'
        cat
    } >iso/boot/grub/grub.cfg
    grub-mkrescue -d /usr/lib/grub/i386-pc -o grub.iso iso >/dev/null 2>&1
    boot "$seconds" "$name" -m 128 -net none -cdrom grub.iso
    rm -rf iso
}
: | grub grub-prompt 15
printf 'set timeout=-1\nmenuentry "Debian GNU/Linux" { true\n }\n' | grub grub-menu-waits 15
printf 'set timeout=3\nmenuentry "Debian GNU/Linux" {\n linux /boot/vmlinuz root=/dev/vda1\n initrd /boot/initrd\n}\n' | grub grub-no-kernel 30
mkdir -p iso/boot/grub && cp "$kernel" iso/boot/vmlinuz
printf 'set timeout=2\nmenuentry "Debian GNU/Linux" {\n echo "Loading Linux 6.1 ..."\n linux /boot/vmlinuz root=/dev/vda1 console=ttyS0 panic=-1\n}\n' | grub grub-boots 60

# SYSLINUX's prompt, and a kernel that is not there.
isolinux() {
    mkdir -p iso
    cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 iso
    cat >iso/isolinux.cfg
    genisoimage -quiet -o sys.iso -b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 -boot-info-table iso
    boot 12 "$1" -m 128 -net none -cdrom sys.iso
    rm -rf iso
}
printf 'SERIAL 0 115200\nPROMPT 1\nTIMEOUT 0\nDEFAULT linux\nLABEL linux\n KERNEL linux\n' | isolinux syslinux-prompt
printf 'SERIAL 0 115200\nPROMPT 0\nTIMEOUT 10\nDEFAULT linux\nLABEL linux\n KERNEL linux\n' | isolinux syslinux-no-kernel
