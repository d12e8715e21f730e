package crash

import (
	"fmt"
	"sync"
	"testing"

	"github.com/lamina-vm/lamina/block/blocktest"
)

// cryptFaultCases are the verbs that write, on a small image encrypted with
// LUKS; where there is a chain its base is a plain image.
func cryptFaultCases() []verbCase {
	const (
		keys = "--object secret,id=k,data=abc --object secret,id=n,data=new"
		luks = "-o cluster_size=4k,encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=1"
		open = "--image-opts driver=qcow2,encrypt.key-secret=k,file.filename=@a"
		make = "create -q " + keys + " -f qcow2 " + luks + " @a 48k"
		over = "create -q -f qcow2 -o cluster_size=4k @base 48k; create -q " + keys + " -f qcow2 " + luks + " -b base -F qcow2 @a 48k"
		key  = "amend -q " + keys + " -o encrypt.state=active,encrypt.new-secret=n,encrypt.iter-time=1 " + open
		two  = "snapshot " + keys + " -c s1 " + open
	)
	img, base, src := imageFile{"a", "qcow2 luks"}, qcow2("base"), imageFile{"src", "raw"}
	one := func(verb, then, line string, r rule) verbCase {
		return verbCase{verb: verb, setup: make, fills: []imageFile{img}, then: then, lines: line, see: []watched{{img, r}}}
	}
	return []verbCase{
		// A new image costs a measurement of the machine each time: one case.
		{verb: "convert", setup: "create -q -f raw @src 30k", fills: []imageFile{src},
			lines: "convert -t writeback " + keys + " -f raw -O qcow2 " + luks + " @src @a", see: []watched{{src, oldOrNew}, {img, target}}},
		{verb: "convert -n", setup: "create -q -f raw @src 30k; " + make, fills: []imageFile{src, img},
			lines: "convert -n -t writeback " + keys + " -f raw --target-image-opts @src driver=qcow2,encrypt.key-secret=k,file.filename=@a", see: []watched{{src, oldOrNew}, {img, refilled}}},
		{verb: "convert", setup: make, fills: []imageFile{img},
			lines: "convert -t writeback " + keys + " -O raw " + open + " @dst", see: []watched{{img, oldOrNew}, {imageFile{"dst", "raw"}, target}}},
		one("resize", "", "resize -q "+keys+" "+open+" 100k", resized),
		one("resize", "", "resize -q --shrink "+keys+" "+open+" 20k", resized),
		one("resize", "", "resize -q --preallocation=metadata "+keys+" "+open+" 100k", resized),
		one("snapshot", "", "snapshot "+keys+" -c s1 "+open, oldOrNew),
		one("snapshot", two+"; write", "snapshot "+keys+" -a s1 "+open, oldOrNew),
		one("snapshot", two+"; write", "snapshot "+keys+" -d s1 "+open, oldOrNew),
		one("amend", "", key, oldOrNew),
		one("amend", key, "amend -q "+keys+" -o encrypt.state=inactive,encrypt.old-secret=n "+open, oldOrNew),
		one("amend", "", "amend -q "+keys+" -o refcount_bits=64 "+open, oldOrNew),
		one("amend", "", "amend -q "+keys+" -o compat=0.10 "+open, oldOrNew),
		one("bitmap", "", "bitmap --add -g 512 "+keys+" "+open+" b0", oldOrNew),
		one("bitmap", "bitmap --add -g 512 "+keys+" "+open+" b0; write", "bitmap --clear "+keys+" "+open+" b0", oldOrNew),
		{verb: "rebase", setup: over, fills: []imageFile{base, img}, lines: "rebase -q -t writeback " + keys + " -b '' " + open, see: []watched{{img, oldOrNew}, {base, oldOrNew}}},
		{verb: "commit", setup: over, fills: []imageFile{base, img}, lines: "commit -q -t writeback " + keys + " " + open, see: []watched{{img, oldOrNew}, {base, mixed}}},
		one("check -r all", "leak", "check -q -r all "+keys+" "+open, oldOrNew),
	}
}

// TestFaultsEncrypted is TestFaults with an encrypted image, whose key opens
// it whatever failed.
func TestFaultsEncrypted(t *testing.T) {
	seed := blocktest.Seed(t)
	var mu sync.Mutex
	runs := 0
	t.Run("verbs", func(t *testing.T) {
		for i, c := range cryptFaultCases() {
			t.Run(fmt.Sprintf("%d %s", i, c.verb), func(t *testing.T) {
				t.Parallel()
				n := c.faults(t, seed+uint64(i))
				t.Logf("%d faults", n)
				mu.Lock()
				defer mu.Unlock()
				runs += n
			})
		}
	})
	if runs < 300 {
		t.Errorf("only %d faults struck", runs)
	}
}
