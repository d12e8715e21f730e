package qemuimg

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/lamina-vm/lamina/internal/qemutest"
)

// Reasons of differences of images with subclusters.
const (
	whyPacked = "a compressed cluster with a bitmap, which it cannot have, still refers to its bytes; the stock tool takes them for leaked, and -r leaks frees what can be read"
)

// subclustersTable is the part of the comparison that is about subclusters.
var subclustersTable = []diffGroup{
	{name: "subclusters", fixtures: "create -q -f qcow2 -o extended_l2=on,cluster_size=16k sub.qcow2 1M; create -q -f qcow2 -o extended_l2=on -b a.raw -F raw subover.qcow2; " +
		"create -q -f qcow2 -o extended_l2=on,preallocation=metadata -b a.raw -F raw subpre.qcow2; create -q -f qcow2 -o extended_l2=on,cluster_size=128k -b subover.qcow2 -F qcow2 subtop.qcow2 12M; " +
		"create -q -f qcow2 -o extended_l2=on,cluster_size=32k,lazy_refcounts=on subsnap.qcow2 1M",
		prepare: prepareSubclusters,
		cases: []diffCase{
			{lines: "create -f qcow2 -o extended_l2=on x 10M; info x; check x; map --output=json x"},
			{lines: "create -f qcow2 -o extended_l2=off x 10M; info x"},
			{lines: "create -f qcow2 -o extended_l2 x 10M"},
			{lines: "create -f qcow2 -o extended_l2=maybe x 10M"},
			{lines: "create -f raw -o extended_l2=on x 10M"},
			{lines: "create -f qcow2 -o extended_l2=on,cluster_size=8k x 1M"},
			{lines: "create -f qcow2 -o extended_l2=on,cluster_size=16k x 1M; info --output=json x"},
			{lines: "create -f qcow2 -o extended_l2=on,cluster_size=2M x 1M; info x; check x"},
			{lines: "create -f qcow2 -o extended_l2=on,cluster_size=3000 x 1M"},
			{lines: "create -f qcow2 -o extended_l2=on,cluster_size=4M x 1M"},
			{lines: "create -f qcow2 -o extended_l2=on,compat=0.10 x 1M"},
			{lines: "create -f qcow2 -o extended_l2=on,compat=0.10,cluster_size=8k x 1M"},
			{lines: "create -f qcow2 -o extended_l2=on,compat=v3,refcount_bits=1,lazy_refcounts=on x 1M; info x; check x"},
			{lines: "create -f qcow2 -o extended_l2=on,compat=0.10,lazy_refcounts=on,refcount_bits=1 x 1M"},
			{lines: "create -f qcow2 -o extended_l2=on,refcount_bits=3,cluster_size=8k x 1M"},
			{lines: "create -f qcow2 -o extended_l2=on,compat=0.10,compression_type=zstd x 1M"},
			{lines: "create -f qcow2 -o extended_l2=on,compression_type=zstd x 1M; info x"},
			{lines: "create -q -f qcow2 -o extended_l2=on,cluster_size=16k x 2T; info x; check x"},
			{lines: "create -q -f qcow2 -o extended_l2=on,cluster_size=16k x 64T; info x"},
			{lines: "create -q -f qcow2 -o extended_l2=on,cluster_size=16k x 65T"},
			{lines: "create -q -f qcow2 -o extended_l2=on x 1P; info x"},
			{lines: "create -q -f qcow2 -o extended_l2=on x 1025T"},
			{lines: "create -f qcow2 -o extended_l2=on,preallocation=metadata x 3M; check x; map --output=json x; info x"},
			{lines: "create -f qcow2 -o extended_l2=on,preallocation=falloc x 3M; check x; map --output=json x"},
			{lines: "create -f qcow2 -o extended_l2=on,preallocation=full,cluster_size=16k x 1M; check x; map --output=json x"},
			{lines: "create -f qcow2 -o extended_l2=off,preallocation=metadata -b a.raw -F raw x"},
			{lines: "create -f qcow2 -o preallocation=metadata -b a.raw -F raw x"},
			{lines: "create -f qcow2 -o extended_l2=on,preallocation=metadata -b a.raw -F raw x; check x; map --output=json x; map x"},
			{lines: "create -f qcow2 -o extended_l2=on,preallocation=full -b a.raw -F raw x 12M; check x; map --output=json x"},
			{lines: "info sub.qcow2; info --output=json sub.qcow2; check sub.qcow2; check --output=json sub.qcow2"},
			{lines: "map sub.qcow2; map --output=json sub.qcow2; map -s 17k -l 40k --output=json sub.qcow2"},
			{lines: "map subover.qcow2; map --output=json subover.qcow2; check subover.qcow2"},
			{lines: "map subpre.qcow2; map --output=json subpre.qcow2; check subpre.qcow2"},
			{lines: "map subtop.qcow2; map --output=json subtop.qcow2; info --backing-chain subtop.qcow2"},
			{lines: "check -r all sub.qcow2; check -r leaks subpre.qcow2"},
			{lines: "convert -O raw sub.qcow2 x; convert -O qcow2 sub.qcow2 y; check -q y"},
			{lines: "convert -O qcow2 -o extended_l2=on,cluster_size=16k sub.qcow2 x; check -q x; compare x sub.qcow2"},
			{lines: "convert -O qcow2 -o extended_l2=on a.raw x; check -q x; info x"},
			{lines: "convert -O qcow2 -o extended_l2=on -S 0 small x; check x; info x"},
			{lines: "convert -c -O qcow2 -o extended_l2=on subtop.qcow2 x; check x; compare x subtop.qcow2"},
			{lines: "convert -c -O qcow2 -o extended_l2=on,compression_type=zstd,cluster_size=16k sub.qcow2 x; compare x sub.qcow2"},
			{lines: "convert -O qcow2 -o extended_l2=on,cluster_size=4k sub.qcow2 x"},
			{lines: "convert -n sub.qcow2 a.qcow2; check a.qcow2"},
			{lines: "convert -n -O qcow2 small sub.qcow2; check sub.qcow2; info sub.qcow2"},
			{lines: "convert -O qcow2 -B a.raw -F raw -o extended_l2=on subover.qcow2 x; check -q x; compare x subover.qcow2"},
			{lines: "compare sub.qcow2 subtop.qcow2; compare -s sub.qcow2 sub.qcow2"},
			{lines: "resize sub.qcow2 3M; check sub.qcow2; info sub.qcow2; map --output=json sub.qcow2"},
			{lines: "resize --shrink sub.qcow2 20k; check sub.qcow2; map --output=json sub.qcow2; resize sub.qcow2 100k; map --output=json sub.qcow2"},
			{lines: "resize --preallocation=metadata sub.qcow2 +1M; check sub.qcow2; map --output=json sub.qcow2"},
			{lines: "resize --preallocation=full sub.qcow2 +100k; check -q sub.qcow2; info sub.qcow2"},
			{lines: "resize --shrink subover.qcow2 5M; check subover.qcow2; resize subover.qcow2 9M; map --output=json subover.qcow2; check subover.qcow2"},
			{lines: "resize subtop.qcow2 20M; map --output=json subtop.qcow2; check subtop.qcow2"},
			{lines: "resize --preallocation=metadata subover.qcow2 +1M; check subover.qcow2"},
			{lines: "amend -o extended_l2=off sub.qcow2"},
			{lines: "amend -o extended_l2=on sub.qcow2"},
			{lines: "amend -o compat=0.10 sub.qcow2"},
			{lines: "amend -o refcount_bits=64 sub.qcow2; check sub.qcow2; info sub.qcow2"},
			{lines: "amend -o lazy_refcounts=on,size=2M sub.qcow2; check sub.qcow2; info sub.qcow2"},
			{lines: "snapshot -l subsnap.qcow2; check subsnap.qcow2; map --output=json subsnap.qcow2"},
			{lines: "convert -l one -O raw subsnap.qcow2 x; convert -l two -O qcow2 -o extended_l2=on subsnap.qcow2 y; check -q y; compare -s x y"},
			{lines: "snapshot -a one subsnap.qcow2; check -q subsnap.qcow2; map subsnap.qcow2"},
			{lines: "snapshot -c three subsnap.qcow2; snapshot -d one subsnap.qcow2; snapshot -d two subsnap.qcow2; check -q subsnap.qcow2; map --output=json subsnap.qcow2"},
			{lines: "rebase -u -b '' subover.qcow2; map --output=json subover.qcow2; check subover.qcow2"},
			{lines: "rebase -b '' subover.qcow2; check subover.qcow2; info subover.qcow2"},
			{lines: "rebase -b a.raw -F raw subtop.qcow2; check subtop.qcow2; map subtop.qcow2"},
			{lines: "commit subtop.qcow2; check subtop.qcow2; check subover.qcow2; map subover.qcow2"},
			{lines: "commit subover.qcow2; check subover.qcow2; map --output=json subover.qcow2"},
			{lines: "dd if=sub.qcow2 of=x bs=4k count=30; dd -O qcow2 if=sub.qcow2 of=y bs=1k skip=16"},
			{lines: "measure -O qcow2 -o extended_l2=on sub.qcow2; measure -O qcow2 -o extended_l2=on --size 1T; measure -O raw sub.qcow2"},
			{lines: "measure -O qcow2 -o extended_l2=on,cluster_size=8k --size 1G"},
			{lines: "bench -c 10 -s 2k sub.qcow2; bench -w -d 1 -c 20 -s 700 -S 3000 sub.qcow2; check sub.qcow2"},
			{lines: "bitmap --add -g 64k sub.qcow2 b0; info sub.qcow2; check sub.qcow2"},
			{lines: "check subboth.qcow2; check -r leaks subboth.qcow2; check -r all subboth.qcow2; check --output=json subboth.qcow2"},
			{lines: "check subnone.qcow2; check -r all subnone.qcow2"},
			{lines: "check sublost.qcow2; check -r all sublost.qcow2; check sublost.qcow2"},
			{lines: "check subpacked.qcow2", why: whyPacked, has: "ERROR compressed cluster 3 with non-zero subcluster allocation bitmap"},
			{lines: "info subsmall.qcow2; check subsmall.qcow2; map subsmall.qcow2"},
		}},
}

