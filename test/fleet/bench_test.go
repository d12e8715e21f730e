// Package fleet measures thin clones beside what people do today, and holds
// what a fleet of machines must survive.
package fleet

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/guestimage"
)

var (
	guestKind = flag.String("guest", "small", "the guest that BenchmarkFleet measures with: small or debian")
	many      = flag.Int("many", 0, "machines of the bulk start; 0: 100 of the small guest, 30 of Debian")
	rounds    = flag.Int("rounds", 10, "machines that are started one by one")
)

// guest is what is measured with.
type guest struct {
	image  string
	memory int64 // bytes
	many   int
	boot   time.Duration // limit of a cold boot
}

func theGuest(b *testing.B) guest {
	switch *guestKind {
	case "small":
		return guest{image: guestimage.Small(b), memory: 128 << 20, many: 100, boot: 3 * time.Minute}
	case "debian":
		return guest{image: guestimage.Debian(b), memory: 1 << 30, many: 30, boot: 8 * time.Minute}
	}
	b.Fatalf("-guest %s: the guests are small and debian", *guestKind)
	return guest{}
}

// BenchmarkFleet prints what a machine costs in time, memory and disk, made in
// each of the ways that people have. `make bench-fleet` runs it.
func BenchmarkFleet(b *testing.B) {
	g := theGuest(b)
	if *many > 0 {
		g.many = *many
	}
	fmt.Printf("\nguest %s, %d MiB of memory; times are wall times of the commands\n\n", *guestKind, g.memory>>20)
	fmt.Printf("%-46s %12s %12s\n", "", "median", "p95")
	ours := oursFleet(b, g)
	bare := bareFleet(b, g)
	copies := copiesFleet(b, g)
	clone := virtClone(b, g)

	fmt.Println()
	row := func(what string, s series) { fmt.Printf("%-46s %12s %12s\n", what, show(s.median()), show(s.p95())) }
	row("cold boot to login: lamina run --cold", ours.cold)
	row("cold boot to login: cp and QEMU by hand", copies.login)
	row("cold boot to login: virt-clone and libvirt", clone.login)
	row("a machine's disk: lamina clone", ours.define)
	row("a machine's disk: cp", copies.copied)
	row("a machine's disk: virt-clone", clone.copied)
	row("warm clone to its prompt: lamina", ours.prompt)
	row("warm clone to its prompt: bare QEMU", bare.prompt)
	row("warm clone to confirmed identity: lamina", ours.ready)
	fmt.Println()
	fmt.Printf("%-46s %12.2f   (limit 1.50)\n", "prompt: lamina to bare QEMU", ratio(ours.prompt.median(), bare.prompt.median()))
	fmt.Printf("%-46s %12s\n", "template warm, once", show(ours.warming))
	fmt.Printf("%-46s %12s   %.1f a second\n", fmt.Sprintf("%d at their prompts", g.many), show(ours.bulk), float64(g.many)/ours.bulk.Seconds())
	fmt.Printf("%-46s %12s\n", fmt.Sprintf("%d with confirmed identities", g.many), show(ours.bulkReady))
	fmt.Printf("%-46s %12s\n", "memory of a warm clone (PSS, mean of all)", mib(ours.pss))
	fmt.Printf("%-46s %12s\n", "memory of a bare QEMU clone (PSS)", mib(bare.pss))
	fmt.Printf("%-46s %12s\n", "memory of a cold machine (PSS)", mib(ours.coldPSS))
	fmt.Printf("%-46s %12s\n", "disk of a clone, made and not started", kib(ours.disk))
	fmt.Printf("%-46s %12s\n", "disk of a cp copy", kib(copies.disk))
	fmt.Printf("%-46s %12s\n", "disk of a virt-clone copy", kib(clone.disk))
	b.ReportMetric(ours.prompt.median().Seconds(), "s/prompt")
	b.ReportMetric(ours.ready.median().Seconds(), "s/ready")
}

// series are times of equal things.
type series []time.Duration

func (s series) at(percent int) time.Duration {
	if len(s) == 0 {
		return 0
	}
	c := slices.Sorted(slices.Values(s))
	return c[min(len(c)*percent/100, len(c)-1)]
}

