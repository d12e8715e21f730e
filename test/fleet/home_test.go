package fleet

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
)

// programs are built once for all tests of the package.
var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "lamina-fleet-")
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir+"/", "github.com/lamina-vm/lamina/cmd/lamina", "github.com/lamina-vm/lamina/cmd/laminad")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return dir, &buildError{out, err}
	}
	return dir, nil
})

type buildError struct {
	out []byte
	err error
}

func (e *buildError) Error() string { return e.err.Error() + ": " + string(e.out) }
func (e *buildError) Unwrap() error { return e.err }

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, _ := programs(); dir != "" {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// testHome is a home of its own, with its daemon.
type testHome struct {
	dir, bin string
	home     home.Home
}

// newHome returns a home whose machines and daemon end with the test. Its path is
// short, as those of sockets are.
func newHome(t testing.TB) testHome {
	t.Helper()
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "lf-")
	if err != nil {
		t.Fatal(err)
	}
	h := testHome{dir: dir, bin: bin, home: home.At(dir)}
	t.Cleanup(func() {
		for _, args := range [][]string{{"rm", "-f", "*"}, {"daemon", "stop"}} {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			_ = h.command(ctx, args...).Run() // there may be none
			cancel()
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return h
}

func (h testHome) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(h.bin, "lamina"), args...)
	cmd.Env = append(os.Environ(), home.Env+"="+h.dir)
	return cmd
}

// run runs lamina, which must succeed within limit, and returns how long it took.
func (h testHome) run(t testing.TB, limit time.Duration, args ...string) time.Duration {
	t.Helper()
	begun := time.Now()
	h.output(t, limit, args...)
	return time.Since(begun)
}

func (h testHome) output(t testing.TB, limit time.Duration, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := h.command(ctx, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("lamina %q: %v\n%s%s", args, err, out.Bytes(), errs.Bytes())
	}
	return out.Bytes()
}

func (h testHome) machine(t testing.TB, name string) api.Machine {
	t.Helper()
	list := decode[[]api.Machine](t, h.output(t, time.Minute, "info", name, "--json"))
	if len(list) != 1 {
		t.Fatalf("info %s: %d machines", name, len(list))
	}
	return list[0]
}

func (h testHome) machines(t testing.TB) []api.Machine {
	t.Helper()
	return decode[[]api.Machine](t, h.output(t, time.Minute, "ls", "--json"))
}

// allocated is what a file takes on the host, in bytes.
func allocated(t testing.TB, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return st.Blocks * 512
}
