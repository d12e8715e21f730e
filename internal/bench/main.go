// Command bench measures Lamina beside the stock tools: the same job, in turn,
// in one run, on one machine. It prints medians and the ratio of ours to
// theirs; a ratio below 1 means that Lamina is faster. Beside it stands the
// ratio of the processor time, which a busy machine changes less. With -check
// it exits with 1 where a ratio of the wall time is above its limit.
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

// job is one thing that both tools do.
type job struct {
	name string
	// runs is how often it is measured, after once to warm the caches; 0 is
	// once, for what takes long.
	runs int
	// limit is the ratio that must hold; 0 is none.
	limit        float64
	ours, theirs []string
	// reset removes what a run made; it is not timed. May be nil.
	reset func() error
	// writes says that a run writes so much that the next one would pay for
	// it.
	writes bool
}

// took is what one run took.
type took struct{ wall, cpu time.Duration }

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
	lamina := filepath.Join(bin, "lamina")
	stock, err := exec.LookPath("qemu-img")
	if err != nil {
		return errors.New("qemu-img is not installed: run make deps")
	}
	dir, err := os.MkdirTemp("", "lamina-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	b := &bench{ctx: ctx, dir: dir, lamina: lamina, stock: stock}
	if err := errors.Join(b.smallJobs(), b.diskJobs()); err != nil {
		return err
	}

	fmt.Printf("%-34s %10s %10s %7s %7s %7s\n", "", "lamina", "qemu-img", "cpu", "ratio", "limit")
	missed := 0
	for _, j := range b.jobs {
		if !pattern.MatchString(j.name) {
			continue
		}
		if rt {
			j.ours, j.theirs = append([]string{"chrt", "-r", "1"}, j.ours...), append([]string{"chrt", "-r", "1"}, j.theirs...)
		}
		ours, theirs, err := j.measure(ctx, dir)
		if err != nil {
			return err
		}
		o, t := median(ours), median(theirs)
		ratio := float64(o.wall) / float64(t.wall)
		limit := ""
		if j.limit > 0 {
			limit = fmt.Sprintf("%.2f", j.limit)
			if ratio > j.limit {
				missed++
				limit += " MISSED"
			}
		}
		fmt.Printf("%-34s %8.2fms %8.2fms %7.2f %7.2f %7s\n", j.name, ms(o.wall), ms(t.wall), float64(o.cpu)/float64(t.cpu), ratio, limit)
	}
	if check && missed > 0 {
		return fmt.Errorf("%d of %d ratios are above their limit", missed, len(b.jobs))
	}
	return nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// measure runs both sides in turn, so that what else the machine does meets
// both alike, each first in every other round, and returns what they took. With
// several runs the first only warms the caches.
func (j job) measure(ctx context.Context, dir string) (ours, theirs []took, err error) {
	for i := range j.runs + 1 {
		for k := range 2 {
			args, to := j.ours, &ours
			if (i+k)%2 == 1 {
				args, to = j.theirs, &theirs
			}
			t, err := j.once(ctx, dir, args)
			if err != nil {
				return nil, nil, err
			}
			if i > 0 || j.runs == 0 {
				*to = append(*to, t)
			}
		}
	}
	return ours, theirs, nil
}

// once does the job with one program, from the same state of the machine.
func (j job) once(ctx context.Context, dir string, args []string) (took, error) {
	if j.reset != nil {
		if err := j.reset(); err != nil {
			return took{}, err
		}
	}
	if j.writes {
		if err := settle(dir); err != nil {
			return took{}, err
		}
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = dir
	var words bytes.Buffer
	cmd.Stderr = &words
	start := time.Now()
	if err := cmd.Run(); err != nil {
		return took{}, fmt.Errorf("%s: %v: %w: %s", j.name, args, err, words.String())
	}
	wall := time.Since(start)
	return took{wall, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()}, nil
}

// median returns the medians of both, each by itself.
func median(t []took) took {
	wall, cpu := make([]time.Duration, len(t)), make([]time.Duration, len(t))
	for i := range t {
		wall[i], cpu[i] = t[i].wall, t[i].cpu
	}
	slices.Sort(wall)
	slices.Sort(cpu)
	return took{wall[len(wall)/2], cpu[len(cpu)/2]}
}
