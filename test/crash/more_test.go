package crash

import (
	"fmt"
	"strings"
)

// chainCases are the verbs about backing chains, over an overlay "a" on "base",
// which lies on "root".
func chainCases(mix string) []verbCase {
	if strings.Contains(mix, "data_file") {
		return nil // one data file cannot serve two images
	}
	size := diskSize(mix)
	setup := fmt.Sprintf("create -q -f qcow2 -o %[1]s @root %[2]d; create -q -f qcow2 -o %[1]s -b root -F qcow2 @base %[2]d; create -q -f qcow2 -o %[1]s -b base -F qcow2 @a %[2]d; create -q -f qcow2 -o %[1]s @other %[3]d",
		mix, size, size-1024)
	a, base, root, other := qcow2("a"), qcow2("base"), qcow2("root"), qcow2("other")
	fills := []imageFile{root, base, a, other}
	return []verbCase{
		{verb: "rebase", setup: setup, fills: fills, lines: "rebase -q -f qcow2 -b other -F qcow2 @a", see: []watched{{a, oldOrNew}, {other, oldOrNew}, {base, oldOrNew}}},
		{verb: "rebase", setup: setup, fills: fills, lines: "rebase -q -f qcow2 -b root -F qcow2 @a", see: []watched{{a, oldOrNew}, {root, oldOrNew}}},
		{verb: "rebase", setup: setup, fills: fills, lines: "rebase -q -f qcow2 -t writeback -b '' @a", see: []watched{{a, oldOrNew}}},
		{verb: "rebase -u", setup: setup, fills: fills, lines: "rebase -u -q -f qcow2 -b root -F qcow2 @a", see: []watched{{a, oldOrNew}}},
		{verb: "commit", setup: setup, fills: fills, lines: "commit -q -f qcow2 @a", see: []watched{{a, oldOrNew}, {base, mixed}, {root, oldOrNew}}},
		{verb: "commit", setup: setup, fills: fills, lines: "commit -q -d -f qcow2 @a", see: []watched{{a, oldOrNew}, {base, mixed}}},
		{verb: "commit", setup: setup, fills: fills, lines: "commit -q -f qcow2 -b root @a", see: []watched{{a, oldOrNew}, {base, mixed}, {root, mixed}}},
		{verb: "convert -B", setup: setup, fills: fills, lines: "convert -t writeback -f qcow2 -O qcow2 -B base -F qcow2 @a @dst", see: []watched{{a, oldOrNew}, {qcow2("dst"), target}}},
	}
}

// amendCases change each option that amend can, there and back.
func amendCases(mix string) []verbCase {
	a := qcow2("a")
	setup := fmt.Sprintf("create -q -f qcow2 -o %s @a %d", mix, diskSize(mix))
	size := diskSize(mix)
	var out []verbCase
	add := func(options string, r rule) {
		out = append(out, verbCase{verb: "amend", setup: setup, fills: []imageFile{a}, lines: "amend -q -f qcow2 -o " + options + " @a", see: []watched{{a, r}}})
	}
	add(fmt.Sprintf("size=%d", 3*size), resized)
	if strings.Contains(mix, "compat=0.10") {
		add("compat=1.1", oldOrNew)
		add("compat=1.1,refcount_bits=64", oldOrNew)
		add("compat=1.1,lazy_refcounts=on", oldOrNew)
		return out
	}
	add("lazy_refcounts=on", oldOrNew)
	add("lazy_refcounts=off", oldOrNew)
	for _, bits := range []int{1, 8, 16, 64} {
		add(fmt.Sprintf("refcount_bits=%d", bits), oldOrNew)
	}
	if !strings.Contains(mix, "zstd") && !strings.Contains(mix, "extended") && !strings.Contains(mix, "data_file") {
		add("compat=0.10,refcount_bits=16", oldOrNew)
	}
	return out
}

// bitmapCases are the verb bitmap and what tracks bitmaps.
func bitmapCases(mix string) []verbCase {
	if strings.Contains(mix, "compat=0.10") {
		return nil // version 2 has no bitmaps
	}
	a := qcow2("a")
	setup := fmt.Sprintf("create -q -f qcow2 -o %s @a %d", mix, diskSize(mix))
	some := "bitmap --add -g 4k @a b0; write; bitmap --add -g 512 @a b1; write"
	var out []verbCase
	for _, c := range []struct{ then, line string }{
		{"", "bitmap --add -g 512 @a b0"},
		{some, "bitmap --add @a b2"},
		{some, "bitmap --remove @a b0"},
		{some, "bitmap --clear @a b0"},
		{some, "bitmap --disable @a b0"},
		{some + "; bitmap --disable @a b0", "bitmap --enable @a b0"},
		{some, "bitmap --merge b0 @a b1"},
	} {
		out = append(out, verbCase{verb: "bitmap", setup: setup, fills: []imageFile{a}, then: c.then, lines: c.line, see: []watched{{a, oldOrNew}}})
	}
	return append(out, verbCase{verb: "resize", setup: setup, fills: []imageFile{a}, then: some,
		lines: fmt.Sprintf("resize -q -f qcow2 @a %d", 3*diskSize(mix)), see: []watched{{a, resized}}})
}

