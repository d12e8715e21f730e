# Gives a guest another identity. The host puts assignments before this, what
# else it needs of the scripts behind it, and calls of the functions at the end. It runs in dash, bash and busybox's
# ash. Every program that is started costs 10 to 30 ms where the CPU is emulated, so
# builtins and redirections do what they can. Comments and indentation are not sent.
#
# What the guest says is lines "=KEY VALUE"; everything else is what programs
# said, and is shown where something went wrong.
umask 022
newline='
'
tab='	'
state=/run/lamina-agent
[ ! -r $state/facts ] || . $state/facts

relabel_now() { [ ! -e /sys/fs/selinux/enforce ] || restorecon -R "$@"; }

problem() { echo "=problem $*"; }

# active UNIT: systemd runs the service. Asks the control groups, of both
# versions, as systemctl takes longer.
active() {
    [ -d "/sys/fs/cgroup/system.slice/$1.service" ] || [ -d "/sys/fs/cgroup/systemd/system.slice/$1.service" ]
}

# --- who it is ---------------------------------------------------------------

# renew_random mixes the host's random bytes in. vmgenid has made the kernel
# begin anew where it has the driver (since 5.18); elsewhere the bytes must
# be credited, or they would be used only minutes later.
renew_random() {
    printf %s "$random" >/dev/urandom
    for f in /var/lib/systemd/random-seed /var/lib/urandom/random-seed /var/lib/misc/random-seed /var/lib/seedrng/seed.credit; do
        [ ! -f $f ] || printf %s "$random_seed" >$f
    done
    for d in /sys/bus/acpi/drivers/vmgenid/*:* /sys/bus/platform/drivers/vmgenid/*:*; do
        [ ! -e "$d" ] || return 0
    done
    if command -v perl >/dev/null; then
        printf %s "$random" | perl -e '$r = <STDIN>; open F, ">", "/dev/random" or exit 1; ioctl(F, 0x40085203, pack("iia*", 256, length $r, $r)); ioctl(F, 0x5207, 0)'
    elif command -v python3 >/dev/null; then
        printf %s "$random" | python3 -c 'import fcntl, struct, sys; b = sys.stdin.buffer.read(); f = open("/dev/random", "wb"); fcntl.ioctl(f, 0x40085203, struct.pack("ii", 256, len(b)) + b); fcntl.ioctl(f, 0x5207)'
    elif command -v seedrng >/dev/null; then
        mkdir -p /var/lib/seedrng
        printf %s "$random" >/var/lib/seedrng/seed.credit
        seedrng >/dev/null
    else
        problem "its kernel has no vmgenid, and it has neither perl nor python3 nor seedrng: what it takes for random may be what others of its kind have"
    fi
}

# Busybox takes no fraction.
renew_clock() {
    [ -z "$fact_whole_seconds" ] && date -u -s "@$now" "+=time %s" 2>/dev/null || date -u -s "@${now%.*}" "+=time %s" || problem "its clock could not be set"
}

renew_hostname() {
    echo "$host" >/proc/sys/kernel/hostname
    echo "$host" >/etc/hostname
    # As cloud-init writes it, which would add its own else.
    entry="127.0.1.1 $fqdn $host"
    hosts= seen=
    if [ -r /etc/hosts ]; then
        while IFS= read -r line || [ -n "$line" ]; do
            case $line in
            "127.0.1.1 "* | "127.0.1.1$tab"*)
                [ -z "$seen" ] || continue
                line=$entry seen=1
                ;;
            esac
            hosts=$hosts$line$newline
        done </etc/hosts
    fi
    [ -n "$seen" ] || hosts=$hosts$entry$newline
    printf %s "$hosts" >/etc/hosts
    [ ! -f /var/lib/cloud/data/previous-hostname ] || echo "$host" >/var/lib/cloud/data/previous-hostname
}

renew_machine_id() {
    echo "$machine_id" >/etc/machine-id
    f=/var/lib/dbus/machine-id
    [ ! -f $f ] || [ -L $f ] || echo "$machine_id" >$f
    renew_initiators
    forget_secrets
}

# renew_initiators: what storage knows the machine by. Two of one name end each
# other's sessions, or write to one volume.
renew_initiators() {
    f=/etc/iscsi/initiatorname.iscsi
    if [ -f $f ]; then
        text=
        while IFS= read -r line || [ -n "$line" ]; do
            case $line in
            InitiatorName=*:*) line=${line%:*}:${machine_id%????????????????????} ;;
            esac
            text=$text$line$newline
        done <$f
        printf %s "$text" >$f
    fi
    [ ! -f /etc/nvme/hostid ] && [ ! -f /etc/nvme/hostnqn ] && return
    a=${machine_id%????????????????????????} b=${machine_id#????????} c=${machine_id#????????????} d=${machine_id#????????????????} e=${machine_id#????????????????????}
    host_uuid=$a-${b%????????????????????}-${c%????????????????}-${d%????????????}-$e
    [ ! -f /etc/nvme/hostid ] || echo "$host_uuid" >/etc/nvme/hostid
    [ ! -f /etc/nvme/hostnqn ] || echo "nqn.2014-08.org.nvmexpress:uuid:$host_uuid" >/etc/nvme/hostnqn
}

# forget_secrets removes what programs make themselves of: they make it anew when
# they start. What a guest that was in use has encrypted needs its key.
forget_secrets() {
    secrets='/var/lib/NetworkManager/secret_key /var/lib/dhcpcd/duid /var/lib/dhcpcd/secret /etc/dhcpcd.duid /etc/dhcpcd.secret'
    [ -n "$in_use" ] || secrets="$secrets /var/lib/systemd/credential.secret"
    old=
    for f in $secrets; do
        [ ! -f "$f" ] || old="$old $f"
    done
    [ -z "$old" ] || rm -f $old
}

# named says who it is now, from where everybody in the guest reads it.
named() {
    read -r a </proc/sys/kernel/hostname
    read -r b </etc/machine-id
    echo "=named $a $b"
}

# --- SSH ---------------------------------------------------------------------

# Keys are written over old ones, which keeps mode and label. A key of another
# kind goes; an RSA key takes longer than everything here and follows by itself.
renew_ssh() {
    rsa= stray=
    if [ -d /etc/ssh ]; then
        keys=
        for f in /etc/ssh/ssh_host_*; do
            case $f in
            *_ed25519_key | *_ed25519_key.pub | *_ecdsa_key | *_ecdsa_key.pub | *'*') ;;
            *_rsa_key) keys="$keys $f" rsa=1 ;;
            *) keys="$keys $f" ;;
            esac
        done
        [ -z "$keys" ] || rm -f $keys
        umask 077
        printf %s "$ed25519" >/etc/ssh/ssh_host_ed25519_key
        printf %s "$ecdsa" >/etc/ssh/ssh_host_ecdsa_key
        umask 022
        echo "$ed25519_pub" >/etc/ssh/ssh_host_ed25519_key.pub
        echo "$ecdsa_pub" >/etc/ssh/ssh_host_ecdsa_key.pub
        [ -z "$hash" ] || allow_passwords
        relabel="$relabel /etc/ssh"
        reload_sshd || echo "=server unknown"
    fi
    if [ -d /etc/dropbear ]; then
        rm -f /etc/dropbear/dropbear_*_host_key
        umask 077
        printf "$dropbear_ed25519" >/etc/dropbear/dropbear_ed25519_host_key
        printf "$dropbear_ecdsa" >/etc/dropbear/dropbear_ecdsa_host_key
        umask 022
        if [ -x /lib/lamina/sshd ]; then
            # Its server reads the keys for each connection.
            [ -z "$hash" ] || : >/var/lib/lamina/ssh-passwords
        elif [ -x /etc/init.d/dropbear ]; then
            /etc/init.d/dropbear restart
        elif active dropbear; then
            systemctl restart dropbear
        else
            stray=1
        fi </dev/null >/dev/null 2>&1 || problem "its SSH server did not start again"
        [ -z "$stray" ] || echo "=server unknown"
    fi
}

# allow_passwords does what cloud-init does for ssh_pwauth.
allow_passwords() {
    if [ -d /etc/ssh/sshd_config.d ]; then
        echo "PasswordAuthentication yes" >/etc/ssh/sshd_config.d/50-cloud-init.conf
    else
        sed -i 's/^[# ]*PasswordAuthentication .*/PasswordAuthentication yes/' /etc/ssh/sshd_config
    fi
}

