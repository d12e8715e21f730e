#!/usr/bin/env bash
# gofmt, go vet, staticcheck, errcheck, import rules.
set -euo pipefail
cd "$(dirname "$0")/.."

bad=$(git ls-files '*.go' | xargs gofmt -l)
[ -z "$bad" ] || { echo "not gofmt'ed:"; echo "$bad"; exit 1; }
go vet ./...
# -modfile keeps the linters' dependencies out of the library's go.mod.
go tool -modfile=tools/go.mod staticcheck ./...
go tool -modfile=tools/go.mod errcheck -exclude tools/errcheck.txt ./...
go test -count=1 ./internal/lint
go mod tidy -diff >/dev/null || { echo "go.mod is not tidy: go mod tidy"; exit 1; }