// copyCases are the other verbs that fill targets, or change an image where
// it is.
func copyCases(mix string) []verbCase {
	size := diskSize(mix)
	src, dst, a := imageFile{"src", "raw"}, qcow2("dst"), qcow2("a")
	out := []verbCase{{verb: "sparsify", setup: fmt.Sprintf("create -q -f qcow2 -o %s @a %d", mix, size), fills: []imageFile{a}, then: "zeros",
		lines: "sparsify -q -f qcow2 @a", see: []watched{{a, oldOrNew}}}}
	if strings.Contains(mix, "data_file") || mix != mixes[0] {
		return out
	}
	return append(out, verbCase{verb: "dd", setup: fmt.Sprintf("create -q -f raw @src %d", size), fills: []imageFile{src},
		lines: "dd -f raw -O qcow2 bs=4k skip=1 if=@src of=@dst", see: []watched{{src, oldOrNew}, {dst, target}}},
		verbCase{verb: "dd", setup: fmt.Sprintf("create -q -f raw @src %d", size), fills: []imageFile{src},
			lines: "dd -f raw -O raw bs=4k skip=1 if=@src of=@dst", see: []watched{{src, oldOrNew}, {imageFile{"dst", "raw"}, target}}})
}

func moreKillCases() []verbCase {
	const chain = "create -q -f qcow2 -o cluster_size=512 @root 4M; create -q -f qcow2 -o cluster_size=512 -b root -F qcow2 @base 4M; create -q -f qcow2 -o cluster_size=512 -b base -F qcow2 @a 4M"
	a, base, root := qcow2("a"), qcow2("base"), qcow2("root")
	fills := []imageFile{root, base, a}
	one := "create -q -f qcow2 -o cluster_size=512 @a 6M"
	return []verbCase{
		{verb: "rebase", setup: chain, fills: fills, lines: "rebase -q -f qcow2 -b root -F qcow2 @a", see: []watched{{a, oldOrNew}, {root, oldOrNew}}},
		{verb: "commit", setup: chain, fills: fills, lines: "commit -q -f qcow2 @a", see: []watched{{a, oldOrNew}, {base, mixed}}},
		{verb: "amend", setup: one, fills: []imageFile{a}, lines: "amend -q -f qcow2 -o refcount_bits=64 @a", see: []watched{{a, oldOrNew}}},
		{verb: "amend", setup: one, fills: []imageFile{a}, lines: "amend -q -f qcow2 -o compat=0.10 @a", see: []watched{{a, oldOrNew}}},
		{verb: "bitmap", setup: one, fills: []imageFile{a}, then: "bitmap --add -g 512 @a b0; write", lines: "bitmap --add --merge b0 -g 512 @a b1", see: []watched{{a, oldOrNew}}},
		{verb: "sparsify", setup: one, fills: []imageFile{a}, then: "zeros", lines: "sparsify -q -f qcow2 @a", see: []watched{{a, oldOrNew}}},
	}
}

// cryptCases are about encrypted images.
func cryptCases() []verbCase {
	const (
		key  = "--object secret,id=k,data=abc"
		luks = "-o key-secret=k,iter-time=10"
		in   = "-o cluster_size=4k,encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10"
	)
	src, vol, img := imageFile{"src", "raw"}, imageFile{"dst", "luks"}, imageFile{"a", "qcow2 luks"}
	setup := "create -q -f raw @src 30k"
	make := "create -q " + key + " -f qcow2 " + in + " @a 72k"
	opts := "driver=qcow2,encrypt.key-secret=k,file.filename=@a"
	return []verbCase{
		{verb: "create", lines: "create -q " + key + " -f luks " + luks + " @dst 30k", see: []watched{{vol, target}}},
		{verb: "create", lines: make, see: []watched{{img, target}}},
		{verb: "convert", setup: setup, fills: []imageFile{src}, lines: "convert -t writeback " + key + " -f raw -O luks " + luks + " @src @dst", see: []watched{{src, oldOrNew}, {vol, target}}},
		{verb: "convert", setup: setup, fills: []imageFile{src}, lines: "convert -t writeback " + key + " -f raw -O qcow2 " + in + " @src @a", see: []watched{{src, oldOrNew}, {img, target}}},
		{verb: "convert -n", setup: setup + "; create -q " + key + " -f luks " + luks + " @dst 30k", fills: []imageFile{src, vol},
			lines: "convert -n -t writeback " + key + " -f raw --target-image-opts @src driver=luks,key-secret=k,file.filename=@dst", see: []watched{{src, oldOrNew}, {vol, refilled}}},
		{verb: "resize", setup: make, fills: []imageFile{img}, lines: "resize -q " + key + " --image-opts " + opts + " 100k", see: []watched{{img, resized}}},
		{verb: "snapshot -c", setup: make, fills: []imageFile{img}, lines: "snapshot " + key + " -c s1 --image-opts " + opts, see: []watched{{img, oldOrNew}}},
	}
}