# reload_sshd: a server that systemd starts for a connection reads the keys
# anyway. It fails where it finds none.
reload_sshd() {
    for f in /run/sshd.pid /run/sshd/sshd.pid /sys/fs/cgroup/system.slice/ssh.service/cgroup.procs /sys/fs/cgroup/system.slice/sshd.service/cgroup.procs; do
        [ -s $f ] || [ "${f%procs}" != $f ] || continue
        pid=
        read -r pid <$f && kill -HUP "$pid" && return
    done 2>/dev/null
    [ -d /sys/fs/cgroup/system.slice/ssh.socket ] || [ -d /sys/fs/cgroup/system.slice/sshd.socket ]
}

# --- users -------------------------------------------------------------------

# find_user NAME sets home and uid.
find_user() {
    home= uid=
    while IFS=: read -r n x u g c h s; do
        [ "$n" = "$1" ] || continue
        home=$h uid=$u
        return 0
    done </etc/passwd
    return 1
}

# default_user is the user that cloud-init would have made, else the first
# ordinary one.
default_user() {
    [ -n "$fact_user" ] && echo "$fact_user" && return
    while IFS=: read -r n x u g c h s; do
        [ "$u" -ge 1000 ] && [ "$u" -lt 60000 ] && echo "$n" && return
    done </etc/passwd
    echo root
}

