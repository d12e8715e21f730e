package qcow2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/record"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// combinedCase picks a kind of image with any of the features that go together.
func combinedCase(r *rand.Rand) geometryCase {
	one := func(n int) bool { return r.IntN(n) == 0 }
	cluster := []string{"512", "1k", "4k", "16k", "64k"}[r.IntN(5)]
	c := geometryCase{name: "combined", size: 40<<10 + 512*r.Int64N(600), values: map[string]string{"cluster_size": cluster}}
	v3 := !one(6)
	if v3 {
		c.values["refcount_bits"] = fmt.Sprint(1 << r.IntN(7))
		if one(3) {
			c.values["lazy_refcounts"] = "on"
		}
		if one(3) {
			c.values["compression_type"] = "zstd"
		}
		if strings.HasSuffix(cluster, "6k") || cluster == "64k" && one(2) {
			c.values["extended_l2"] = "on"
		}
		if one(4) {
			c.values["data_file"] = "ext"
			if one(2) {
				c.values["data_file_raw"] = "on"
			}
		}
		if one(4) {
			c.name += "-no-unref"
		}
		if one(6) {
			c.name += "-opened-lazy"
		}
	} else {
		c.values["compat"] = "0.10"
	}
	switch r.IntN(5) {
	case 0:
		c.values["encrypt.format"], c.values["encrypt.key-secret"] = "aes", "s"
	case 1:
		c.values["encrypt.format"], c.values["encrypt.key-secret"], c.values["encrypt.iter-time"] = "luks", "s", "0"
	}
	if one(2) && c.values["data_file_raw"] == "" {
		c.backing = 512 * (1 + r.Int64N(c.size/256))
	}
	if one(5) && (c.backing == 0 || c.values["extended_l2"] != "") {
		c.values["preallocation"] = "metadata"
	}
	return c
}

// combined is a model with bitmaps.
type combined struct {
	*model
	bitmaps map[string]*bitModel // what they have to hold at least
	made    int
}

func newCombined(t testing.TB, seed uint64) *combined {
	c := combinedCase(rand.New(rand.NewPCG(seed, 11)))
	t.Logf("%s, %d bytes, backing %d, %v", c.name, c.size, c.backing, c.values)
	return &combined{model: newModel(t, c, seed), bitmaps: map[string]*bitModel{}}
}

// step makes one random change; what differs then has to be in the bitmaps.
func (m *combined) step() {
	m.t.Helper()
	before := bytes.Clone(m.want)
	k := m.r.IntN(40)
	switch {
	case k < 5:
		m.bitmapStep()
	case k < 8:
		m.amendStep()
	case k == 8 && m.back != nil:
		m.backingStep()
	case k == 9 && len(m.bitmaps) == 0:
		m.emptyStep()
	case k == 10:
		m.checkStep(m.img)
	default:
		m.model.step()
	}
	if len(before) != len(m.want) {
		for name, b := range m.bitmaps {
			grown := newBitModel(int64(len(m.want)), b.granularity)
			copy(grown.bits, b.bits)
			grown.enabled = b.enabled
			m.bitmaps[name] = grown
		}
	}
	for i := 0; i < min(len(before), len(m.want)); i++ {
		if before[i] == m.want[i] {
			continue
		}
		for _, b := range m.bitmaps {
			if b.enabled {
				b.set(int64(i), 1)
			}
		}
	}
}

func (m *combined) fail(what string, err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatalf("operation %d, %s: %v", m.ops, what, err)
	}
}

func (m *combined) bitmapStep() {
	m.t.Helper()
	m.ops++
	var names []string
	for name := range m.bitmaps {
		names = append(names, name)
	}
	slices.Sort(names)
	if len(names) == 0 || m.r.IntN(3) == 0 && len(names) < 4 {
		name := fmt.Sprintf("bitmap %d", m.made)
		m.made++
		b := newBitModel(int64(len(m.want)), 512<<m.r.IntN(8))
		b.enabled = m.r.IntN(4) > 0
		err := m.img.AddBitmap(name, format.BitmapOptions{Granularity: b.granularity, Disabled: !b.enabled})
		if m.img.version < 3 {
			if err == nil {
				m.t.Fatalf("operation %d: a bitmap in version 2", m.ops)
			}
			return
		}
		m.fail("add bitmap", err)
		m.bitmaps[name] = b
		return
	}
	name := names[m.r.IntN(len(names))]
	k := m.r.IntN(5)
	switch k {
	case 0:
		m.fail("remove bitmap", m.img.RemoveBitmap(name))
		delete(m.bitmaps, name)
	case 1:
		m.fail("clear bitmap", m.img.ClearBitmap(name))
		clear(m.bitmaps[name].bits)
	case 2:
		m.bitmaps[name].enabled = !m.bitmaps[name].enabled
		m.fail("enable bitmap", m.img.SetBitmapEnabled(name, m.bitmaps[name].enabled))
	case 3:
		off, n := m.span()
		m.fail("mark", m.img.MarkDirty(name, oneRun(off, n)))
		m.bitmaps[name].set(off, n)
	default:
		m.fail("store bitmaps", m.img.StoreBitmaps())
	}
}

