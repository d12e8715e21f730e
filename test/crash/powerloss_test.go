package crash

import (
	"fmt"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/block/blocktest"
)

// cases are the verbs that write, each over the mixes that it can do.
func cases() []verbCase {
	var out []verbCase
	for _, mix := range mixes {
		out = append(out, createCases(mix)...)
		out = append(out, convertCases(mix)...)
		out = append(out, resizeCases(mix)...)
	}
	for _, mix := range append(mixes, extraMixes...) {
		out = append(out, snapshotCases(mix)...)
		out = append(out, repairCases(mix)...)
		out = append(out, chainCases(mix)...)
		out = append(out, amendCases(mix)...)
		out = append(out, bitmapCases(mix)...)
		out = append(out, copyCases(mix)...)
	}
	for _, mix := range extraMixes {
		out = append(out, createCases(mix)...)
		out = append(out, convertCases(mix)...)
		out = append(out, resizeCases(mix)...)
	}
	out = append(out, overCases()...)
	out = append(out, cryptCases()...)
	return append(out, rawCases()...)
}

func createCases(mix string) []verbCase {
	size := diskSize(mix)
	image := qcow2("a")
	return []verbCase{
		{verb: "create", lines: fmt.Sprintf("create -q -f qcow2 -o %s @a %d", mix, size), see: []watched{{image, target}}},
		{verb: "create", lines: fmt.Sprintf("create -q -f qcow2 -o %s,preallocation=metadata @a %d", mix, size), see: []watched{{image, target}}},
		{verb: "create", // over an image
			setup: fmt.Sprintf("create -q -f qcow2 -o %s @a %d", mix, size), fills: []imageFile{image},
			lines: fmt.Sprintf("create -q -f qcow2 -o %s @a %d", mix, size+4096), see: []watched{{image, target}}},
	}
}

func convertCases(mix string) []verbCase {
	size := diskSize(mix)
	setup := fmt.Sprintf("create -q -f raw @src %d", size)
	src, dst := imageFile{"src", "raw"}, qcow2("dst")
	in := fmt.Sprintf("create -q -f qcow2 -o %s @dst %d", mix, size+8192)
	var out []verbCase
	for _, flags := range []string{"", "-c ", "-W ", "-S 0 "} {
		if flags == "-c " && strings.Contains(mix, "data_file") {
			continue // data files hold no compressed clusters
		}
		out = append(out,
			verbCase{verb: "convert", setup: setup, fills: []imageFile{src},
				lines: fmt.Sprintf("convert -t writeback -f raw -O qcow2 %s-o %s @src @dst", flags, mix), see: []watched{{src, oldOrNew}, {dst, target}}},
			verbCase{verb: "convert -n", setup: setup + ";" + in, fills: []imageFile{src, dst},
				lines: fmt.Sprintf("convert -n -t writeback -f raw -O qcow2 %s@src @dst", flags), see: []watched{{src, oldOrNew}, {dst, refilled}}})
	}
	return out
}

func resizeCases(mix string) []verbCase {
	size := diskSize(mix)
	setup := fmt.Sprintf("create -q -f qcow2 -o %s @a %d", mix, size)
	var out []verbCase
	for _, to := range []string{
		fmt.Sprint(2 * size), "--preallocation=metadata " + fmt.Sprint(size+40960), fmt.Sprint(40 * size),
		"--shrink " + fmt.Sprint(size/2-512), "--shrink 512",
	} {
		flags, args := "", to
		if i := len(to) - len(lastWord(to)); i > 0 {
			flags, args = to[:i], to[i:]
		}
		out = append(out, verbCase{verb: "resize", setup: setup, fills: []imageFile{qcow2("a")},
			lines: fmt.Sprintf("resize -q -f qcow2 %s@a %s", flags, args), see: []watched{{qcow2("a"), resized}}})
	}
	return out
}

func lastWord(s string) string {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] == ' ' {
			return s[i+1:]
		}
	}
	return s
}

func snapshotCases(mix string) []verbCase {
	if strings.Contains(mix, "refcount_bits=1") || strings.Contains(mix, "data_file") {
		return nil // cannot count two references, or has no snapshots
	}
	a := qcow2("a")
	setup := fmt.Sprintf("create -q -f qcow2 -o %s @a %d", mix, diskSize(mix))
	var out []verbCase
	for _, c := range []struct{ then, line string }{
		{"", "snapshot -c s1 @a"},
		{"snapshot -c s1 @a; snapshot -c s2 @a", "snapshot -c s3 @a"},
		{"snapshot -c s1 @a; write", "snapshot -c s2 @a"},
		{"snapshot -c s1 @a; write", "snapshot -a s1 @a"},
		{"snapshot -c s1 @a; write", "snapshot -d s1 @a"},
		{"snapshot -c s1 @a; write; snapshot -c s2 @a; write", "snapshot -d s1 @a"},
		{"snapshot -c s1 @a; write; snapshot -c s2 @a; write", "snapshot -a s1 @a"},
	} {
		out = append(out, verbCase{verb: "snapshot " + c.line[9:11], setup: setup, fills: []imageFile{a}, then: c.then, lines: c.line, see: []watched{{a, oldOrNew}}})
	}
	return out
}

