package qcow2

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/blocktest"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// modelSeed repeats a run of the random tests: go test -qcow2.seed=N.
var modelSeed = flag.Uint64("qcow2.seed", 0, "seed of the random tests; 0 is that of LAMINA_SEED")

// newSeed returns the seed and logs it.
func newSeed(t testing.TB) uint64 {
	seed := *modelSeed
	if seed == 0 {
		seed = blocktest.Seed(t)
	}
	t.Logf("repeat with -qcow2.seed=%d", seed)
	return seed
}

// geometryCase is a kind of image that the random tests run over.
type geometryCase struct {
	name    string
	size    int64
	values  map[string]string
	backing int64 // size of a backing file, 0 for none
}

// runtime returns the options that images of the case are opened with, which
// their names say.
func (c geometryCase) runtime() map[string]string {
	values := map[string]string{}
	if strings.Contains(c.name, "no-unref") {
		values["discard-no-unref"] = "on"
	}
	if strings.Contains(c.name, "opened-lazy") {
		values["lazy-refcounts"] = "on"
	}
	if c.values["encrypt.key-secret"] != "" {
		values["encrypt.key-secret"] = c.values["encrypt.key-secret"]
	}
	return values
}

var geometryCases = []geometryCase{
	{"512-v3-16", 300<<10 + 512, map[string]string{"cluster_size": "512"}, 0},
	{"512-v3-64-backing", 400 << 10, map[string]string{"cluster_size": "512", "refcount_bits": "64"}, 300 << 10},
	{"512-v2-longer-backing", 300<<10 + 1024, map[string]string{"cluster_size": "512", "compat": "0.10"}, 500 << 10},
	{"4k-v3-1", 2 << 20, map[string]string{"cluster_size": "4k", "refcount_bits": "1"}, 0},
	{"4k-v3-2-backing-zstd", 2<<20 + 1536, map[string]string{"cluster_size": "4k", "refcount_bits": "2", "compression_type": "zstd"}, 1<<20 + 512},
	{"4k-v2", 2 << 20, map[string]string{"cluster_size": "4k", "compat": "0.10"}, 0},
	{"64k-v3-16-backing", 4<<20 + 512, nil, 5 << 20},
	{"64k-lazy-8", 4 << 20, map[string]string{"lazy_refcounts": "on", "refcount_bits": "8"}, 0},
	{"64k-metadata-32", 4 << 20, map[string]string{"preallocation": "metadata", "refcount_bits": "32"}, 0},
	{"512-data-backing", 300<<10 + 512, map[string]string{"cluster_size": "512", "data_file": "ext"}, 400 << 10},
	{"64k-data", 4<<20 + 1536, map[string]string{"data_file": "ext", "lazy_refcounts": "on"}, 0},
	{"4k-data-raw", 2<<20 + 512, map[string]string{"cluster_size": "4k", "data_file": "ext", "data_file_raw": "on"}, 0},
	{"16k-extended", 2<<20 + 1536, map[string]string{"cluster_size": "16k", "extended_l2": "on"}, 0},
	{"16k-extended-backing", 2 << 20, map[string]string{"cluster_size": "16k", "extended_l2": "on", "refcount_bits": "1"}, 3<<20 + 512},
	{"64k-extended-metadata-backing", 3<<20 + 512, map[string]string{"extended_l2": "on", "preallocation": "metadata", "compression_type": "zstd"}, 2 << 20},
	{"128k-extended-lazy", 4 << 20, map[string]string{"cluster_size": "128k", "extended_l2": "on", "lazy_refcounts": "on"}, 1 << 20},
	{"16k-extended-data", 2 << 20, map[string]string{"cluster_size": "16k", "extended_l2": "on", "data_file": "ext"}, 1 << 20},
	{"4k-no-unref-opened-lazy", 2 << 20, map[string]string{"cluster_size": "4k"}, 1 << 20},
	{"16k-extended-no-unref", 2 << 20, map[string]string{"cluster_size": "16k", "extended_l2": "on"}, 1 << 20},
	{"2M-v3-4-zstd", 12 << 20, map[string]string{"cluster_size": "2M", "refcount_bits": "4", "compression_type": "zstd"}, 0},
}