// amendStep amends something; what the features of the image forbid is refused
// before anything is changed.
func (m *combined) amendStep() {
	m.t.Helper()
	m.ops++
	values := map[string]string{}
	size := int64(len(m.want))
	switch m.r.IntN(6) {
	case 0, 1:
		values["refcount_bits"] = fmt.Sprint(1 << m.r.IntN(7))
	case 2:
		values["lazy_refcounts"] = []string{"on", "off"}[m.r.IntN(2)]
	case 3:
		values["compat"] = []string{"0.10", "1.1"}[m.r.IntN(2)]
		if strings.Contains(m.c.name, "no-unref") || strings.Contains(m.c.name, "opened-lazy") {
			values["compat"] = "1.1"
		}
		if values["compat"] == "0.10" {
			values["refcount_bits"] = "16"
		}
	case 4:
		size = max(size/2+m.r.Int64N(size+512), 512) / 512 * 512
		values["size"] = fmt.Sprint(size)
	default:
		if m.c.values["encrypt.format"] != "luks" {
			return
		}
		if m.r.IntN(2) == 0 {
			values["encrypt.state"], values["encrypt.new-secret"], values["encrypt.iter-time"], values["encrypt.keyslot"] = "active", "t", "0", "3"
		} else {
			values["encrypt.state"], values["encrypt.keyslot"] = "inactive", "3"
		}
	}
	before := m.img.version
	err := m.img.Amend(context.Background(), format.AmendOptions{Values: values, Secrets: testKeys})
	if errors.Is(err, block.ErrUnsupported) || values["encrypt.state"] != "" && err != nil {
		return
	}
	m.fail(fmt.Sprintf("amend %v", values), err)
	if before == 3 && m.img.version == 2 {
		m.bitmaps = map[string]*bitModel{}
	}
	if size <= int64(len(m.want)) {
		m.want = m.want[:size:size]
	} else {
		m.want = append(m.want, make([]byte, size-int64(len(m.want)))...)
	}
}

// backingStep gives the backing file another name.
func (m *combined) backingStep() {
	m.t.Helper()
	m.ops++
	limit := 200
	if m.img.ClusterSize() < 4096 {
		limit = 40
	}
	name := strings.Repeat("b", 1+m.r.IntN(limit)) + ".raw"
	err := m.img.ChangeBacking(context.Background(), name, "raw")
	if !errors.Is(err, format.ErrHeaderFull) {
		m.fail("change backing", err)
	}
}

// emptyStep makes the disk what the backing file is.
func (m *combined) emptyStep() {
	m.t.Helper()
	m.ops++
	m.fail("empty", m.img.MakeEmpty(context.Background()))
	clear(m.want)
	copy(m.want, m.back)
}

// checkStep checks an image that is in use; there is nothing to repair.
func (m *combined) checkStep(img *Image) {
	m.t.Helper()
	m.ops++
	var lines []string
	opts := block.CheckOptions{Report: func(s string) { lines = append(lines, s) }}
	if m.r.IntN(2) == 0 {
		opts.Repair = block.RepairAll
	}
	res, err := img.Check(context.Background(), opts)
	m.fail("check", err)
	if res.Corruptions+res.CheckErrors+res.Leaks+res.LeaksFixed+res.CorruptionsFixed > 0 {
		m.t.Fatalf("operation %d, check: %+v\n%s", m.ops, res, excerpt(lines))
	}
}

// verifyBitmaps requires that the bitmaps miss nothing.
func (m *combined) verifyBitmaps() {
	m.t.Helper()
	list := m.img.Bitmaps()
	if len(list) != len(m.bitmaps) {
		m.t.Fatalf("after %d operations: bitmaps %v, want %d", m.ops, list, len(m.bitmaps))
	}
	for _, b := range list {
		want := m.bitmaps[b.Name]
		if want == nil || b.Inconsistent || b.Enabled != want.enabled || b.Granularity != want.granularity {
			m.t.Fatalf("after %d operations: bitmap %+v", m.ops, b)
		}
		got := newBitModel(int64(len(m.want)), b.Granularity)
		for _, r := range dirtyRuns(m.t, m.img, b.Name) {
			got.set(r.Start, r.Length)
		}
		for i, set := range want.bits {
			if set && !got.bits[i] {
				m.t.Fatalf("after %d operations: bitmap %q misses bit %d, granularity %d", m.ops, b.Name, i, b.Granularity)
			}
		}
	}
}

