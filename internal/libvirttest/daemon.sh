# Runs a private libvirtd until its input ends, which it also does when the test
# is killed. Called in a mount namespace of its own, which $2 must not be:
#   daemon.sh DIR NAMESPACE-OF-THE-CALLER CAPABILITIES-CACHE
set -eu
dir=$1 outer=$2 cache=$3
own=$(readlink /proc/self/ns/mnt)
[ "$own" != "$outer" ] || { echo "no mount namespace of its own" >&2; exit 1; }

lay() { # SOURCE TARGET
  mkdir -p "$1" "$2"
  mount --bind "$1" "$2"
}
lay "$dir/run" /run/libvirt
lay "$dir/etc" /etc/libvirt
lay "$dir/lib" /var/lib/libvirt
lay "$dir/log" /var/log/libvirt
lay "$cache" /var/cache/libvirt

libvirtd --pid-file "$dir/libvirtd.pid" --config /etc/libvirt/libvirtd.conf </dev/null >"$dir/libvirtd.log" 2>&1 &
daemon=$!

# Whatever runs in the namespace is ours: the daemon, its guests, a dnsmasq.
others() {
  find /proc -maxdepth 3 -path '/proc/[0-9]*/ns/mnt' -printf '%h %l\n' 2>/dev/null | grep -F " $own" | cut -d/ -f3 |
    while read -r p; do
      # This shell, the tini that runs it and the pipeline itself are not meant.
      [ "$p" != "$PPID" ] || continue
      parent=$(cut -d' ' -f4 "/proc/$p/stat" 2>/dev/null) || continue
      [ "$p" = "$$" ] || [ "$parent" = "$$" ] && [ "$p" != "$daemon" ] || ours "$parent" || echo "$p"
    done
}
ours() { [ "$(cut -d' ' -f4 "/proc/$1/stat" 2>/dev/null)" = "$$" ] && [ "$1" != "$daemon" ]; }

read -r _ || true
kill "$daemon" 2>/dev/null || true
tries=0
while left=$(others) && [ -n "$left" ]; do
  signal=TERM
  [ $tries -lt 50 ] || signal=KILL
  [ $tries -lt 100 ] || { echo "still there: $left" >&2; exit 1; }
  kill -s $signal $left 2>/dev/null || true
  tries=$((tries + 1))
  sleep 0.1
done
wait "$daemon" || true
rm -rf "$dir"