// prepareSubclusters fills the images of the group and makes damaged ones.
func prepareSubclusters(t *testing.T, dir string) {
	write := func(file string, cmds ...string) {
		t.Helper()
		qemutest.IO(t, "qcow2", filepath.Join(dir, file), cmds...)
	}
	write("sub.qcow2", "write -P 1 0 16k", "write -P 2 16k 2k", "write -z 32k 1k", "write -c -P 3 48k 16k", "write -P 5 64k 512", "write -P 6 81k 1k", "write -z 64k 512", "write -zu 0 4k")
	write("subover.qcow2", "write -P 7 2050k 3k", "write -z 5M 6k", "write -P 8 9M 1M", "write -zu 9300k 9k")
	write("subpre.qcow2", "write -P 9 2M 5k", "write -z 5M 8k")
	write("subtop.qcow2", "write -P 10 1M 5k", "write -z 2M 4k", "write -P 11 11M 4k", "write -c -P 12 4M 128k", "discard 9M 256k")
	write("subsnap.qcow2", "write -P 13 0 100k", "write -c -P 14 160k 32k")
	snap := func(name string) {
		t.Helper()
		qemutest.Img(t, "snapshot", "-c", name, filepath.Join(dir, "subsnap.qcow2"))
	}
	snap("one")
	write("subsnap.qcow2", "write -P 15 3k 2k", "write -z 33k 20k", "write -P 16 170k 1k")
	snap("two")
	write("subsnap.qcow2", "write -P 17 90k 50k", "discard 0 32k")
	image, err := os.ReadFile(filepath.Join(dir, "sub.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	be := binary.BigEndian
	l2 := int64(be.Uint64(image[be.Uint64(image[40:]):]) & 0x00fffffffffffe00)
	for name, p := range map[string]struct {
		at int64
		v  []byte
	}{
		"subboth":   {l2 + 16 + 8, []byte{0, 0, 0, 0xff, 0, 0, 0, 0xff}},
		"subnone":   {l2 + 32 + 8, []byte{0, 0, 0, 0, 0, 0, 0, 1}},
		"sublost":   {l2 + 16, make([]byte, 16)},
		"subpacked": {l2 + 48 + 8, []byte{0, 0, 0, 0, 0, 0, 0, 1}},
		"subsmall":  {23, []byte{13}},
	} {
		put(t, filepath.Join(dir, name+".qcow2"), image)
		poke(t, filepath.Join(dir, name+".qcow2"), p.at, p.v...)
	}
}