// theirs lets stock write to the image and use its snapshots, and goes on with
// what that left.
func (m *combined) theirs() {
	m.t.Helper()
	m.verifyStock()
	path := filepath.Join(m.dir, "disk.qcow2")
	off, n := m.span()
	off, n = off/512*512, min((n+511)/512*512, 64<<10)
	n = min(n, int64(len(m.want))-off/512*512)
	cmds := []string{fmt.Sprintf("write -P 77 %d %d", off, n), "write -z 0 4096"}
	if m.img.crypt != nil {
		stockCrypt(m.t, "qemu-io", path, "-c", cmds[0], "-c", cmds[1])
	} else {
		qemutest.IO(m.t, "qcow2", path, cmds...)
	}
	for i := range n {
		m.want[off+i] = 77
	}
	clear(m.want[:4096])
	for _, b := range m.bitmaps {
		if b.enabled {
			b.set(off, n)
			b.set(0, 4096)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		m.t.Fatal(err)
	}
	if err := m.img.Close(); err != nil {
		m.t.Fatal(err)
	}
	m.file = fileOf(m.t, b)
	if m.ext != nil {
		if b, err = os.ReadFile(path + ".data"); err != nil {
			m.t.Fatal(err)
		}
		m.ext = fileOf(m.t, b)
	}
	m.open()
	m.verify()
	m.verifyBitmaps()
}

func fileOf(t testing.TB, b []byte) *memory.Disk {
	t.Helper()
	f := memory.NewFile()
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return f
}

// combinedSeeds are runs that once found something.
var combinedSeeds = []uint64{
	1000,                // encryption, external data file: discarded before the L2 entries said so
	1795431524671151875, // bitmaps, external data file: clusters of bits leaked
}

// combinedRuns is how many more there are, with seeds of their own.
const combinedRuns = 6

// TestCombined runs every change over images with any mix of features, against
// a model, and lets the stock tool check, read and write the images meanwhile.
func TestCombined(t *testing.T) {
	seed := newSeed(t)
	seeds := slices.Clone(combinedSeeds)
	for k := range uint64(combinedRuns) {
		seeds = append(seeds, seed+k)
	}
	for i, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := newCombined(t, seed)
			m.keeps = 15
			for k := range 240 {
				m.step()
				if k%20 == 19 {
					m.verify()
					m.verifyBitmaps()
				}
				if k == 120 && i%2 == 0 {
					m.theirs()
				}
			}
			m.verifyStock()
			m.verifyBitmaps()
			m.fail("close", m.img.Close())
		})
	}
}

// TestCombinedCrash replays power loss at random instants of such runs.
func TestCombinedCrash(t *testing.T) {
	seed := newSeed(t)
	seeds := slices.Clone(combinedSeeds)
	for k := range uint64(combinedRuns) {
		seeds = append(seeds, seed+k)
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { crashCombined(t, seed) })
	}
}

// combinedVersion is what an image held after an operation.
type combinedVersion struct {
	content []byte
	snaps   []modelSnapshot
	instant int
	flushed bool
}

func crashCombined(t *testing.T, seed uint64) {
	m := newCombined(t, seed)
	m.fail("close", m.img.Close())
	m.keeps, m.fixed, m.file = 8, true, m.file.Reopen()
	baseFile, baseExt := m.file.Clone(), memory.NewFile()
	recFile, recExt := record.Wrap(m.file), record.Wrap(memory.NewFile())
	if m.ext != nil {
		m.ext = m.ext.Reopen()
		baseExt, recExt = m.ext.Clone(), record.Wrap(m.ext)
	}
	var at instants
	tick := func() { at.list = append(at.list, [2]int{recFile.Len(), recExt.Len()}) }
	open := func(file, ext block.Node) (*Image, error) {
		n, err := (Driver{}).Open(context.Background(), file, format.OpenOptions{
			Writable: true, Filename: "crash", Secrets: testKeys, Values: m.c.runtime(), Opener: dataOpener{modelOpener{m.back}, ext},
		})
		if err != nil {
			return nil, err
		}
		return n.(*Image), nil
	}
	var err error
	m.img, err = open(clocked{recFile, tick}, clocked{recExt, tick})
	m.fail("open", err)
	tick()
	var versions []combinedVersion
	note := func(flushed bool) {
		versions = append(versions, combinedVersion{bytes.Clone(m.want), slices.Clone(m.snaps), len(at.list), flushed})
	}
	note(true)
	for range 50 {
		size, snaps := len(m.want), m.changes
		m.step()
		flushed := len(m.want) != size || m.changes != snaps
		if !flushed && m.r.IntN(5) == 0 {
			m.fail("flush", m.img.Flush())
			flushed = true
		}
		note(flushed)
	}
	m.fail("close", m.img.Close())
	note(false)
	r := rand.New(rand.NewPCG(seed, 78))
	fileLog, extLog := recFile.Log(), recExt.Log()
	for range 30 {
		i := r.IntN(len(at.list))
		n := at.list[i]
		file, ext := fileLog.Crash(baseFile, n[0], r), extLog.Crash(baseExt, n[1], r)
		img, err := open(file, ext)
		if err == nil {
			err = m.checkCrash(img, file, i+1, versions)
		}
		if err != nil {
			t.Fatalf("power loss after %d of %d events: %v", i, len(at.list), err)
		}
	}
}

