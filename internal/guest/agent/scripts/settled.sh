# settled says what the boot is still about.
settled() {
    if [ -d /run/cloud-init ] && [ ! -e /run/cloud-init/disabled ] && [ ! -e /var/lib/cloud/instance/boot-finished ]; then
        echo "=busy cloud-init has not finished"
    elif [ -d /var/lib/lamina/scripts ]; then
        echo "=busy the scripts of the seed have not ended"
    fi
    if [ -d /run/systemd/system ]; then
        s=$(systemctl is-system-running 2>/dev/null)
        case $s in
        running | degraded) ;;
        *) echo "=busy systemd says $s" ;;
        esac
    fi
    read -r cpu user nice system idle rest </proc/stat && echo "=cpu $((user + nice + system)) $idle"
    echo "=end"
}
