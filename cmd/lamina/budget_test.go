package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// denied are packages that `lamina` must not link, each with the reason. A
// script calls `lamina img` thousands of times: what only the daemon needs is
// linked into laminad.
var denied = map[string]string{
	"modernc.org/":            "SQLite is the daemon's: some ms of init",
	"database/sql":            "state is the daemon's",
	"gopkg.in/yaml.v3":        "cloud-init data is the daemon's",
	"golang.org/x/crypto/ssh": "the system's ssh client is run instead",
	"github.com/kdomanski/":   "seeds are written by the daemon",
	"net/http":                "0.4 ms of init and pages: package client speaks HTTP over the unix socket by hand",
	"crypto/tls":              "downloads are the daemon's",
	"github.com/rogpeppe/":    "a test's tool",
	"pgregory.net/rapid":      "a test's tool",
	"testing":                 "a test's tool",
	"github.com/lamina-vm/lamina/internal/store":      "state is the daemon's",
	"github.com/lamina-vm/lamina/internal/daemon":     "the daemon's",
	"github.com/lamina-vm/lamina/internal/catalog":    "the catalog is asked for over the API",
	"github.com/lamina-vm/lamina/internal/guest/seed": "seeds are written by the daemon",
	"github.com/lamina-vm/lamina/internal/vm/qemu":    "QEMU is run by the daemon",
	"github.com/lamina-vm/lamina/internal/qmp":        "QEMU is spoken to by the daemon",
	"github.com/lamina-vm/lamina/internal/qemutest":   "a test's door",
	"github.com/lamina-vm/lamina/internal/guestimage": "a test's guest",
	"runtime/cgo": "no cgo: the binary is static",
}

func TestImports(t *testing.T) {
	cmd := exec.Command("go", "list", "-deps", ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	deps := strings.Fields(string(out))
	if len(deps) < 50 {
		t.Fatalf("go list names %d packages only", len(deps))
	}
	for _, d := range deps {
		for p, reason := range denied {
			if d == p || strings.HasPrefix(d, strings.TrimSuffix(p, "/")+"/") {
				t.Errorf("lamina links %s: %s", d, reason)
			}
		}
	}
}

// maxInit bounds what initialisation may take before main, by the clock of a
// machine that may be busy with other tests; alone it is about 0.6 ms.
const maxInit = 1500 * time.Microsecond

// TestInitTime runs `lamina img --version` and adds up what each package's
// initialisation took. The least of many runs counts: more than that is not
// the program's doing.
func TestInitTime(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "lamina")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	best, bestTrace := time.Hour, ""
	for range 30 {
		cmd := exec.Command(bin, "img", "--version")
		cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
		var trace strings.Builder
		cmd.Stderr = &trace
		if err := cmd.Run(); err != nil {
			t.Fatalf("lamina img --version: %v", err)
		}
		if sum := initSum(t, trace.String()); sum < best {
			best, bestTrace = sum, trace.String()
		}
	}
	t.Logf("initialisation takes %v", best)
	if best > maxInit {
		t.Errorf("initialisation takes %v, at most %v is allowed:\n%s", best, maxInit, bestTrace)
	}
}

// initSum adds up lines such as
// "init internal/bytealg @0.008 ms, 0 ms clock, 0 bytes, 0 allocs".
func initSum(t *testing.T, trace string) time.Duration {
	t.Helper()
	var sum float64
	n := 0
	for line := range strings.SplitSeq(trace, "\n") {
		f := strings.Fields(line)
		if len(f) < 7 || f[0] != "init" {
			continue
		}
		ms, err := strconv.ParseFloat(f[4], 64)
		if err != nil || f[6] != "clock," {
			t.Fatalf("trace of another form: %q", line)
		}
		sum += ms
		n++
	}
	if n < 5 {
		t.Fatalf("the trace has %d packages:\n%s", n, trace)
	}
	return time.Duration(sum * float64(time.Millisecond))
}
