# ask CARD asks for an address for a card where nobody in the guest does by himself.
ask() {
    case $fact_network in
    small) udhcpc -q -n -t 10 -T 1 -s /lib/lamina/dhcp -i $1 ;;
    ifupdown)
        [ ! -d /etc/network/interfaces.d ] || printf 'auto %s\niface %s inet dhcp\n' $1 $1 >>/etc/network/interfaces.d/50-cloud-init
        ifup $1 || dhclient $1 || udhcpc -q -n -i $1
        ;;
    dhclient) dhclient $1 ;;
    udhcpc) ip link set $1 up && udhcpc -q -n -t 10 -T 1 -i $1 ;;
    esac </dev/null >/dev/null 2>&1
}

# find_card MAC sets card to the name of the card with an address, if it is there.
find_card() {
    card=
    for d in /sys/class/net/*; do
        [ ! -e $d/master ] && read -r a <$d/address && [ "$a" = "$1" ] || continue
        card=${d##*/}
        return 0
    done 2>/dev/null
    return 1
}

# ask_all asks for the addresses of all cards, which have just been plugged in.
# One that does not come in half a second is left to the host.
ask_all() {
    case $fact_network in
    networkd | networkmanager) return ;;
    esac
    for mac in $macs; do
        i=0
        until find_card $mac || [ $i -ge 25 ]; do
            sleep 0.02
            i=$((i + 1))
        done
        [ -n "$card" ] || continue
        echo "=asked $mac"
        ask $card
    done
}