// repairCases damage the refcounts, which no content depends on.
func repairCases(mix string) []verbCase {
	a := qcow2("a")
	setup := fmt.Sprintf("create -q -f qcow2 -o %s @a %d", mix, diskSize(mix))
	return []verbCase{
		{verb: "check -r leaks", setup: setup, fills: []imageFile{a}, then: "leak", lines: "check -q -f qcow2 -r leaks @a", see: []watched{{a, oldOrNew}}},
		{verb: "check -r all", setup: setup, fills: []imageFile{a}, then: "leak", lines: "check -q -f qcow2 -r all @a", see: []watched{{a, oldOrNew}}},
		{verb: "check -r all", setup: setup, fills: []imageFile{a}, then: "norefs", lines: "check -q -f qcow2 -r all @a", see: []watched{{a, damaged}}},
	}
}

// overCases are those verbs that make a target over one that is there: an
// image, larger than what becomes of it, or what is none. It is as it was, empty,
// marked as unfinished, or complete, and never a part of the one or the other.
func overCases() []verbCase {
	const raw = "create -q -f raw @src 70k; "
	src, dst, plain := imageFile{"src", "raw"}, qcow2("dst"), imageFile{"dst", "raw"}
	to := func(f imageFile) []watched { return []watched{{src, oldOrNew}, {f, target}} }
	var out []verbCase
	add := func(verb, there string, f imageFile, lines string) {
		out = append(out, verbCase{verb: verb, setup: raw + there, fills: []imageFile{src, f}, lines: lines, see: to(f)})
	}
	for _, flags := range []string{"", "-c "} {
		add("convert", "create -q -f qcow2 -o cluster_size=4k @dst 90k", dst, "convert -t writeback -f raw -O qcow2 "+flags+"-o cluster_size=512 @src @dst")
	}
	add("convert", "create -q -f raw @dst 90k", plain, "convert -t writeback -f raw -O raw @src @dst")
	add("dd", "create -q -f qcow2 -o cluster_size=4k @dst 90k", dst, "dd -f raw -O qcow2 bs=4k if=@src of=@dst")
	add("dd", "create -q -f raw @dst 90k", plain, "dd -f raw -O raw bs=4k if=@src of=@dst")
	return out
}

func rawCases() []verbCase {
	src, dst := imageFile{"src", "raw"}, imageFile{"dst", "raw"}
	setup := "create -q -f raw @src 70k"
	return []verbCase{
		{verb: "create", lines: "create -q -f raw @dst 40k", see: []watched{{dst, target}}},
		{verb: "convert", setup: setup, fills: []imageFile{src}, lines: "convert -t writeback -f raw -O raw @src @dst", see: []watched{{dst, target}}},
		{verb: "convert", setup: setup, fills: []imageFile{src}, lines: "convert -t writeback -f raw -O raw -o preallocation=full @src @dst", see: []watched{{dst, target}}},
		{verb: "convert -n", setup: setup + "; create -q -f raw @dst 100k", fills: []imageFile{src, dst}, lines: "convert -n -t writeback -f raw -O raw @src @dst", see: []watched{{dst, refilled}}},
		{verb: "convert -n", setup: setup + "; create -q -f raw @dst 70k", fills: []imageFile{src, dst}, lines: "convert -n -W -m 4 -t writethrough -f raw -O raw @src @dst", see: []watched{{dst, refilled}}},
	}
}

// leastStates holds the suite together: a verb with fewer states than these is
// not recorded as it should be.
var leastStates = map[string]int{
	"amend": 250, "bitmap": 400, "check -r all": 120, "check -r leaks": 50, "commit": 800, "convert": 1800, "convert -B": 250,
	"convert -n": 2000, "create": 800, "dd": 60, "rebase": 700, "rebase -u": 15, "resize": 400,
	"snapshot -a": 400, "snapshot -c": 700, "snapshot -d": 400, "sparsify": 25, "write, discard, zero": 2500,
}

// TestPowerLoss records every verb and checks each state that a power loss
// may leave.
func TestPowerLoss(t *testing.T) {
	seed := blocktest.Seed(t)
	var count tally
	t.Run("verbs", func(t *testing.T) {
		for i, c := range cases() {
			t.Run(fmt.Sprintf("%d %s", i, c.lines), func(t *testing.T) {
				t.Parallel()
				count.add(c.verb, c.run(t, seed+uint64(i), 32))
			})
		}
	})
	t.Run("guest", func(t *testing.T) {
		for i, mix := range guestMixes() {
			t.Run(mix, func(t *testing.T) {
				t.Parallel()
				count.add("write, discard, zero", runGuest(t, mix, seed+uint64(i), 72, 48))
			})
		}
	})
	count.report(t, leastStates, 20_000)
}