// modelOpener opens the same backing bytes each time.
type modelOpener struct{ data []byte }

func (o modelOpener) OpenBacking(context.Context, string, string) (block.Node, error) {
	return memory.NewBytes(o.data).ReadOnly(), nil
}

// model is an image and what it must read as.
type model struct {
	t     testing.TB
	r     *rand.Rand
	c     geometryCase
	file  *memory.Disk
	img   *Image
	want  []byte
	back  []byte
	ext   *memory.Disk // external data file, nil if the case has none
	dir   string
	ops   int
	fixed bool // no reopening
	// keeps is one in how many steps makes, applies or deletes a snapshot, 0
	// for none; snaps are all of them then.
	keeps   int
	snaps   []modelSnapshot
	changes int // of the snapshots, or by one
}

func newModel(t testing.TB, c geometryCase, seed uint64) *model {
	m := &model{t: t, r: rand.New(rand.NewPCG(seed, uint64(len(c.name)))), c: c, file: memory.NewFile(), dir: t.TempDir()}
	opts := format.CreateOptions{Values: c.values, Filename: "model", Secrets: testKeys}
	m.want = make([]byte, c.size)
	if c.backing > 0 {
		m.back = make([]byte, c.backing)
		for i := 0; i < len(m.back); i += 4096 {
			if m.r.IntN(3) > 0 {
				fillRandom(m.r, m.back[i:min(i+4096, len(m.back))])
			}
		}
		copy(m.want, m.back)
		opts.BackingFile, opts.BackingFormat = "base.raw", "raw"
	}
	if c.values["data_file"] != "" {
		m.ext = memory.NewFile()
		opts.Data = m.ext
	}
	if err := (Driver{}).Create(context.Background(), m.file, c.size, opts); err != nil {
		t.Fatal(err)
	}
	m.open()
	return m
}

// fillRandom makes data that compresses by about half.
func fillRandom(r *rand.Rand, p []byte) {
	for i := range p {
		if i%2 == 0 {
			p[i] = byte(r.Uint32())
		} else {
			p[i] = 'x'
		}
	}
}

func (m *model) open() {
	m.t.Helper()
	opts := format.OpenOptions{Writable: true, Filename: "model", Values: m.c.runtime(), Secrets: testKeys}
	if m.c.backing > 0 {
		opts.Opener = modelOpener{m.back}
	}
	if m.ext != nil {
		opts.Opener = dataOpener{modelOpener{m.back}, m.ext}
	}
	n, err := (Driver{}).Open(context.Background(), m.file, opts)
	if err != nil {
		m.t.Fatalf("open after %d operations: %v", m.ops, err)
	}
	m.img = n.(*Image)
}

// reopen closes the image and opens it again.
func (m *model) reopen() {
	m.t.Helper()
	if err := m.img.Close(); err != nil {
		m.t.Fatalf("close after %d operations: %v", m.ops, err)
	}
	m.file = m.file.Reopen()
	if m.ext != nil {
		m.ext = m.ext.Reopen()
	}
	m.open()
}

// span picks a range, mostly small, of any alignment or of sectors or clusters.
func (m *model) span() (int64, int64) {
	size := int64(len(m.want))
	align := []int64{1, 512, m.img.ClusterSize()}[m.r.IntN(3)]
	if m.img.g.extendedL2 && m.r.IntN(3) == 0 {
		align = m.img.g.subclusterSize()
	}
	off := m.r.Int64N(size) / align * align
	limit := []int64{1000, 3 * m.img.ClusterSize(), 1 << 18}[m.r.IntN(3)]
	n := m.r.Int64N(min(limit, 1<<19)) + 1
	if n = (n + align - 1) / align * align; off+n > size || m.r.IntN(20) == 0 {
		n = min(size-off, n+1<<17)
	}
	return off, n
}

