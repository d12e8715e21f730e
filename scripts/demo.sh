#!/usr/bin/env bash
# The main job: one image, one template, ten machines at their login prompt;
# then ten of it from a warm unit, which need no boot.
# Everything happens in a home of its own, which is gone at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

machines=10
memory=128M # of each machine

command -v ssh >/dev/null || { echo "demo: ssh is not installed: run make deps" >&2; exit 1; }
[ -x bin/lamina ] && [ -x bin/laminad ] || { echo "demo: bin/lamina and bin/laminad are not built: run make build" >&2; exit 1; }
export PATH="$PWD/bin:$PATH"

# A unix socket's path is short, so the home is not in a deep folder.
work=$(mktemp -d /tmp/lamina-demo.XXXXXX)
export LAMINA_HOME=$work/home

clean_up() {
  status=$?
  trap '' INT TERM HUP # once begun it is not interrupted
  trap - EXIT
  if [ -S "$LAMINA_HOME/run/laminad.sock" ] || [ -d "$LAMINA_HOME/machines" ]; then
    lamina rm -f '*' >/dev/null 2>&1 || true # there may be none yet
    lamina daemon stop || status=1
  fi
  # What still runs here would go on without its files: say so.
  if left=$(grep -lsa -- "$LAMINA_HOME/" /proc/[0-9]*/cmdline); then
    echo "demo: still running: $left" >&2
    status=1
  fi
  rm -rf "$work"
  exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

say() { printf '\n== %s\n' "$*"; }
run() { printf '$'; printf ' %q' "$@"; printf '\n'; "$@"; }

say "The guest: a Debian kernel with busybox, built from the distribution's packages and cached"
go run ./internal/guestimage/build small -o "$work/small.qcow2"
ls -sh "$work/small.qcow2"

begun=$SECONDS
say "One template"
run lamina template import "$work/small.qcow2" --name small --user lamina
run lamina template ls

say "$machines machines of it: an overlay and a seed each"
run lamina clone small "w-{01..$machines}" --memory "$memory"
overlays=$(du -k -c "$LAMINA_HOME"/machines/*/disk.qcow2 | tail -1 | cut -f 1)
echo "$machines overlays take $overlays KiB of disk, $((overlays / machines)) KiB each"

say "Their boots, some at a time"
run lamina start 'w-*'

say "Who they are, by SSH"
for name in w-01 "w-$machines"; do
  run lamina ssh "$name" -- hostname
done

say "What each takes: DISK is its own layer, USED the host's memory that is its own"
run lamina ls
total=$(du -sm "$LAMINA_HOME/machines" | cut -f 1)
echo "all $machines machines together take $total MiB of disk beside the template"

say "The template booted once, and frozen: a warm unit"
run lamina rm -f 'w-*'
run lamina template warm small --memory "$memory"

say "$machines machines of that: no boot, and each with an identity of its own"
from=$(date +%s%N)
run lamina clone small "fast-{01..$machines}" --memory "$memory" --start -p 80
echo "$machines machines had confirmed who they are after $((($(date +%s%N) - from) / 1000000)) ms"
for name in fast-01 "fast-$machines"; do
  run lamina ssh "$name" -- 'hostname; cat /etc/machine-id'
done
run lamina ls
run lamina template tree

say "Clean-up"
run lamina rm -f 'fast-*'
run lamina template cool small
run lamina template rm small
echo "done in $((SECONDS - begun)) s"
