# cards says which of the cards are there, and their addresses. The host asks
# again and again: a program that waits in the guest costs more.
cards() {
    for mac in $macs; do
        find_card $mac || continue
        echo "=card $mac $card"
        # Its leases are files, and a look at one starts no program.
        if [ "$fact_network" = networkd ] && [ -d /run/systemd/netif/links ]; then
            read -r index </sys/class/net/$card/ifindex
            [ -s /run/systemd/netif/leases/$index ] || continue
        fi
        ip -o addr show dev $card | while read -r number name family address rest; do
            echo "=address $mac $family $address"
        done
    done
}