func (m *model) step() {
	m.t.Helper()
	m.ops++
	if m.keeps > 0 && m.r.IntN(m.keeps) == 0 {
		m.snapshotStep()
		return
	}
	off, n := m.span()
	var err error
	op := ""
	switch k := m.r.IntN(100); {
	case k < 40:
		op = "write"
		p := make([]byte, n)
		if m.r.IntN(8) > 0 {
			fillRandom(m.r, p)
		}
		copy(m.want[off:], p)
		_, err = m.img.WriteAt(p, off)
	case k < 60:
		op = "read"
		p := make([]byte, n)
		_, err = m.img.ReadAt(p, off)
		if err == nil && !bytes.Equal(p, m.want[off:off+n]) {
			err = fmt.Errorf("wrong data")
		}
	case k < 70:
		op = "zero"
		flags := block.ZeroFlags(m.r.IntN(4))
		err = m.img.WriteZeroes(off, n, flags)
		if flags&block.ZeroNoFallback != 0 && errors.Is(err, block.ErrUnsupported) {
			err = nil
		} else {
			clear(m.want[off : off+n])
		}
	case k < 78:
		op = "discard"
		err = m.discard(off, n)
	case k < 90:
		op = "compressed"
		err = m.compressed(off)
	case k < 94:
		op = "flush"
		err = m.img.Flush()
	case k < 96:
		op = "extents"
		err = m.extents(off, n)
	case k < 98:
		op = "resize"
		err = m.resize()
	case m.fixed:
		op = "flush"
		err = m.img.Flush()
	default:
		op = "reopen"
		m.reopen()
	}
	if err != nil {
		m.t.Fatalf("operation %d, %s at %d, %d bytes: %v", m.ops, op, off, n, err)
	}
}

// discard checks that a discarded range reads as before or, by whole clusters
// or subclusters, as zeros.
func (m *model) discard(off, n int64) error {
	if err := m.img.Discard(off, n); err != nil {
		return err
	}
	got := make([]byte, n)
	if _, err := m.img.ReadAt(got, off); err != nil {
		return err
	}
	cs := m.img.g.subclusterSize()
	for at := off; at < off+n; {
		end := min((at/cs+1)*cs, off+n)
		p := got[at-off : end-off]
		if !bytes.Equal(p, m.want[at:end]) {
			whole := at%cs == 0 && (end%cs == 0 || end == int64(len(m.want)))
			if !whole || !bytes.Equal(p, make([]byte, len(p))) {
				return fmt.Errorf("cluster at %d is neither unchanged nor zeros", at)
			}
			clear(m.want[at:end])
		}
		at = end
	}
	return nil
}

// compressed writes one cluster compressed if it is not allocated.
func (m *model) compressed(off int64) error {
	cs := m.img.ClusterSize()
	off = off / cs * cs
	n := min(cs, int64(len(m.want))-off)
	r, err := m.img.lookup(off, n)
	if err != nil {
		return err
	}
	p := make([]byte, n)
	fillRandom(m.r, p)
	if m.r.IntN(4) == 0 {
		for i := range p {
			p[i] = byte(m.r.Uint32()) // does not compress
		}
	}
	err = m.img.WriteCompressed(p, off)
	if m.img.crypt != nil {
		if !errors.Is(err, block.ErrUnsupported) {
			return fmt.Errorf("compressed write to an encrypted image: %v", err)
		}
		return nil
	}
	if m.ext != nil {
		if !errors.Is(err, syscall.ENOTSUP) {
			return fmt.Errorf("compressed write to a data file: %v", err)
		}
		return nil
	}
	if r.kind.hasHost() || r.kind == clusterCompressed {
		if !errors.Is(err, block.ErrUnsupported) {
			return fmt.Errorf("compressed write over an allocated cluster: %v", err)
		}
		return nil
	}
	if err == nil {
		copy(m.want[off:], p)
	}
	return err
}

// extents checks that the extents cover the range and tell the truth of zeros.
func (m *model) extents(off, n int64) error {
	at := off
	var last block.Extent
	for e, err := range m.img.Extents(off, n) {
		if err != nil {
			return err
		}
		if e.Start != at || e.Length < 1 || (at > off && e.Follows(last)) {
			return fmt.Errorf("extent %+v does not follow %+v", e, last)
		}
		if e.IsZero() && len(bytes.Trim(m.want[e.Start:e.End()], "\x00")) > 0 {
			return fmt.Errorf("extent %+v does not read as zeros", e)
		}
		at, last = e.End(), e
	}
	if at != off+n {
		return fmt.Errorf("extents end at %d, not %d", at, off+n)
	}
	return nil
}

