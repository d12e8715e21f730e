# Takes from a system what must not be the same in two machines that are made of
# its image. Runs as root, in any POSIX shell with busybox's tools. What comes
# before sets token, poweroff, detach, console and caches, see Options in generalise.go;
# LAMINA_ROOT is another root folder, for tests, where no program of it is run.
export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
umask 022
root=${LAMINA_ROOT:-}
consoles=
[ "$console" != yes ] || [ -n "$root" ] || consoles='/dev/console /dev/ttyS0'

# say WHAT ...: one line of the report.
say() {
    line="lamina-generalise[$token]: $*"
    printf '%s\n' "$line"
    for c in $consoles; do
        # In a shell of its own: one that cannot be opened ends a plain one.
        [ ! -c "$c" ] || (printf '\r\n%s\r\n' "$line" >"$c") 2>/dev/null
    done
    return 0
}

# here PROGRAM: it is there, and is this system's.
here() { [ -z "$root" ] && command -v "$1" >/dev/null 2>&1; }

count=0
# drop PATH ...: removes what is there, and all below, but for what something else
# is mounted on.
drop() {
    for p; do
        [ -e "$p" ] || [ -L "$p" ] || continue
        if [ ! -L "$p" ] && [ -d "$p" ] && mounted "$p"; then
            say "kept $p something is mounted there"
        elif rm -rf -- "$p" 2>/dev/null; then
            count=$((count + 1))
        else
            say "failed $p cannot be removed"
        fi
    done
}