add_user() {
    groups=
    for g in ${fact_groups:-adm sudo wheel}; do
        while IFS=: read -r n rest; do
            [ "$n" != "$g" ] || groups="$groups${groups:+,}$g"
        done </etc/group
    done
    if command -v useradd >/dev/null; then
        shell=$fact_shell
        [ -x "$shell" ] || shell=/bin/bash
        [ -x "$shell" ] || shell=/bin/sh
        useradd -m -s "$shell" ${groups:+-G "$groups"} "$1"
    elif [ -r /lib/lamina/accounts ]; then
        (. /lib/lamina/accounts && add_user "$1")
    else
        adduser -D "$1" && for g in $(echo "$groups" | tr , ' '); do addgroup "$1" "$g"; done
    fi
}

# set_hash NAME HASH. Everybody in the guest can read the arguments of a program.
set_hash() {
    if [ -r /lib/lamina/accounts ]; then
        (. /lib/lamina/accounts && set_hash "$1" "$2")
    else
        echo "$1:$2" | chpasswd -e
    fi
}

# may_sudo NAME: as cloud-init writes it.
may_sudo() {
    [ -d /etc/sudoers.d ] || return 0
    rules=/etc/sudoers.d/90-cloud-init-users
    rule="$1 ALL=(ALL) NOPASSWD:ALL"
    old=
    if [ -e $rules ]; then
        while IFS= read -r line; do
            [ "$line" != "$rule" ] || return 0
        done <$rules
    fi
    umask 0337
    echo "# User rules for $1$newline$rule" >>$rules
    umask 022
}

# own_keys NAME sets f to the file of the keys, which is there and the user's then.
# For one user that was done once for all machines.
own_keys() {
    f=$home/.ssh/authorized_keys
    [ "$1" != "$fact_keys" ] || [ ! -f "$f" ] || return 0
    [ -d "$home/.ssh" ] || mkdir -m 700 "$home/.ssh"
    umask 077
    : >>"$f"
    umask 022
    [ "$uid" = 0 ] || chown -R "$1:" "$home/.ssh"
    relabel="$relabel $home/.ssh"
}

