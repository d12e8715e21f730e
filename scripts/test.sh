#!/usr/bin/env bash
# Runs the test suites: all (what CI runs), or the ones named.
set -euo pipefail
cd "$(dirname "$0")/.."

# The packages whose tests boot guests are apart, as those need the cores.
boots='/lamina/(test/(boot|e2e|fleet|virtinstall)$|internal/guestimage|internal/vm/qemu$|cmd/laminad$)'

# go test begins packages in the order in which they are named: the longest
# first, so that none of them is alone at the end.
longest='/lamina/(internal/tool/qemuimg|format/qcow2|test/crash|internal/vm/libvirt|internal/tool/virtinstall|cmd/laminad|test/boot|test/e2e|internal/vm/qemu)$'
longest_first() { sort | awk -v long="$longest" '$0 ~ long { print; next } { rest = rest $0 "\n" } END { printf "%s", rest }'; }

boot_packages() { go list ./... | grep -E "$boots" | longest_first; }
others() { go list ./... | grep -vE "$boots" | longest_first; }

step() { printf '\n== %s (%s)\n' "$1" "$(date -u +%T)"; }

# Runs go test; no test may skip that .ci/may-skip does not list.
run() { go test -json "$@" | go run ./internal/testreport .ci/may-skip; }

unit() { step unit; run -timeout 15m $(others); }

# What runs concurrently on purpose. The rest has no goroutines of its own.
race() {
  step race
  # The longest first, as above.
  CGO_ENABLED=1 run -race -timeout 15m ./internal/daemon/... ./image/... ./block/... ./protocol/... ./internal/qmp/... ./internal/guest/boot/... ./internal/catalog/... ./internal/guest/agent ./internal/fleet/... ./internal/vm/qemu/stream
  CGO_ENABLED=1 run -race -timeout 15m -run 'Concurren|Race|Conformance' ./format/...
}

# -parallel is beyond the cores, as a guest that waits takes none of them;
# test/boot bounds how many of its guests run.
boot() { step boot; run -timeout 25m -p 2 -parallel 6 $(boot_packages); }

# Two targets at a time, a core for each. What once failed is a seed in testdata,
# and the unit step runs every seed.
fuzz() {
  step fuzz
  export -f fuzz_one
  for pkg in $(go list ./...); do
    dir=${pkg#github.com/lamina-vm/lamina/}
    grep -hoE '^func Fuzz[A-Za-z0-9_]+' "$dir"/*_test.go 2>/dev/null | sed "s|func \(.*\)|\1 ./$dir|" || true
  done | xargs -P 2 -L 1 bash -c 'fuzz_one "$0" "$1"'
}

# Before Go 1.27 the end of -fuzztime races with the workers: a target without
# a failing input is then failed with "context deadline exceeded" and nothing
# else (go.dev/issue/75804). Just that is no failure: an input that fails is
# reported with itself, and one that hangs as a hung process.
fuzz_one() {
  local out status=0
  out=$(mktemp)
  go test -run '^$' -fuzz "^$1\$" -fuzztime "${FUZZTIME:-4s}" -fuzzminimizetime 1x -parallel 1 "$2" >"$out" 2>&1 || status=1
  if [ $status -eq 0 ]; then
    echo "$1: $(grep -o 'execs: [0-9]*' "$out" | tail -1), $(tail -1 "$out")"
  elif [ "$(sed -n '/^--- FAIL/,/^FAIL/p' "$out" | sed '1d;$d')" = '    context deadline exceeded' ]; then
    echo "$1: its time ended in the race of go.dev/issue/75804; no input failed"
    status=0
  else
    cat "$out"
  fi
  rm -f "$out"
  return $status
}

if [ $# -gt 0 ]; then
  for s in "$@"; do "$s"; done
  exit
fi
step lint; scripts/lint.sh
unit
race
fuzz
boot
