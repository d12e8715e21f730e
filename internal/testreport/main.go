// Command testreport reads `go test -json` on standard input, prints a line a
// package and the output of what failed, and fails where a test failed or
// skipped: a test that skips on CI is a test that nobody runs. The tests that
// may skip stand, one a line with the reason, in the file that is its
// argument.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
)

type event struct {
	Action  string
	Package string
	Test    string
	Output  string
	Elapsed float64
}

type report struct {
	out     io.Writer
	maySkip map[string]bool
	output  map[string][]string // by package and test, until it ended
	passed  int
	failed  []string
	skipped []string
	slow    []string
}

func main() {
	maySkip := map[string]bool{}
	for _, file := range os.Args[1:] {
		b, err := os.ReadFile(file)
		if err != nil {
			fmt.Fprintln(os.Stderr, "testreport:", err)
			os.Exit(2)
		}
		for line := range strings.Lines(string(b)) {
			if name, _, _ := strings.Cut(strings.TrimSpace(line), " "); name != "" && name[0] != '#' {
				maySkip[name] = true
			}
		}
	}
	r := report{out: os.Stdout, maySkip: maySkip, output: map[string][]string{}}
	in := bufio.NewReader(os.Stdin)
	for {
		line, err := in.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) == nil {
				r.add(e)
			} else {
				fmt.Fprint(r.out, string(line)) // a build error's text
			}
		}
		if err != nil {
			break
		}
	}
	os.Exit(r.end())
}

func (r *report) add(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		r.output[key] = append(r.output[key], e.Output)
	case "pass":
		if e.Test == "" {
			fmt.Fprintf(r.out, "ok  \t%s\t%.1fs\n", e.Package, e.Elapsed)
		} else {
			r.passed++
			if e.Elapsed >= 10 {
				r.slow = append(r.slow, fmt.Sprintf("%6.1fs %s %s", e.Elapsed, e.Package, e.Test))
			}
		}
		delete(r.output, key)
	case "skip":
		if e.Test != "" && !r.maySkip[e.Test] {
			r.skipped = append(r.skipped, key)
			fmt.Fprint(r.out, strings.Join(r.output[key], ""))
		}
		delete(r.output, key)
	case "fail":
		fmt.Fprint(r.out, strings.Join(r.output[key], ""))
		fmt.Fprintf(r.out, "FAIL\t%s\t%.1fs\n", strings.TrimSpace(key), e.Elapsed)
		r.failed = append(r.failed, key)
		delete(r.output, key)
	case "build-fail":
		fmt.Fprintf(r.out, "FAIL\tbuild of %s\n", e.Package)
		r.failed = append(r.failed, key)
	}
}

func (r *report) end() int {
	sort.Sort(sort.Reverse(sort.StringSlice(r.slow)))
	for _, s := range r.slow {
		fmt.Fprintln(r.out, "slow", s)
	}
	// What never ended: a panic or a time-out took it along.
	for _, lines := range r.output {
		if text := strings.Join(lines, ""); strings.Contains(text, "panic") || strings.Contains(text, "FAIL") {
			fmt.Fprint(r.out, text)
		}
	}
	for _, s := range r.skipped {
		fmt.Fprintf(r.out, "FAIL\t%s was skipped: no test may skip that is not listed in .ci/may-skip\n", s)
	}
	fmt.Fprintf(r.out, "%d passed, %d failed, %d skipped\n", r.passed, len(r.failed), len(r.skipped))
	if len(r.failed)+len(r.skipped) > 0 || r.passed == 0 {
		return 1
	}
	return 0
}
