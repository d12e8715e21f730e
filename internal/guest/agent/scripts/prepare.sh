# Makes a booted guest one that any number of machines go on from. Comes behind
# renew.sh and network.sh, whose functions it uses.

# learn keeps what would take long to find out in each machine.
learn() {
    mkdir -p $state
    fact_network=
    who_manages
    echo "fact_network=$fact_network" >$state/facts
    date -u -d @1.5 >/dev/null || echo "fact_whole_seconds=1" >>$state/facts
    [ -r /etc/cloud/cloud.cfg ] && command -v python3 >/dev/null && python3 -c 'import shlex; from cloudinit import util; u = util.read_conf_with_confd("/etc/cloud/cloud.cfg").get("system_info", {}).get("default_user", {}); g = u.get("groups") or []; g = g.split(",") if isinstance(g, str) else g; [print("fact_%s=%s" % (k, shlex.quote(v))) for k, v in (("user", u.get("name") or ""), ("shell", u.get("shell") or ""), ("groups", " ".join(x.strip() for x in g)))]' >>$state/facts
}

# quiet stops what would begin by itself in each machine: timers come back when
# the machines have been up for a while, not all at once. The network takes any card
# that comes, by the card's own address.
quiet() {
    [ -d /run/systemd/system ] || return 0
    forget_cards
    case $fact_network in
    networkd)
        mkdir -p /run/systemd/network
        networkd_file "Type=ether" >/run/systemd/network/10-lamina.network
        networkctl reload
        ;;
    networkmanager)
        mkdir -p /run/NetworkManager/system-connections
        umask 077
        nm_file lamina "" 6c616d69-6e61-4000-8000-6e6574000000 >/run/NetworkManager/system-connections/lamina.nmconnection
        umask 022
        nmcli connection reload
        ;;
    esac
    timers=
    for t in $(systemctl list-units --type=timer --state=active --no-legend --plain --no-pager | cut -d ' ' -f 1); do
        timers="$timers $t"
    done
    [ -z "$timers" ] || {
        systemctl stop $timers
        systemd-run -q --unit=lamina-timers --on-active=600 --timer-property=RandomizedDelaySec=900 systemctl start $timers
    }
    journalctl -q --rotate --vacuum-size=1 >/dev/null 2>&1
}

# forget removes what each machine gets anew, and what nobody may read.
forget() {
    rm -f /root/.bash_history /root/.ash_history
    modprobe -q -a virtio_net virtio_blk isofs 2>/dev/null
}

# empty leaves zeros where nothing is: they need no place in the file of the
# RAM, and tell nobody what was there.
empty() {
    sync
    echo 3 >/proc/sys/vm/drop_caches
    free=0
    while read -r key kib rest; do
        [ "$key" != MemFree: ] || free=$((kib / 1024))
    done </proc/meminfo
    fill=$((free - 32 - free / 16))
    if [ $fill -gt 0 ]; then
        mkdir -p $state/zero
        mount -t tmpfs -o size=${fill}m,mode=700 none $state/zero && {
            dd if=/dev/zero of=$state/zero/fill bs=1048576 count=$fill 2>/dev/null
            umount $state/zero
        }
        rmdir $state/zero
    fi
}

# warm has the programs of the identity script read once: what all machines
# share need not be read by each.
warm() {
    date >/dev/null
    ip -o addr show >/dev/null
    for p in rm mv ln chown mkdir sleep useradd usermod perl udhcpc dropbear dropbearkey renice ssh-keygen; do
        p=$(command -v $p) && [ -r "$p" ] && cat "$p" >/dev/null
    done
    [ ! -d /run/systemd/system ] || systemctl is-active lamina-agent >/dev/null
    [ ! -x /usr/sbin/useradd ] || useradd --help >/dev/null
    sync
}

# account makes the file for the keys of the user that most machines will have, which
# lets nobody in while it is empty: each would start two programs for it.
account() {
    . $state/facts
    find_user "$(default_user)" && [ -d "$home" ] && [ "$home" != / ] || return 0
    own_keys "$n"
    # The machines find the file there, and leave its label as it is.
    [ -z "$relabel" ] || relabel_now $relabel
    case $n in
    *[!a-zA-Z0-9_-]*) ;;
    *) echo "fact_keys=$n" >>$state/facts ;;
    esac
}

prepare() {
    learn
    quiet
    account
    forget
    empty
    warm
    echo "=end"
} 2>/dev/null
