# The network of the new cards, which come later or are there. Comes behind
# renew.sh. Nothing is restarted, as that takes longer than everything else:
# the cards are asked for by their own addresses, not by a name that is made of
# the machine-id, which those who manage networks keep in their memory.

# who_manages sets fact_network where the guest was not prepared.
who_manages() {
    [ -z "$fact_network" ] || return 0
    if [ -x /lib/lamina/dhcp ]; then
        fact_network=small
    elif active NetworkManager; then
        fact_network=networkmanager
    elif active systemd-networkd; then
        fact_network=networkd
    elif [ -d /etc/network ] && command -v ifup >/dev/null; then
        fact_network=ifupdown
    elif command -v dhclient >/dev/null; then
        fact_network=dhclient
    else
        fact_network=udhcpc
    fi
}

# networkd_file MATCH [METRIC], nm_file NAME MATCH UUID print a configuration.
networkd_file() {
    echo "[Match]$newline$1$newline$newline[Network]${newline}DHCP=ipv4$newline$newline[DHCPv4]${newline}ClientIdentifier=mac${newline}RouteMetric=${2:-100}${newline}UseMTU=true$newline$newline[DHCPv6]${newline}DUIDType=link-layer"
}

nm_file() {
    echo "[connection]${newline}id=$1${newline}uuid=$3${newline}type=ethernet${newline}multi-connect=3$newline$newline[ethernet]$newline$2$newline$newline[ipv4]${newline}method=auto${newline}dhcp-client-id=mac$newline$newline[ipv6]${newline}method=auto${newline}addr-gen-mode=eui64${newline}dhcp-duid=ll"
}

# forget_cards removes the configuration and the leases of other cards.
forget_cards() {
    old=
    for f in /etc/systemd/network/*-cloud-init-*.network /run/systemd/network/*-cloud-init-*.network \
        /run/systemd/network/10-netplan-* /etc/systemd/network/10-lamina-* \
        /etc/NetworkManager/system-connections/cloud-init-* /run/NetworkManager/system-connections/cloud-init-* \
        /etc/sysconfig/network-scripts/ifcfg-eth* /etc/sysconfig/network-scripts/ifcfg-en* \
        /var/lib/NetworkManager/*lease* /var/lib/dhcp/*.leases /var/lib/dhcp/*.lease /var/lib/dhclient/*; do
        [ ! -f "$f" ] || old="$old $f"
    done
    [ -z "$old" ] || rm -f $old
}

# network writes the configuration of the cards, for now and for later boots,
# and says who manages it.
network() {
    who_manages
    echo "=network $fact_network"
    [ -n "$macs" ] || return 0
    [ -e /run/udev/control ] || [ -e /sys/bus/virtio/drivers/virtio_net ] || modprobe -q -a virtio_net e1000 2>/dev/null
    forget_cards
    n=0
    case $fact_network in
    networkd)
        plan="network:$newline  version: 2$newline  ethernets:$newline"
        for mac in $macs; do
            plan="$plan    card$n:$newline      match:$newline        macaddress: \"$mac\"$newline      dhcp4: true$newline      dhcp-identifier: mac$newline"
            if [ -d /etc/netplan ]; then
                networkd_file "MACAddress=$mac" $((100 + n)) >/run/systemd/network/10-netplan-card$n.network
            else
                networkd_file "MACAddress=$mac" $((100 + n)) >/etc/systemd/network/10-lamina-card$n.network
            fi
            n=$((n + 1))
        done
        if [ -d /etc/netplan ]; then
            umask 077
            printf %s "$plan" >/etc/netplan/50-cloud-init.yaml
            umask 022
        fi
        [ -e /run/systemd/network/10-lamina.network ] || networkctl reload
        ;;
    networkmanager)
        umask 077
        for mac in $macs; do
            nm_file "cloud-init card$n" "mac-address=$mac" "$uuid$n" >/etc/NetworkManager/system-connections/cloud-init-card$n.nmconnection
            n=$((n + 1))
        done
        umask 022
        relabel_now /etc/NetworkManager/system-connections
        [ -e /run/NetworkManager/system-connections/lamina.nmconnection ] || nmcli connection reload
        ;;
    ifupdown)
        [ ! -d /etc/network/interfaces.d ] || : >/etc/network/interfaces.d/50-cloud-init
        ;;
    esac
}
