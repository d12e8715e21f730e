# dropbear_keys says the keys of dropbear, which keeps no public ones. To work
# one out takes long: a file that is the one that the host has sent is known.
dropbear_keys() {
    set -- /etc/dropbear/dropbear_*_host_key
    [ -r "$1" ] || return 0
    { sha256sum "$@" || for f; do echo "- $f"; done; } 2>/dev/null | while read -r sum f; do
        case $sum in
        "$dropbear_ed25519_sum") echo "=key $ed25519_pub" ;;
        "$dropbear_ecdsa_sum") echo "=key $ecdsa_pub" ;;
        *) dropbearkey -y -f "$f" | while read -r kind key rest; do
            case $kind in ssh-* | ecdsa-*) echo "=key $kind $key" ;; esac
        done ;;
        esac
    done
}

# report says who the guest is, and ends what it says.
report() {
    read -r line </proc/sys/kernel/hostname && echo "=hostname $line"
    read -r line </etc/machine-id && echo "=machine-id $line"
    [ -d /etc/ssh ] || [ -d /etc/dropbear ] || echo "=nossh"
    for f in /etc/ssh/ssh_host_*_key.pub; do
        [ -r "$f" ] && read -r kind key rest <"$f" && echo "=key $kind $key"
    done
    dropbear_keys
    echo "=end"
}
