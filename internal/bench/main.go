// Command bench measures Lamina beside the stock tools: the same job, in turn,
// in one run, on one machine. It prints medians and the ratio of ours to
// theirs; a ratio below 1 means that Lamina is faster. With -check it exits
// with 1 where a ratio is above its limit.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
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
}

func main() {
	bin := flag.String("bin", "bin", "folder with our binaries")
	check := flag.Bool("check", false, "fail where a ratio is above its limit")
	only := flag.String("run", "", "only the jobs whose names match this regular expression")
	flag.Parse()
	if err := run(*bin, *only, *check); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(bin, only string, check bool) error {
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
	b := &bench{dir: dir, lamina: lamina, stock: stock}
	if err := errors.Join(b.smallJobs(), b.diskJobs()); err != nil {
		return err
	}

	fmt.Printf("%-34s %10s %10s %7s %7s\n", "", "lamina", "qemu-img", "ratio", "limit")
	missed := 0
	for _, j := range b.jobs {
		if !pattern.MatchString(j.name) {
			continue
		}
		ours, theirs, err := j.measure(dir)
		if err != nil {
			return err
		}
		ratio := float64(median(ours)) / float64(median(theirs))
		limit := ""
		if j.limit > 0 {
			limit = fmt.Sprintf("%.2f", j.limit)
			if ratio > j.limit {
				missed++
				limit += " MISSED"
			}
		}
		fmt.Printf("%-34s %8.2fms %8.2fms %7.2f %7s\n", j.name, ms(median(ours)), ms(median(theirs)), ratio, limit)
	}
	if check && missed > 0 {
		return fmt.Errorf("%d of %d ratios are above their limit", missed, len(b.jobs))
	}
	return nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// measure runs both sides in turn, so that what else the machine does meets
// both alike, and returns what they took. With several runs the first only
// warms the caches.
func (j job) measure(dir string) (ours, theirs []time.Duration, err error) {
	for i := range j.runs + 1 {
		for side, args := range [][]string{j.ours, j.theirs} {
			if j.reset != nil {
				if err := j.reset(); err != nil {
					return nil, nil, err
				}
			}
			cmd := exec.Command(args[0], args[1:]...)
			cmd.Dir = dir
			var words bytes.Buffer
			cmd.Stderr = &words
			start := time.Now()
			if err := cmd.Run(); err != nil {
				return nil, nil, fmt.Errorf("%s: %v: %w: %s", j.name, args, err, words.String())
			}
			took := time.Since(start)
			switch {
			case i == 0 && j.runs > 0:
			case side == 0:
				ours = append(ours, took)
			default:
				theirs = append(theirs, took)
			}
		}
	}
	return ours, theirs, nil
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}
