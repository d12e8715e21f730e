package qemuimg

import (
	"fmt"
	"strings"
)

// measureTable is the part of the comparison that is about measure.
var measureTable = []diffGroup{
	{name: "measure", fixtures: "convert -O qcow2 -c a.raw comp1.qcow2;convert -O qcow2 -o cluster_size=512 a.raw tiny.qcow2;convert -O qcow2 -o cluster_size=2M a.raw coarse.qcow2;" +
		"create -q -f qcow2 bm.qcow2 1G;bitmap --add bm.qcow2 one;bitmap --add -g 4k bm.qcow2 a-longer-name;bitmap --add -g 2M --disable bm.qcow2 c;" +
		"create -q -f raw sparse.raw 5T;create -q -f qcow2 -o cluster_size=1M big.qcow2 64T;resize -q -f raw small 1536k", cases: append([]diffCase{
		{lines: "measure; measure a.raw b.raw; measure -f raw --size 1G; measure --image-opts --size 1G; measure -l x --size 1G; measure -l snapshot.id=1 --size 1G; measure --size 1G a.raw"},
		{lines: "measure --size 1G; measure --size 1; measure --size 0; measure --size 1000; measure --size 7E; measure --size 9223372036854775807"},
		{lines: "measure --size 8E; measure --size x; measure --size -1; measure --size 1.5M; measure --size 1.5"},
		{lines: "measure --output=json --size 1G; measure --output json --size 9223372036854775807; measure --output=human --size 1M; measure --output=foo --size 1M"},
		{lines: "measure a.raw; measure a.qcow2; measure c.qcow2; measure deep.qcow2; measure small; measure garbage; measure empty; measure zero.qcow2"},
		{lines: "measure -O raw a.raw; measure -O raw -f raw a.qcow2; measure -O raw c.qcow2; measure --output=json -O raw comp.qcow2"},
		{lines: "measure -O qcow2 a.raw; measure -O qcow2 a.qcow2; measure -O qcow2 c.qcow2; measure -O qcow2 deep.qcow2; measure -O qcow2 b.qcow2"},
		{lines: "measure -O qcow2 comp.qcow2; measure -O qcow2 comp1.qcow2; measure -O qcow2 tiny.qcow2; measure -O qcow2 coarse.qcow2; measure -O qcow2 prealloc.qcow2"},
		{lines: "measure -O qcow2 small; measure -O qcow2 garbage; measure -O qcow2 empty; measure -O qcow2 zero.qcow2; measure -O qcow2 v2.qcow2; measure -O qcow2 sparse.raw; measure -O qcow2 big.qcow2"},
		{lines: "measure --output=json -O qcow2 a.raw; measure --output=json -O qcow2 c.qcow2; measure --output=json -O qcow2 v2.qcow2; measure --output=json -O qcow2 -f raw c.qcow2"},
		{lines: "measure -O qcow2 -o compat=0.10 c.qcow2; measure -O qcow2 -o compat=1.1 c.qcow2; measure -O qcow2 -o compat=v3 c.qcow2; measure -O qcow2 -o compat=foo c.qcow2"},
		{lines: "measure -O qcow2 bm.qcow2; measure -O raw bm.qcow2; measure --output=json -O qcow2 bm.qcow2; measure -O qcow2 -o cluster_size=512 bm.qcow2; measure -O qcow2 -o compat=0.10 bm.qcow2; measure -O qcow2 -f raw bm.qcow2"},
		{lines: "measure -O qcow2 -l one snaps.qcow2; measure -O qcow2 -l snapshot.name=two snaps.qcow2; measure -O qcow2 -l nope snaps.qcow2; measure -l one a.raw; measure -O qcow2 -l snapshot.foo=x snaps.qcow2"},
		{lines: "measure -O qcow2 -l one oldsnaps.qcow2; measure -l one snaps.qcow2; measure -l two -l snapshot.id=1 snaps.qcow2"},
		{lines: "measure -O qcow2 -o preallocation=off a.raw; measure -O qcow2 -o preallocation=metadata a.raw; measure -O qcow2 -o preallocation=falloc a.raw; measure -O qcow2 -o preallocation=full a.raw; measure -O qcow2 -o preallocation=foo a.raw"},
		{lines: "measure -O raw -o preallocation=full a.raw; measure -O raw -o preallocation=foo a.raw; measure -O raw -o size=3M a.raw; measure -O raw -o nocow=on,extent_size_hint=1M --size 1M; measure -O raw -o nocow=foo --size 1M"},
		{lines: "measure -O qcow2 -o backing_file=a.raw a.raw; measure -O qcow2 -o backing_file=nope,backing_fmt=raw c.qcow2; measure -O qcow2 -o backing_fmt=raw c.qcow2; measure -O raw -o backing_file=a.raw a.raw"},
		{lines: "measure -O qcow2 -o size=2G a.raw; measure -O qcow2 -o size=2G --size 1G; measure -O qcow2 -o size=2G; measure -O qcow2 -o size=7E a.raw; measure -O qcow2 -o size=x a.raw"},
		{lines: "measure -O qcow2 -o foo a.raw; measure -O qcow2 -o foo=1 a.raw; measure -O qcow2 -o foo=1 nope; measure -O qcow2 -o , a.raw; measure -O qcow2 -o '' a.raw; measure -O qcow2 -o help a.raw; measure -O foo -o bar=1 a.raw"},
		{lines: "measure -O foo a.raw; measure -O foo nope; measure -O foo --size 1M; measure nope; measure ''; measure -f foo a.raw; measure -f qcow2 a.raw; measure missing.qcow2"},
		{lines: "measure -O qcow2 -o cluster_size=513 --size 1G; measure -O qcow2 -o cluster_size=4M --size 1G; measure -O qcow2 -o cluster_size=x --size 1G; measure -O qcow2 -o cluster_size=256 --size 1G"},
		{lines: "measure -O qcow2 -o refcount_bits=3 --size 1G; measure -O qcow2 -o refcount_bits=128 --size 1G; measure -O qcow2 -o refcount_bits=1,compat=0.10 --size 1G; measure -O qcow2 -o refcount_bits=x --size 1G; measure -O qcow2 -o compat=0.10,refcount_bits=16 --size 1G"},
		{lines: "measure -O qcow2 -o lazy_refcounts=on,compression_type=zstd --size 1G; measure -O qcow2 -o compat=0.10,lazy_refcounts=on --size 1G; measure -O qcow2 -o compression_type=foo --size 1G; measure -O qcow2 -o lazy_refcounts=foo --size 1G"},
		{lines: "measure -O qcow2 -o data_file=ext --size 1G; measure -O qcow2 -o data_file=ext,data_file_raw=on --size 1G"},
		{lines: "measure -O qcow2 -o cluster_size=512 --size 128G; measure -O qcow2 -o cluster_size=512 --size 129G; measure -O qcow2 -o cluster_size=512 --size 1P; measure -O qcow2 -o cluster_size=512 sparse.raw; measure -O qcow2 -o cluster_size=2M --size 4E; measure -O qcow2 --size 7E"},
		{lines: "measure --image-opts driver=raw,file.filename=a.qcow2; measure --image-opts -f raw a.raw; measure --image-opts a.raw; measure --image-opts driver=qcow2,file.filename=c.qcow2 -O qcow2"},
		{lines: "measure -O qcow2 a.qcow2; measure -U -O qcow2 a.qcow2; measure --force-share a.qcow2", hold: "-f qcow2 a.qcow2"},
		{lines: "measure -O qcow2 a.raw; measure -U a.raw", hold: "-f raw a.raw"},
		{lines: "measure -Z", why: whyHelp, has: "measure [--output=ofmt]"},
		{lines: "measure -f", why: whyHelp, has: "measure: option requires an argument -- 'f'"},
		{lines: "measure --size", why: whyHelp, has: "measure: option '--size' requires an argument"},
		{lines: "measure --foo a.raw", why: whyHelp, has: "measure: unrecognized option '--foo'"},
		{lines: "measure --help", why: whyHelp, has: "measure [--output=ofmt]"},
		{lines: "measure -s 1M --target-format qcow2 --options cluster_size=4k", why: whyNewLong, has: "required size: "},
		{lines: "measure --format raw --snapshot one a.raw", why: whyNewLong, has: "temporarily loading internal snapshots"},
		{lines: "measure --object foo,id=x a.raw"},
	}, measureGrid()...)},
}

// whyHelp is the reason of another help.
const whyHelp = "the help is in other words, and names the formats that are there"

// measureGrid goes through the cluster sizes and refcount widths.
func measureGrid() []diffCase {
	var list []diffCase
	for _, cluster := range []string{"512", "1k", "4k", "16k", "64k", "512k", "2M"} {
		var lines []string
		for _, bits := range []int{1, 8, 16, 64} {
			for _, size := range []string{"1", "3M", "1000001k", "100G"} {
				lines = append(lines, fmt.Sprintf("measure -O qcow2 -o cluster_size=%s,refcount_bits=%d --size %s", cluster, bits, size))
			}
		}
		for _, src := range []string{"a.raw", "c.qcow2", "tiny.qcow2", "comp1.qcow2", "small.qcow2", "bm.qcow2"} {
			lines = append(lines, "measure -O qcow2 -o cluster_size="+cluster+" "+src)
		}
		list = append(list, diffCase{lines: strings.Join(lines, "; ")})
	}
	return list
}