# authorize NAME adds the keys that are not there.
authorize() {
    [ -n "$ssh_keys" ] || return 0
    own_keys "$1"
    umask 077
    old=
    if [ -e "$f" ]; then
        while IFS= read -r line || [ -n "$line" ]; do old=$old$line$newline; done <"$f"
    fi
    add=$old
    while IFS= read -r line; do
        case $newline$add in
        *"$newline$line$newline"*) ;;
        *) add=$add$line$newline ;;
        esac
    done <<KEYS
$ssh_keys
KEYS
    [ "$add" = "$old" ] || printf %s "$add" >"$f"
    umask 022
}

# renew_user: an account that is there and that nobody asked for gets no more rights than
# it has, unless cloud-init would give them. In a guest that was in use none comes back.
renew_user() {
    asked=$user$ssh_keys$hash may=$user
    [ -n "$user" ] || user=$(default_user)
    if ! find_user "$user"; then
        [ -z "$in_use" ] || [ -n "$asked" ] || return 0
        add_user "$user" || problem "user $user could not be made"
        find_user "$user" || return 0
        may=1
    fi
    [ -n "$in_use" ] || [ "$user" != "$fact_user" ] || may=1
    [ -z "$may" ] || [ "$uid" = 0 ] || may_sudo "$user"
    authorize "$user"
    [ -z "$hash" ] || set_hash "$user" "$hash" || problem "the password of $user could not be set"
    echo "=user $user"
}

# --- cloud-init --------------------------------------------------------------

# keep_instance gives the instance that cloud-init has configured another name,
# so that a cold boot with the machine's own seed finds it configured. What it
# keeps of the seed goes: a boot would take the host name from there.
keep_instance() {
    if [ -d /lib/lamina ]; then
        echo "$instance_id" >/var/lib/lamina/instance-id
        return
    fi
    c=/var/lib/cloud
    [ -d $c/instances ] || return 0
    old=
    [ ! -r $c/data/instance-id ] || read -r old <$c/data/instance-id
    [ "$old" != "$instance_id" ] || return 0
    if [ -n "$old" ] && [ -d "$c/instances/$old" ] && [ ! -e "$c/instances/$instance_id" ]; then
        mv "$c/instances/$old" "$c/instances/$instance_id" || problem "cloud-init's instance $old could not be renamed"
    fi
    i=$c/instances/$instance_id
    rm -rf $c/data/set-hostname "$i/obj.pkl" "$i/datasource" "$i/cloud-config.txt" "$i/user-data.txt" "$i/user-data.txt.i" \
        "$i"/vendor-* "$i/scripts" "$i/handlers"
    ln -sfn "$c/instances/$instance_id" $c/instance
    echo "$instance_id" >$c/data/instance-id
    echo "${old:-NO_PREVIOUS_INSTANCE_ID}" >$c/data/previous-instance-id
    [ ! -f /run/cloud-init/.instance-id ] || echo "$instance_id" >/run/cloud-init/.instance-id
}

# --- what may come later -----------------------------------------------------

# later does what nobody waits for, and asks for little of the CPU: log files
# under the new name, an RSA host key where there was one, a login prompt that has the
# new name. A console at which somebody is logged in is let alone.
later() {
    (
        read -r pid rest </proc/self/stat && renice -n 10 -p "$pid"
        sleep 3
        [ -z "$relabel" ] || relabel_now $relabel
        for p in /proc/[0-9]*; do
            read -r name <"$p/comm" && case $name in
            agetty | getty) kill "${p#/proc/}" ;;
            esac
        done
        if active systemd-journald; then
            systemctl restart systemd-journald
        fi
        if [ -n "$rsa" ]; then
            rm -f /etc/ssh/.lamina_rsa*
            ssh-keygen -q -t rsa -N '' -f /etc/ssh/.lamina_rsa &&
                mv /etc/ssh/.lamina_rsa.pub /etc/ssh/ssh_host_rsa_key.pub &&
                mv /etc/ssh/.lamina_rsa /etc/ssh/ssh_host_rsa_key &&
                relabel_now /etc/ssh && reload_sshd
        fi
    ) </dev/null >/dev/null 2>&1 3>&- &
}
