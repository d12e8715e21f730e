# Has the guest apply a seed. Comes behind renew.sh.

# cloud_init has the guest's cloud-init take the seed of the new instance,
# as a first boot does. The host keys stay unless the user-data brings others.
cloud_init() {
    i=0
    if [ -d /lib/lamina ]; then
        KEEP_HOST_KEYS=1 /lib/lamina/seed >/dev/null 2>&1
        /lib/lamina/run-scripts >/dev/null 2>&1
        read -r id </var/lib/lamina/instance-id
        [ "$id" = "$instance_id" ] || problem "no seed for the instance $instance_id was found"
        return
    fi
    if ! command -v cloud-init >/dev/null; then
        problem "it has no cloud-init"
        return
    fi
    until [ -e /dev/disk/by-label/cidata ] || [ -e /dev/disk/by-label/CIDATA ] || [ $i -ge 100 ]; do
        sleep 0.1
        i=$((i + 1))
    done
    [ $i -lt 100 ] || problem "there is no drive with a seed"
    mkdir -p /run/cloud-init
    echo "ssh_deletekeys: false" >>/run/cloud-init/cloud.cfg
    rm -f /var/lib/cloud/instance /run/cloud-init/.instance-id /run/cloud-init/result.json
    out=/dev/console
    { : >$out; } 2>/dev/null || out=/dev/null
    for stage in "init --local" init "modules --mode=config" "modules --mode=final"; do
        cloud-init $stage </dev/null >$out 2>&1 || problem "cloud-init $stage did not succeed: see /var/log/cloud-init.log in the guest"
    done
    if [ -r /run/cloud-init/result.json ]; then
        while IFS= read -r line || [ -n "$line" ]; do echo "=result $line"; done </run/cloud-init/result.json
    fi
    id=
    [ ! -r /var/lib/cloud/data/instance-id ] || read -r id </var/lib/cloud/data/instance-id
    [ "$id" = "$instance_id" ] || problem "cloud-init took the instance ${id:-of none}, not $instance_id"
    # The new instance may have brought other keys.
    reload_sshd
}