func (s series) median() time.Duration { return s.at(50) }
func (s series) p95() time.Duration    { return s.at(95) }

func ratio(a, b time.Duration) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}

func show(d time.Duration) string {
	if d < 10*time.Second {
		return fmt.Sprintf("%.3f s", d.Seconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
func kib(n int64) string { return fmt.Sprintf("%d KiB", n>>10) }

// fleetTimes are what ours took.
type fleetTimes struct {
	cold, define, prompt, ready series
	warming, bulk, bulkReady    time.Duration
	pss, coldPSS, disk          int64
}

func oursFleet(b *testing.B, g guest) (t fleetTimes) {
	h := newHome(b)
	h.run(b, time.Minute, "template", "import", g.image, "--name", "base", "--user", guestimage.User)
	memory := "--memory=" + strconv.FormatInt(g.memory>>20, 10) + "M"
	t.cold = append(t.cold, h.run(b, g.boot, "clone", "base", "cold", memory, "--start", "--cold"))
	t.coldPSS = pss(b, h.machine(b, "cold").Run.PID)
	h.run(b, time.Minute, "rm", "-f", "cold")
	t.warming = h.run(b, g.boot, "template", "warm", "base", memory)
	for i := range *rounds {
		name := fmt.Sprintf("d-%d", i)
		t.define = append(t.define, h.run(b, time.Minute, "clone", "base", name, memory))
		t.disk = max(t.disk, allocatedIn(b, h.machine(b, name).Dir))
		h.run(b, time.Minute, "rm", name)
	}
	for i := range *rounds {
		name := fmt.Sprintf("p-%d", i)
		t.prompt = append(t.prompt, h.run(b, time.Minute, "clone", "base", name, memory, "--start", "--warm", "--wait", "prompt"))
		h.run(b, time.Minute, "rm", "-f", name)
	}
	for i := range *rounds {
		name := fmt.Sprintf("r-%d", i)
		t.ready = append(t.ready, h.run(b, 2*time.Minute, "clone", "base", name, memory, "--start", "--warm", "--wait", "ready"))
		h.run(b, time.Minute, "rm", "-f", name)
	}
	begun := time.Now()
	t.bulk = h.run(b, 5*time.Minute, "clone", "base", fmt.Sprintf("b-{001..%03d}", g.many), memory, "--start", "--warm", "--wait", "prompt")
	for _, m := range h.awaitReady(b, "b-", 5*time.Minute) {
		t.pss += pss(b, m.Run.PID) / int64(g.many)
	}
	t.bulkReady = time.Since(begun)
	h.run(b, 5*time.Minute, "rm", "-f", "b-*")
	return t
}

// awaitReady waits until the machines whose names begin like this have confirmed
// their identities.
func (h testHome) awaitReady(b *testing.B, prefix string, limit time.Duration) []api.Machine {
	b.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(200 * time.Millisecond) {
		var list, missing []api.Machine
		for _, m := range h.machines(b) {
			if !strings.HasPrefix(m.Name, prefix) {
				continue
			}
			if list = append(list, m); m.Identity == nil || m.State != api.Login {
				missing = append(missing, m)
			}
		}
		if len(missing) == 0 {
			return list
		}
		if time.Now().After(end) {
			b.Fatalf("%d of %d machines are not ready after %s, as %s: state %s, %+v", len(missing), len(list), limit, missing[0].Name, missing[0].State, missing[0].Warmth)
		}
	}
}

// pss is the proportional set size of a process, in bytes.
func pss(b *testing.B, pid int) int64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		b.Fatal(err)
	}
	for line := range strings.SplitSeq(string(text), "\n") {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "Pss:" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			return n << 10
		}
	}
	b.Fatalf("process %d has no Pss in its smaps_rollup", pid)
	return 0
}

// allocatedIn is what the files of a folder take on the host.
func allocatedIn(b *testing.B, dir string) (sum int64) {
	b.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		b.Fatal(err)
	}
	for _, e := range entries {
		sum += allocated(b, filepath.Join(dir, e.Name()))
	}
	return sum
}

func decode[T any](b testing.TB, text []byte) (v T) {
	b.Helper()
	if err := json.Unmarshal(text, &v); err != nil {
		b.Fatalf("%v in %.200s", err, text)
	}
	return v
}
