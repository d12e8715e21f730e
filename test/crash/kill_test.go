package crash

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/block/blocktest"
	"github.com/lamina-vm/lamina/internal/tool/qemuimg"
)

// asTool makes the test binary the tool.
const asTool = "LAMINA_CRASH_AS_TOOL"

// memoryLimit is the Go runtime's; the tool that is run has its own limit.
const memoryLimit = "GOMEMLIMIT"

func TestMain(m *testing.M) {
	if os.Getenv(asTool) != "" {
		os.Exit(qemuimg.Main("lamina img", os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	// The tests clone small files by the ten thousand: with the usual few MiB
	// of heap the collector and the kernel's page faults take most of the time.
	// The variable keeps the tool from setting a limit of its own.
	const heap = 400 << 20
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(heap)
	if err := os.Setenv(memoryLimit, strconv.Itoa(heap)); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// startTool starts a command line as a program of its own.
func startTool(t *testing.T, dir, line string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, strings.Fields(strings.ReplaceAll(line, "@", dir+"/"))...)
	cmd.Env = append(os.Environ(), asTool+"=1", memoryLimit+"=")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

const killsPerVerb = 8

// killCases are verbs that take some milliseconds each.
func killCases() []verbCase {
	const (
		small = "create -q -f qcow2 -o cluster_size=512 @a 6M"
		v2    = "create -q -f qcow2 -o cluster_size=512,compat=0.10 @a 6M"
		raw   = "create -q -f raw @src 12M"
	)
	a, src := qcow2("a"), imageFile{"src", "raw"}
	source := watched{src, oldOrNew}
	to := func(format string, r rule) []watched { return []watched{source, {imageFile{"dst", format}, r}} }
	return append([]verbCase{
		{verb: "create", lines: "create -q -f qcow2 -o preallocation=metadata,cluster_size=512 @a 40M", see: []watched{{a, target}}},
		{verb: "convert", setup: raw, fills: []imageFile{src}, lines: "convert -f raw -O qcow2 @src @dst", see: to("qcow2", target)},
		{verb: "convert", setup: raw, fills: []imageFile{src}, lines: "convert -f raw -O qcow2 -o compat=0.10,cluster_size=512 @src @dst", see: to("qcow2", target)},
		{verb: "convert -c", setup: raw, fills: []imageFile{src}, lines: "convert -f raw -O qcow2 -c @src @dst", see: to("qcow2", target)},
		{verb: "convert raw", setup: raw, fills: []imageFile{src}, lines: "convert -f raw -O raw @src @dst", see: to("raw", target)},
		{verb: "convert over", setup: raw + "; create -q -f qcow2 @dst 14M", fills: []imageFile{src, qcow2("dst")}, lines: "convert -f raw -O qcow2 @src @dst", see: to("qcow2", target)},
		{verb: "convert over raw", setup: raw + "; create -q -f raw @dst 14M", fills: []imageFile{src, {"dst", "raw"}}, lines: "convert -f raw -O raw @src @dst", see: to("raw", target)},
		{verb: "convert -n", setup: raw + "; create -q -f qcow2 @dst 12M", fills: []imageFile{src, qcow2("dst")}, lines: "convert -n -f raw -O qcow2 @src @dst", see: to("qcow2", refilled)},
		{verb: "convert -n raw", setup: raw + "; create -q -f raw @dst 12M", fills: []imageFile{src, {"dst", "raw"}}, lines: "convert -n -f raw -O raw @src @dst", see: to("raw", refilled)},
		{verb: "convert data", setup: raw, fills: []imageFile{src}, lines: "convert -f raw -O qcow2 -o data_file=@d @src @dst", see: to("qcow2", target)},
		{verb: "dd", setup: raw, fills: []imageFile{src}, lines: "dd -f raw -O qcow2 bs=64k if=@src of=@dst", see: to("qcow2", target)},
		{verb: "dd raw", setup: raw, fills: []imageFile{src}, lines: "dd -f raw -O raw bs=64k if=@src of=@dst", see: to("raw", target)},
		{verb: "resize", setup: small, fills: []imageFile{a}, lines: "resize -q -f qcow2 --preallocation=metadata @a 30M", see: []watched{{a, resized}}},
		{verb: "resize --shrink", setup: small, fills: []imageFile{a}, lines: "resize -q -f qcow2 --shrink @a 64k", see: []watched{{a, resized}}},
		{verb: "snapshot -c", setup: small, fills: []imageFile{a}, lines: "snapshot -c s1 @a", see: []watched{{a, oldOrNew}}},
		{verb: "snapshot -a", setup: v2, fills: []imageFile{a}, then: "snapshot -c s1 @a; write", lines: "snapshot -a s1 @a", see: []watched{{a, oldOrNew}}},
		{verb: "snapshot -d", setup: small, fills: []imageFile{a}, then: "snapshot -c s1 @a; write", lines: "snapshot -d s1 @a", see: []watched{{a, oldOrNew}}},
		{verb: "check -r", setup: small, fills: []imageFile{a}, then: "leak", lines: "check -q -f qcow2 -r all @a", see: []watched{{a, oldOrNew}}},
	}, moreKillCases()...)
}

// kills runs the verb and kills it at random instants; inTime is how many of
// the kills came before its end.
func (c verbCase) kills(t *testing.T, seed uint64) (inTime int) {
	dir := tempDir(t)
	r := rand.New(rand.NewPCG(seed, 4))
	c.prepare(t, dir, r)
	start := readTree(t, dir)
	before := c.views(t, dir)
	began := time.Now()
	if err := startTool(t, dir, c.lines).Wait(); err != nil {
		t.Fatal(err)
	}
	took := time.Since(began)
	after := c.views(t, dir)
	for range killsPerVerb {
		start.restore(t, dir)
		cmd := startTool(t, dir, c.lines)
		wait := time.Duration(r.Float64() * float64(took))
		time.Sleep(wait)
		_ = cmd.Process.Kill()
		if err := cmd.Wait(); err != nil {
			inTime++
		}
		if err := c.judgeKill(t, dir, start, before, after); err != nil {
			t.Fatalf("killed after %v of about %v: %v\n%s; %s; %s", wait, took, err, c.setup, c.then, c.lines)
		}
	}
	return inTime
}

// judgeKill looks at what a kill left.
func (c verbCase) judgeKill(t *testing.T, dir string, start fileTree, before, after []view) error {
	now := readTree(t, dir)
	for i, f := range c.see {
		if f.format == "raw" && f.rule == oldOrNew {
			if !bytes.Equal(now[f.name], start[f.name]) {
				return fmt.Errorf("%s was changed", f.name)
			}
			continue
		}
		v, err := look(t.Context(), dir, f.imageFile)
		if errors.Is(err, fs.ErrNotExist) && f.rule == target {
			continue
		}
		s := &state{w: &world{names: []string{f.name}}, disks: nil}
		s.disks = append(s.disks, loadFile(t, filepath.Join(dir, f.name)))
		if err := f.judge(s, v, err, before[i], after[i]); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return nil
}

// TestKill kills the tool within every verb that writes: the source is as it
// was, the image as before, as after, or marked as unfinished.
func TestKill(t *testing.T) {
	seed := blocktest.Seed(t)
	inTime := map[string]int{}
	sum := 0
	for i, c := range killCases() {
		t.Run(fmt.Sprintf("%d %s", i, c.lines), func(t *testing.T) {
			n := c.kills(t, seed+uint64(i))
			inTime[c.verb] += n
			sum += n
		})
	}
	t.Logf("kills that came in time, of %d each: %v", killsPerVerb, inTime)
	if least := len(killCases()) * killsPerVerb / 3; sum < least {
		t.Errorf("only %d kills came in time, expected at least %d", sum, least)
	}
}
