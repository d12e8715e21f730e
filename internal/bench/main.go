// Command bench measures Lamina beside the stock tools: the same job, in turn,
// in one run, on one machine. It prints the least time of each and the ratio of
// ours to theirs; a ratio below 1 means that Lamina is faster. Beside it stands
// the ratio of the processor time, which a busy machine changes less. With
// -check it exits with 1 where a ratio of the wall time is above its limit.
//
// It takes the least time, not the median: what else a machine does only ever
// adds to a run, so the least is nearest to what the job takes, and with three
// runs a median is wrong as soon as two were disturbed.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"
)

// leastRuns is how often even the longest job is measured with each tool.
const leastRuns = 3

// job is one thing that both tools do.
type job struct {
	name string
	// runs is how often it is measured with each tool, and as often again
	// where the ratio is above the limit.
	runs int
	// limit is the ratio that must hold.
	limit float64
	args  []string // what both tools are told
	// ours and theirs are what is run instead of the two image tools, nil for
	// those.
	ours, theirs []string
	// reset removes what a run made; it is not timed. May be nil.
	reset func() error
	// writes says that a run writes so much that the next one would pay for
	// it.
	writes bool
}

// took is what one run took, or the least of several, each by itself.
type took struct{ wall, cpu time.Duration }

func (t *took) least(u took) {
	if t.wall == 0 || u.wall < t.wall {
		t.wall = u.wall
	}
	if t.cpu == 0 || u.cpu < t.cpu {
		t.cpu = u.cpu
	}
}

func main() {
	bin := flag.String("bin", "bin", "folder with our binaries")
	check := flag.Bool("check", false, "fail where a ratio is above its limit")
	only := flag.String("run", "", "only the jobs whose names match this regular expression")
	rt := flag.Bool("rt", false, "run both as real-time processes: holds up everything else")
	flag.Parse()
	// Interrupted, it ends what it runs and removes its folder all the same.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, *bin, *only, *check, *rt); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bin, only string, check, rt bool) error {
	pattern, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	bin, err = filepath.Abs(bin)
	if err != nil {
		return err
	}
	stock, err := exec.LookPath("qemu-img")
	if err != nil {
		return errors.New("qemu-img is not installed: run make deps")
	}
	dir, err := os.MkdirTemp("", "lamina-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	b := &bench{ctx: ctx, dir: dir, lamina: filepath.Join(bin, "lamina"), stock: stock, rt: rt, made: map[string]bool{}}
	b.addJobs()
	b.jobs = slices.DeleteFunc(b.jobs, func(j job) bool { return !pattern.MatchString(j.name) })
	if len(b.jobs) == 0 {
		return fmt.Errorf("no job's name matches %q", only)
	}

	start := time.Now()
	fmt.Printf("%-34s %10s %10s %7s %7s %7s\n", "", "lamina", "stock", "cpu", "ratio", "limit")
	missed := 0
	for _, j := range b.jobs {
		ours, theirs, err := b.measure(j)
		if err != nil {
			return err
		}
		limit := fmt.Sprintf("%.2f", j.limit)
		if ratio(ours, theirs) > j.limit {
			missed++
			limit += " MISSED"
		}
		fmt.Printf("%-34s %8.2fms %8.2fms %7.2f %7.2f %7s\n", j.name, ms(ours.wall), ms(theirs.wall), float64(ours.cpu)/float64(theirs.cpu), ratio(ours, theirs), limit)
	}
	fmt.Printf("%d jobs in %s\n", len(b.jobs), time.Since(start).Round(time.Second))
	if check && missed > 0 {
		return fmt.Errorf("%d of %d ratios are above their limit", missed, len(b.jobs))
	}
	return nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func ratio(ours, theirs took) float64 { return float64(ours.wall) / float64(theirs.wall) }

// measure runs both sides in turn, so that what else the machine does meets
// both alike, each first in every other round, and returns the least that they
// took. A job above its limit gets as many rounds again: more of them bring both
// nearer to what they take, and what is slower stays slower. A first round with
// cold caches does no harm: it is never the least.
func (b *bench) measure(j job) (ours, theirs took, err error) {
	if err := b.provide(j.args); err != nil {
		return ours, theirs, err
	}
	for i := range 2 * j.runs {
		if i >= j.runs && ratio(ours, theirs) <= j.limit {
			break
		}
		for k := range 2 {
			program, to := b.ours(j), &ours
			if (i+k)%2 == 1 {
				program, to = b.theirs(j), &theirs
			}
			if b.rt {
				program = append([]string{"chrt", "-r", "1"}, program...)
			}
			t, err := b.once(j, append(program, j.args...))
			if err != nil {
				return ours, theirs, err
			}
			to.least(t)
		}
	}
	return ours, theirs, nil
}

func (b *bench) ours(j job) []string {
	if j.ours != nil {
		return slices.Clip(j.ours)
	}
	return []string{b.lamina, "img"}
}

func (b *bench) theirs(j job) []string {
	if j.theirs != nil {
		return slices.Clip(j.theirs)
	}
	return []string{b.stock}
}

// once does the job with one program, from the same state of the machine.
func (b *bench) once(j job, args []string) (took, error) {
	if j.reset != nil {
		if err := j.reset(); err != nil {
			return took{}, err
		}
	}
	if j.writes {
		if err := settle(b.dir); err != nil {
			return took{}, err
		}
	}
	cmd := exec.CommandContext(b.ctx, args[0], args[1:]...)
	cmd.Dir = b.dir
	var words bytes.Buffer
	cmd.Stderr = &words
	start := time.Now()
	if err := cmd.Run(); err != nil {
		return took{}, fmt.Errorf("%s: %v: %w: %s", j.name, args, err, words.String())
	}
	wall := time.Since(start)
	return took{wall, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}, nil
}