# mounted PATH: a file system is mounted on it or below.
mounted() {
    [ -r /proc/mounts ] || return 1
    while read -r m_device m_at m_rest; do
        case $m_at in
        "$1" | "$1"/*) return 0 ;;
        esac
    done </proc/mounts
    return 1
}

# inside FOLDER: drops all that is in it, names with a leading dot included.
inside() {
    [ -d "$1" ] && [ ! -L "$1" ] || return 0
    drop "$1"/* "$1"/.[!.]* "$1"/..?*
}

# empty PATH ...: leaves files in their place, without content.
empty() {
    for p; do
        [ -f "$p" ] && [ -s "$p" ] || continue
        if (: >"$p") 2>/dev/null; then
            count=$((count + 1))
        else
            say "failed $p cannot be emptied"
        fi
    done
}

# end WHAT: reports how many things a step has taken away.
end() {
    say "removed $1 $count"
    count=0
}

# An agent answers before the boot is over: what starts later would make again what
# was removed. From within cloud-init there would be no end to that wait.
if [ "$detach" = yes ] && here systemctl && here timeout; then
    timeout 180 systemctl is-system-running --wait >/dev/null 2>&1 || :
fi

say begin

# --- cloud-init -----------------------------------------------------------------
if here cloud-init; then
    cloud-init clean --logs >/dev/null 2>&1 || say "kept cloud-init clean failed, so this was done by hand"
fi
for d in instance instances data sem handlers scripts/per-instance; do
    drop "$root/var/lib/cloud/$d"
done
drop "$root"/var/log/cloud-init*.log "$root/run/cloud-init"
# The network as it made it for the last machine. The card's address may be in it.
drop "$root"/etc/netplan/50-cloud-init.yaml "$root"/etc/network/interfaces.d/50-cloud-init* \
    "$root"/etc/systemd/network/10-cloud-init-* "$root"/etc/NetworkManager/system-connections/cloud-init-*
for f in "$root"/etc/sysconfig/network-scripts/ifcfg-* "$root"/etc/sysconfig/network/ifcfg-*; do
    if [ -f "$f" ] && grep -q '^# Created by cloud-init' "$f"; then drop "$f"; fi
done
end cloud-init

# --- SSH host keys ---------------------------------------------------------------
drop "$root"/etc/ssh/ssh_host_*key "$root"/etc/ssh/ssh_host_*key.pub "$root"/etc/ssh/ssh_host_*key-cert.pub \
    "$root"/etc/dropbear/dropbear_*_host_key "$root"/etc/dropbear/dropbear_*_host_key.pub
end ssh-host-keys

# Who makes new ones: cloud-init, or a unit or service of the system. Debian's
# OpenSSH has neither and would not start.
makes_keys() {
    [ ! -e "$root/etc/init.d/sshd" ] || return 0 # Alpine's, Gentoo's
    for f in "$root"/usr/bin/cloud-init "$root"/usr/lib/systemd/system/sshd-keygen* "$root"/lib/systemd/system/sshd-keygen* \
        "$root"/usr/lib/systemd/system/sshdgenkeys.service "$root"/usr/sbin/sshd-gen-keys-start "$root"/etc/systemd/system/lamina-ssh-keys.service; do
        [ ! -e "$f" ] || return 0
    done
    return 1
}
if [ -x "$root/usr/bin/ssh-keygen" ] && [ -d "$root/etc/systemd/system" ] && [ -d "$root/etc/ssh" ] &&
    [ -e "$root/usr/sbin/sshd" ] && ! makes_keys; then
    unit=$root/etc/systemd/system/lamina-ssh-keys.service
    wants=$root/etc/systemd/system/multi-user.target.wants
    if cat >"$unit" 2>/dev/null <<'EOF' && mkdir -p "$wants" && ln -sf ../lamina-ssh-keys.service "$wants/lamina-ssh-keys.service"
[Unit]
Description=Make SSH host keys, which the machine's template does not have
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
Before=ssh.service ssh.socket sshd.service sshd.socket

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A

[Install]
WantedBy=multi-user.target
EOF
    then say "added /etc/systemd/system/lamina-ssh-keys.service which makes SSH host keys at the next boot"
    else say "failed /etc/systemd/system/lamina-ssh-keys.service cannot be written"; fi
fi

# --- DHCP, random numbers, names of cards -----------------------------------------
drop "$root"/var/lib/dhcp/*.lease* "$root"/var/lib/dhclient/*.lease* "$root"/var/lib/dhcpcd/*.lease* "$root"/var/lib/udhcpc/* \
    "$root"/var/lib/dhcp3/*.lease* "$root"/var/lib/NetworkManager/*.lease* "$root"/var/lib/systemd/network/leases/* "$root"/var/lib/wicked/*
# What these make a client's identity of.
drop "$root"/var/lib/dhcpcd/duid "$root"/var/lib/dhcpcd/secret "$root"/etc/dhcpcd.duid "$root"/etc/dhcpcd.secret "$root"/var/lib/NetworkManager/secret_key
end dhcp-leases
drop "$root"/var/lib/systemd/random-seed "$root"/var/lib/systemd/credential.secret "$root"/var/lib/urandom/random-seed \
    "$root"/var/lib/seedrng/seed* "$root"/var/lib/misc/random-seed "$root"/var/lib/random-seed \
    "$root"/boot/loader/random-seed "$root"/boot/efi/loader/random-seed "$root"/efi/loader/random-seed
end random-seeds
# Debian's open-iscsi makes a name where it is told to, others where there is none.
name=$root/etc/iscsi/initiatorname.iscsi
if [ -f "$name" ] && [ -d "$root/lib/open-iscsi" -o -d "$root/usr/lib/open-iscsi" ]; then
    if ! grep -qx 'GenerateName=yes' "$name"; then
        if echo 'GenerateName=yes' >"$name" 2>/dev/null; then count=$((count + 1)); else say "failed ${name#"$root"} cannot be written"; fi
    fi
else
    drop "$name"
fi
drop "$root/etc/nvme/hostid" "$root/etc/nvme/hostnqn"
end storage-names
drop "$root"/etc/udev/rules.d/70-persistent-net.rules "$root"/etc/udev/rules.d/70-persistent-cd.rules
end udev-rules

# --- people -------------------------------------------------------------------------
homes=/root
while IFS=: read -r u_name u_pass u_id u_group u_info u_home u_shell; do
    case $u_home in
    /home/?*) homes="$homes
$u_home" ;;
    esac
done <<EOF
$(cat "$root/etc/passwd" 2>/dev/null)
EOF
histories() {
    for f in .bash_history .ash_history .sh_history .zsh_history .histfile .lesshst .viminfo .python_history .mysql_history .psql_history .sqlite_history .wget-hsts; do
        drop "$1/$f"
    done
    drop "$1/.local/share/fish/fish_history"
}
OLDIFS=$IFS
IFS='
'
for h in $homes; do
    IFS=$OLDIFS
    histories "$root$h"
done
end shell-histories
IFS='
'
for h in $homes; do
    IFS=$OLDIFS
    drop "$root$h/.ssh/known_hosts" "$root$h/.ssh/known_hosts.old"
    for f in "$root$h/.ssh/authorized_keys" "$root$h"/.ssh/id_*; do
        case $f in
        *.pub) ;;
        *) [ ! -s "$f" ] || say "kept ${f#"$root"} who has this key gets into, or from, every machine of the template" ;;
        esac
    done
done
IFS=$OLDIFS
drop "$root/etc/ssh/ssh_known_hosts"
end known-hosts

# --- temporary files, caches ---------------------------------------------------------
inside "$root/var/tmp"
inside "$root/tmp"
end temporary-files
if [ "$caches" = yes ]; then
    drop "$root"/var/cache/apt/archives/*.deb "$root"/var/cache/apt/*.bin "$root"/var/lib/apt/lists/*_* \
        "$root"/var/cache/dnf/* "$root"/var/cache/libdnf5/* "$root"/var/cache/yum/* "$root"/var/cache/zypp/* "$root"/var/cache/apk/* "$root"/var/cache/pacman/pkg/*
    end package-caches
fi

# --- logs: late, as what came before may have been logged ------------------------------
if here journalctl; then
    journalctl --relinquish-var >/dev/null 2>&1 || :
fi
inside "$root/var/log/journal"
inside "$root/var/lib/systemd/coredump"
inside "$root/var/crash"
if [ -d "$root/var/log" ]; then
    list=$(find "$root/var/log" -type f 2>/dev/null)
    while IFS= read -r f; do
        case $f in
        *.gz | *.xz | *.bz2 | *.zst | *.old | *.[0-9] | *.[0-9][0-9] | *-[0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9]) drop "$f" ;;
        *) empty "$f" ;;
        esac
    done <<EOF
$list
EOF
fi
end logs

# --- machine-id: last, as much reads it --------------------------------------------------
# Empty, not removed: systemd fills it even where the root cannot be written yet.
empty "$root/etc/machine-id"
if [ -f "$root/var/lib/dbus/machine-id" ] && [ ! -L "$root/var/lib/dbus/machine-id" ]; then
    drop "$root/var/lib/dbus/machine-id"
    [ ! -e "$root/etc/machine-id" ] || ln -s /etc/machine-id "$root/var/lib/dbus/machine-id" || say "failed /var/lib/dbus/machine-id cannot be linked"
fi
end machine-id

sync
if [ "$poweroff" != yes ] || [ -n "$root" ]; then
    say "done"
    exit 0
fi

# Nothing may be written any more: an orderly shutdown would save a random seed,
# and cloud-init its state. The kernel makes every file system read-only, after
# which all that was written is on the disk.
readonly_root() {
    while read -r m_device m_at m_type m_options m_rest; do
        [ "$m_at" = / ] && [ "$m_type" != rootfs ] || continue
        case ,$m_options, in
        *,ro,*) return 0 ;;
        esac
    done </proc/mounts
    return 1
}
still() {
    (echo u >/proc/sysrq-trigger) 2>/dev/null || mount -o remount,ro / 2>/dev/null || :
    n=0
    until readonly_root; do
        n=$((n + 1))
        if [ $n -gt 30 ]; then
            say "kept / cannot be made read-only before the power off"
            break
        fi
        sleep 1
    done
    sync
}
off() {
    (echo o >/proc/sysrq-trigger) 2>/dev/null || poweroff -f
    # The power goes in a moment; what waits for this script must not go on.
    sleep 60
    poweroff -f
    sleep 600
}
if [ "$detach" = yes ]; then
    say "done"
    (
        sleep 3
        still
        off
    ) </dev/null >/dev/null 2>&1 &
    exit 0
fi
still
say "done"
off
