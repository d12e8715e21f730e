package qcow2

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/blocktest"
	"github.com/lamina-vm/lamina/internal/qemutest"
)

// TestStress changes random images by turns with the stock tools and with
// ours: backing chains, snapshots, every preallocation, crashes under lazy
// refcounts. After each turn both have to read the same.
func TestStress(t *testing.T) {
	seed := newSeed(t)
	for i := range uint64(24) {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			s := &stress{t: t, r: rand.New(rand.NewPCG(seed, i)), dir: memoryDir(t)}
			s.data = make([]byte, 100_003)
			fillRandom(s.r, s.data)
			if err := os.WriteFile(s.path("data"), s.data, 0o600); err != nil {
				t.Fatal(err)
			}
			s.base()
			for range 1 + s.r.IntN(3) {
				s.layer()
				for range 2 {
					s.stockTurn()
					s.snapshot()
					s.ourTurn()
				}
				s.checkSnapshots()
			}
		})
	}
}

// stress is one chain of images. want is what its top reads as.
type stress struct {
	t      *testing.T
	r      *rand.Rand
	dir    string
	data   []byte // what stock writes
	name   string // of the top
	format string
	layers int
	want   []byte

	cluster   int64
	v2, lazy  bool
	shares    bool     // snapshots can be made: of version 2 they cannot be resized
	fresh     bool     // no cluster of the top is allocated
	snapshots [][]byte // of the top, what they read as
}

func (s *stress) path(name string) string { return filepath.Join(s.dir, name) }

// base makes the lowest layer, a raw file, or leaves it to layer.
func (s *stress) base() {
	s.want = make([]byte, (s.r.Int64N(1<<20)+64<<10)/512*512)
	if s.r.IntN(2) == 0 {
		return
	}
	for range 5 {
		off := s.r.IntN(len(s.want))
		copy(s.want[off:], s.data[:s.r.IntN(len(s.data))])
	}
	s.name, s.format = s.path("base"), "raw"
	writeRaw(s.t, s.name, s.want)
}

// layer makes a new image on top, of any kind and size, by either maker.
func (s *stress) layer() {
	r := s.r
	s.cluster = 512 << r.IntN(10)
	s.v2 = r.IntN(4) == 0
	values := map[string]string{"cluster_size": fmt.Sprint(s.cluster)}
	if s.v2 {
		values["compat"], s.lazy, s.shares = "0.10", false, false
	} else {
		s.lazy = r.IntN(3) == 0
		values["lazy_refcounts"] = map[bool]string{true: "on", false: "off"}[s.lazy]
		bits := 1 << r.IntN(7)
		s.shares = bits >= 16
		values["refcount_bits"] = fmt.Sprint(bits)
		if s.cluster >= 16<<10 && r.IntN(2) == 0 {
			values["extended_l2"] = "on"
		}
		values["compression_type"] = []string{"zlib", "zstd"}[r.IntN(2)]
	}
	s.fresh = true
	if s.name == "" || values["extended_l2"] == "on" {
		values["preallocation"] = []string{"off", "off", "metadata", "falloc", "full"}[r.IntN(5)]
		s.fresh = values["preallocation"] == "off"
	}
	size := (int64(len(s.want)) + r.Int64N(256<<10) - 128<<10) / 512 * 512
	s.resize(max(size, 512))
	s.layers++
	name := s.path(fmt.Sprint("layer", s.layers))
	if r.IntN(2) == 0 {
		createFile(s.t, name, int64(len(s.want)), values, s.name, s.format)
	} else {
		args := []string{"create", "-q", "-f", "qcow2"}
		if s.name != "" {
			args = append(args, "-b", s.name, "-F", s.format)
		}
		for k, v := range values {
			args = append(args, "-o", k+"="+v)
		}
		qemutest.Img(s.t, append(args, name, fmt.Sprint(len(s.want)))...)
	}
	s.t.Logf("layer %d of %d bytes: %v, backing %q", s.layers, len(s.want), values, s.name)
	s.name, s.format, s.snapshots = name, "qcow2", nil
}

func (s *stress) resize(size int64) {
	s.want = append(s.want[:min(int64(len(s.want)), size):min(int64(len(s.want)), size)], make([]byte, max(0, size-int64(len(s.want))))...)
}

