# Says which of the cards are there, and their addresses. The host asks again
# and again: a program that waits in the guest costs more.
for d in /sys/class/net/*; do
    [ -r $d/address ] || continue
    read -r mac <$d/address
    case " $macs " in
    *" $mac "*) [ ! -e $d/master ] || continue ;;
    *) continue ;;
    esac
    card=${d##*/}
    echo "=card $mac $card"
    # Its leases are files, and a look at one starts no program.
    if [ "$network" = networkd ] && [ -d /run/systemd/netif/links ]; then
        read -r index <$d/ifindex
        [ -s /run/systemd/netif/leases/$index ] || continue
    fi
    ip -o addr show dev $card | while read -r number name family address rest; do
        echo "=address $mac $family $address"
    done
done
echo "=end"
