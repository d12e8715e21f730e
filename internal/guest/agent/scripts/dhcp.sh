# Asks for an address for a card where nobody in the guest does by himself.
case $network in
small) udhcpc -q -n -t 10 -T 1 -s /lib/lamina/dhcp -i $card ;;
ifupdown)
    [ ! -d /etc/network/interfaces.d ] || printf 'auto %s\niface %s inet dhcp\n' $card $card >>/etc/network/interfaces.d/50-cloud-init
    ifup $card || dhclient $card || udhcpc -q -n -i $card
    ;;
dhclient) dhclient $card ;;
udhcpc) ip link set $card up && udhcpc -q -n -t 10 -T 1 -i $card ;;
esac </dev/null >/dev/null 2>&1
echo "=end"