// stockTurn changes the top by one run of qemu-io. What a discard leaves is
// the tool's own business: a copy by the tool says what is there.
func (s *stress) stockTurn() {
	r, size := s.r, int64(len(s.want))
	var cmds []string
	if s.fresh { // compressed clusters have to be new
		for at := int64(0); at < size; at += s.cluster * (1 + r.Int64N(8)) {
			if len(cmds) < 12 {
				cmds = append(cmds, fmt.Sprintf("write -q -c -s %s %d %d", s.path("data"), at, min(s.cluster, size-at)))
			}
		}
		s.fresh = false
	}
	for range 4 + r.IntN(12) {
		align := []int64{1, 512, max(s.cluster/32, 512), s.cluster}[r.IntN(4)]
		off := r.Int64N(size) / align * align
		n := min((r.Int64N(2*s.cluster+20_000)/align+1)*align, size-off)
		op := []string{"write -q -s " + s.path("data"), "write -q -z", "write -q -z -u", "discard -q", "flush"}[r.IntN(5)]
		if op == "flush" {
			cmds = append(cmds, op)
			continue
		}
		cmds = append(cmds, fmt.Sprintf("%s %d %d", op, off, n))
	}
	args := []string{"-f", "qcow2", "-d", "unmap"}
	crash := s.lazy && r.IntN(2) == 0
	if crash {
		cmds = append(cmds, "flush", "abort")
	}
	for _, c := range cmds {
		args = append(args, "-c", c)
	}
	cmd := exec.Command(qemutest.Path(s.t, "qemu-io"), append(args, s.name)...)
	out, err := cmd.CombinedOutput()
	if (err != nil) != crash || bytes.Contains(out, []byte("failed")) {
		s.t.Fatalf("qemu-io: %v\n%s\n%s", err, strings.Join(cmds, "\n"), out)
	}
	qemutest.Img(s.t, "convert", "-f", "qcow2", "-O", "raw", s.name, s.path("truth"))
	if s.want, err = os.ReadFile(s.path("truth")); err != nil {
		s.t.Fatal(err)
	}
	n := openChain(s.t, s.name, false)
	s.requireContent(n, s.want)
	blocktest.RequireExtents(s.t, n, 0, n.Size())
	requireMap(s.t, n, s.name)
	closeNode(s.t, n)
}

func (s *stress) requireContent(n block.Node, want []byte) {
	s.t.Helper()
	got := make([]byte, len(want))
	if _, err := n.ReadAt(got, 0); err != nil && len(want) > 0 {
		s.t.Fatal(err)
	}
	if n.Size() != int64(len(want)) || !bytes.Equal(got, want) {
		at := 0
		for at < len(want) && got[at] == want[at] {
			at++
		}
		s.t.Fatalf("%d bytes instead of %d, differs at %d", n.Size(), len(want), at)
	}
}

// snapshot makes an internal snapshot now and then.
func (s *stress) snapshot() {
	if !s.shares || len(s.snapshots) > 1 || s.r.IntN(2) == 0 {
		return
	}
	qemutest.Img(s.t, "snapshot", "-c", fmt.Sprint("s", len(s.snapshots)), s.name)
	s.snapshots = append(s.snapshots, append([]byte(nil), s.want...))
}

// ourTurn changes the top by random operations of the model.
func (s *stress) ourTurn() {
	n := openChain(s.t, s.name, true)
	m := &model{t: s.t, r: s.r, c: geometryCase{size: int64(len(s.want))}, img: n.(*Image), want: s.want, fixed: true}
	for range 25 {
		m.step()
	}
	m.verify()
	closeNode(s.t, n)
	s.want, s.fresh = m.want, false
	qemutest.RequireClean(s.t, s.name)
	writeRaw(s.t, s.path("truth"), s.want)
	qemutest.RequireSame(s.t, "qcow2", s.name, "raw", s.path("truth"))
}

// checkSnapshots lets both read the snapshots, and the tool go back to one.
func (s *stress) checkSnapshots() {
	for i, want := range s.snapshots {
		n := openChain(s.t, s.name, false)
		disk, err := n.(*Image).OpenSnapshot(s.t.Context(), i)
		if err != nil {
			s.t.Fatal(err)
		}
		s.requireContent(disk, want)
		closeNode(s.t, disk)
		closeNode(s.t, n)
		qemutest.Img(s.t, "convert", "-f", "qcow2", "-O", "raw", "-l", fmt.Sprint("snapshot.name=s", i), s.name, s.path("old"))
		old, err := os.ReadFile(s.path("old"))
		if err != nil {
			s.t.Fatal(err)
		}
		// The tool gives it the size that the disk has now.
		if k := min(len(old), len(want)); !bytes.Equal(old[:k], want[:k]) {
			s.t.Fatalf("snapshot %d is not what it was", i)
		}
	}
	if len(s.snapshots) == 0 || s.r.IntN(2) == 0 {
		return
	}
	qemutest.Img(s.t, "snapshot", "-a", "s0", s.name)
	qemutest.Img(s.t, "snapshot", "-d", "s0", s.name)
	s.want, s.snapshots = s.snapshots[0], nil
	n := openChain(s.t, s.name, false)
	s.requireContent(n, s.want)
	closeNode(s.t, n)
	qemutest.RequireClean(s.t, s.name)
}