// checkCrash checks what a power loss after n events left: before a repair and
// behind it.
func (m *combined) checkCrash(img *Image, file *memory.Disk, n int, versions []combinedVersion) error {
	first, last := 0, len(versions)-1
	for i, v := range versions {
		if v.instant <= n && v.flushed {
			first = i
		}
		if v.instant >= n {
			last = i
			break
		}
	}
	may := versions[first : last+1]
	var snaps [][]modelSnapshot
	for _, v := range may {
		snaps = append(snaps, v.snaps)
	}
	for _, repair := range []block.Repair{block.RepairNone, block.RepairAll, block.RepairNone} {
		var lines []string
		res, err := img.Check(context.Background(), block.CheckOptions{Repair: repair, Report: func(s string) { lines = append(lines, s) }})
		if err != nil || res.Corruptions+res.CheckErrors+res.CorruptionsFixed > 0 {
			return fmt.Errorf("check: %+v, %w\n%s", res, err, excerpt(lines))
		}
		got := make([]byte, img.Size())
		if _, err := img.ReadAt(got, 0); err != nil {
			return err
		}
		if err := allowed(got, may, func(v combinedVersion) []byte { return v.content }); err != nil {
			return fmt.Errorf("operations %d to %d: %w", first, last, err)
		}
		for _, b := range img.Bitmaps() {
			if !b.Inconsistent {
				_ = dirtyRuns(m.t, img, b.Name)
			}
		}
		if m.ext == nil {
			if err := requireSnapshots(file, m.opener(), snaps); err != nil {
				return fmt.Errorf("operations %d to %d: %w", first, last, err)
			}
		}
	}
	return img.Close()
}

// TestDowngradeUnflushed: a table that the disk has let go of, but whose
// refcount still counts it, has one user less.
func TestDowngradeUnflushed(t *testing.T) {
	file := memory.NewFile()
	if err := (Driver{}).Create(t.Context(), file, 64<<10, format.CreateOptions{Values: map[string]string{"cluster_size": "1k"}}); err != nil {
		t.Fatal(err)
	}
	img := openDisk(t, file)
	p := bytes.Repeat([]byte{7}, 32<<10)
	write := func() error { _, err := img.WriteAt(p, 0); return err }
	snapshot := func() error { _, err := img.CreateSnapshot(t.Context(), "one", time.Time{}); return err }
	for i, step := range []func() error{
		write,
		func() error { return img.WriteZeroes(0, 32<<10, 0) },
		snapshot, write,
		func() error {
			return img.Amend(t.Context(), format.AmendOptions{Values: map[string]string{"compat": "0.10"}})
		},
		img.Close,
	} {
		if err := step(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	if err := os.WriteFile(path, file.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	qemutest.RequireClean(t, path)
}

// TestEncryptedKeepsHost: what is discarded in place is not punched out of an
// encrypted image, where zeros of the file are not zeros for the guest before
// the L2 entries say so.
func TestEncryptedKeepsHost(t *testing.T) {
	base := createCrypt(t, 64<<10, encrypted["aes-4k"])
	rec := record.Wrap(base)
	n, err := (Driver{}).Open(t.Context(), rec, format.OpenOptions{
		Writable: true, Secrets: testKeys, Values: map[string]string{"encrypt.key-secret": "s", "discard-no-unref": "on"},
	})
	if err != nil {
		t.Fatal(err)
	}
	img := n.(*Image)
	p := bytes.Repeat([]byte{7}, 64<<10)
	if _, err := img.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(img.Flush(), img.Discard(0, 32<<10)); err != nil {
		t.Fatal(err)
	}
	state := openCrypt(t, base.Clone(), false) // a crash before anything is flushed
	got := make([]byte, 32<<10)
	if _, err := state.ReadAt(got, 0); err != nil || !bytes.Equal(got, p[:len(got)]) && !bytes.Equal(got, make([]byte, len(got))) {
		t.Errorf("after a discard that was not flushed neither the data nor zeros are read (%v)", err)
	}
}
