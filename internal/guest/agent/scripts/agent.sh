#!/bin/sh
# The resident agent of Lamina (https://github.com/lamina-vm/lamina): runs, as
# root, the scripts that the host hands over on the virtio-serial port
# dev.lamina.agent.0. The host can do that anyway: it owns the disk. Where
# there is no such port it ends.
#
# It costs nothing while nobody talks to it: a write waits in the kernel until
# the host's end is open, a read until a line comes.
export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
cd /

# The port has no other name where there is no udev.
port=$1
if [ -z "$port" ]; then
    for dir in /sys/class/virtio-ports/*; do
        [ -r "$dir/name" ] || continue
        read -r name <"$dir/name"
        [ "$name" != dev.lamina.agent.0 ] || port=/dev/${dir##*/}
    done
fi
[ -c "$port" ] || exit 0
exec 3<>"$port" || exit 1
lamina_agent=2 # what it can do: 2 knows @keep
newline='
'

# answer runs the request. Marks are on lines of their own, whatever the script
# prints and whatever was cut off before.
answer() {
    printf '\n@lamina %s\n' "$id" >&3
    (eval "$script") </dev/null >&3 2>&1 3>&-
    printf '\n@end %s %d\n' "$id" $? >&3
}

# define runs the request in this shell: the functions that it defines stay, and
# need not be sent nor read again, not by those either who are copied later.
define() {
    printf '\n@lamina %s\n' "$id" >&3
    eval "$script" </dev/null >&3 2>&1
    printf '\n@end %s %d\n' "$id" $? >&3
}

id=
while echo >&3; do
    while IFS= read -r line <&3; do
        case $line in
        ' '*) [ -z "$id" ] || script=$script${line# }$newline ;;
        '@lamina '*)
            id=${line#* }
            script=
            ;;
        '@end '*)
            [ -z "$id" ] || [ "@end $id" != "$line" ] || answer
            id=
            script=
            ;;
        '@keep '*)
            [ -z "$id" ] || [ "@keep $id" != "$line" ] || define
            id=
            script=
            ;;
        esac
    done
    # The host has closed its end.
    id=
    script=
done