// resize grows or shrinks the disk a little.
func (m *model) resize() error {
	size := max(m.c.size/2+m.r.Int64N(m.c.size), 512) / 512 * 512
	opts := block.ResizeOptions{AllowShrink: true}
	if size > int64(len(m.want)) && m.r.IntN(4) == 0 {
		opts.Prealloc = []block.Preallocation{block.PreallocMetadata, block.PreallocFalloc, block.PreallocFull}[m.r.IntN(3)]
	}
	err := m.img.Resize(context.Background(), size, opts)
	if m.img.version < 3 && len(m.snaps) > 0 && errors.Is(err, block.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return err
	}
	if size <= int64(len(m.want)) {
		m.want = m.want[:size:size]
	} else {
		m.want = append(m.want, make([]byte, size-int64(len(m.want)))...)
	}
	return nil
}

// verify compares the whole disk.
func (m *model) verify() {
	m.t.Helper()
	got := make([]byte, len(m.want))
	if _, err := m.img.ReadAt(got, 0); err != nil {
		m.t.Fatalf("read all after %d operations: %v", m.ops, err)
	}
	if !bytes.Equal(got, m.want) {
		at := 0
		for got[at] == m.want[at] {
			at++
		}
		m.t.Fatalf("after %d operations: differs at %d", m.ops, at)
	}
}

// verifyStock lets the stock tool check the image and compare its content.
func (m *model) verifyStock() {
	m.t.Helper()
	if c := m.stock(); c.Leaks != 0 {
		m.t.Fatalf("stock check finds %d leaked clusters", c.Leaks)
	}
}

// verifyStockLeaks is verifyStock after failed requests, which may leak.
func (m *model) verifyStockLeaks() {
	m.t.Helper()
	_ = m.stock()
}

// stock closes the image and lets the stock tool check and compare it.
func (m *model) stock() qemutest.Check {
	m.t.Helper()
	if m.fixed {
		if err := m.img.Close(); err != nil {
			m.t.Fatal(err)
		}
	} else {
		m.reopen()
	}
	path, raw := filepath.Join(m.dir, "disk.qcow2"), filepath.Join(m.dir, "want.raw")
	for name, b := range map[string][]byte{path: m.file.Bytes(), raw: m.want, filepath.Join(m.dir, cmp.Or(m.img.backingFile, "base.raw")): m.back} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			m.t.Fatal(err)
		}
	}
	if m.ext != nil {
		m.writeExternal(path, raw)
	}
	var c qemutest.Check
	if m.img.crypt != nil {
		stockCrypt(m.t, "qemu-img", path, "check")
		copied := filepath.Join(m.dir, "copied.raw")
		qemutest.Img(m.t, append([]string{"convert", "-O", "raw"}, append(stockCryptArgs(path), copied)...)...)
		qemutest.RequireSame(m.t, "raw", copied, "raw", raw)
	} else {
		c = qemutest.CheckImage(m.t, "qcow2", path)
		if c.Corruptions != 0 || c.CheckErrors != 0 {
			m.t.Fatalf("stock check: %+v\n%s", c, qemutest.Run(m.t, "qemu-img", "check", path).Stdout)
		}
		qemutest.RequireSame(m.t, "qcow2", path, "raw", raw)
	}
	if m.keeps > 0 {
		m.verifySnapshots(path)
	}
	return c
}

// TestModel drives random operations against a byte slice.
func TestModel(t *testing.T) {
	seed := newSeed(t)
	for _, c := range geometryCases {
		t.Run(c.name, func(t *testing.T) {
			m := newModel(t, c, seed)
			m.keeps = 30
			ops := 1200
			if m.img.ClusterSize() > 1<<20 {
				ops = 400 // each moves megabytes
			}
			for i := range ops {
				m.step()
				if i%100 == 99 {
					m.verify()
				}
				if i%400 == 399 {
					m.verifyStock()
				}
			}
			if err := m.img.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func (o modelOpener) OpenData(context.Context, string, bool) (block.Node, error) { return nil, nil }

// dataOpener opens the same data file too.
type dataOpener struct {
	modelOpener
	ext block.Node
}

func (o dataOpener) OpenData(context.Context, string, bool) (block.Node, error) { return o.ext, nil }
