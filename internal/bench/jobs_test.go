package main

import (
	"strings"
	"testing"
)

// TestInputs: every file that a job reads is an input, or what its reset makes.
func TestInputs(t *testing.T) {
	b := &bench{made: map[string]bool{}}
	b.addJobs()
	for name, recipe := range inputs {
		b.jobs = append(b.jobs, job{name: name, runs: leastRuns, args: recipe})
	}
	for _, j := range b.jobs {
		if j.runs < leastRuns {
			t.Errorf("%s: %d runs", j.name, j.runs)
		}
		for _, w := range j.args {
			name := w[strings.LastIndexByte(w, '=')+1:]
			if _, ok := inputs[name]; !ok && (strings.HasSuffix(name, ".qcow2") || strings.HasSuffix(name, ".raw")) {
				t.Errorf("%s: %s is no input", j.name, name)
			}
		}
	}
}
