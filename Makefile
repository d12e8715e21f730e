# Lamina: `make demo` runs the main job, `make test` everything that CI runs.
# Both work on a fresh Debian machine with Go, as root or with sudo.

GO       ?= go
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X github.com/lamina-vm/lamina/internal/api.BuildVersion=$(VERSION)
GUESTS   := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/lamina-guests
FUZZTIME ?= 30s
GUEST    ?= small
KILLS    ?= 500
SEED     ?= 0
PREFIX   ?= /usr/local
BINDIR    = $(DESTDIR)$(PREFIX)/bin
SHAREDIR  = $(DESTDIR)$(PREFIX)/share
UNITDIR   = $(DESTDIR)$(PREFIX)/lib/systemd/system

export GOFLAGS ?= -buildvcs=false

.PHONY: all deps build test test-kill check lint unit race boot fuzz bench bench-fleet demo install install-names free-names clean

all: build

## deps: install the Debian packages that the demo and the tests need
deps:
	@scripts/deps.sh

## build: the two static binaries, and the personalities qemu-img and virt-install, in bin/
build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/lamina ./cmd/laminad
	@ln -sf lamina bin/qemu-img
	@ln -sf lamina bin/virt-install

## install: the binaries, manual pages, completions and systemd units below DESTDIR and PREFIX
install: build
	install -d $(BINDIR) $(SHAREDIR)/man/man1 $(SHAREDIR)/bash-completion/completions $(SHAREDIR)/zsh/site-functions $(SHAREDIR)/fish/vendor_completions.d $(UNITDIR)
	install bin/lamina bin/laminad $(BINDIR)
	bin/lamina man $(SHAREDIR)/man/man1
	bin/lamina completion bash > $(SHAREDIR)/bash-completion/completions/lamina
	bin/lamina completion zsh > $(SHAREDIR)/zsh/site-functions/_lamina
	bin/lamina completion fish > $(SHAREDIR)/fish/vendor_completions.d/lamina.fish
	install -m 0644 contrib/systemd/laminad.service contrib/systemd/laminad.socket $(UNITDIR)
	sed -i 's|^ExecStart=/usr/local/bin/|ExecStart=$(PREFIX)/bin/|' $(UNITDIR)/laminad.service

## install-names: the names qemu-img and virt-install too, which may stand before the stock tools in PATH
install-names: free-names install
	ln -sf lamina $(BINDIR)/qemu-img
	ln -sf lamina $(BINDIR)/virt-install

# The stock tools, which a package may have installed there, are not overwritten.
free-names:
	@for f in $(BINDIR)/qemu-img $(BINDIR)/virt-install; do \
		if [ -e "$$f" -o -L "$$f" ] && [ "$$(readlink "$$f")" != lamina ]; then \
			echo "$$f is there and is not Lamina's: choose another PREFIX, or remove it" >&2; exit 1; \
		fi; \
	done

## test: what CI runs: format, vet, lint, unit, interop, crash, race, short fuzz, boot
test: deps build
	@scripts/test.sh

## test-kill: KILLS kills of the command, the daemon and QEMU within what makes and removes machines; SEED repeats a run's choices
test-kill: deps
	$(GO) test ./test/fleet -run '^TestKillLoop$$' -timeout 2h -v -kills $(KILLS) -seed $(SEED)

## lint: gofmt, go vet, staticcheck, errcheck, and the import rules of docs/architecture.md
lint:
	@scripts/lint.sh

## unit: every test but the boots
unit:
	@scripts/test.sh unit

## race: the same under the race detector
race:
	@scripts/test.sh race

## boot: the tests that boot guests
boot:
	@scripts/test.sh boot

## fuzz: every fuzz target for FUZZTIME each
fuzz:
	@FUZZTIME=$(FUZZTIME) scripts/test.sh fuzz

## bench: side by side with the stock tools, in one run, as ratios
bench: deps build
	$(GO) run ./internal/bench -bin bin -check

## bench-fleet: thin clones beside bare QEMU, cp and virt-clone; GUEST=debian for the Debian guest
bench-fleet: deps
	$(GO) test ./test/fleet -run '^$$' -bench '^BenchmarkFleet$$' -benchtime 1x -timeout 60m -v -guest $(GUEST)

## demo: from an image to ten thin machines at their login prompt, cold and warm
demo: deps build
	@scripts/demo.sh

clean:
	rm -rf bin
