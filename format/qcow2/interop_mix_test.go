package qcow2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/blocktest"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/format/raw"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/protocol/file"
)

// mixImage is an image file of a mix and what has to be in it.
type mixImage struct {
	t        *testing.T
	m        mix
	v        variant
	dir      string
	base     []byte // the backing file, nil for none
	want     []byte
	snapshot []byte    // the disk at the snapshot, nil for none
	bits     *bitModel // what the bitmap has to hold at least, nil for none
}

const (
	mixSnapshot, mixBitmap = "s0", "b0"
	mixGranularity         = 4096
)

// newMix makes the files that an image needs, not the image, and says what is
// to be written to it first.
func newMix(t *testing.T, m mix) *mixImage {
	x := &mixImage{t: t, m: m, v: m.variant(), dir: memoryDir(t)}
	x.want = make([]byte, x.v.size())
	if m.has("backing") {
		x.base = make([]byte, x.v.size()/2/512*512)
		blocktest.Pattern(x.base, 3)
		writeRaw(t, x.path("base"), x.base)
		copy(x.want, x.base)
	}
	for _, at := range []int64{0, 1, 2, 6, x.v.size() / x.v.cluster} {
		compressible(x.cluster(at), x.v.cluster, at)
	}
	writeRaw(t, x.path("want"), x.want)
	return x
}

func (x *mixImage) path(name string) string { return filepath.Join(x.dir, name) }

func (x *mixImage) cluster(at int64) []byte {
	return x.want[at*x.v.cluster : min((at+1)*x.v.cluster, x.v.size())]
}

// values are the creation options.
func (x *mixImage) values() map[string]string {
	all := x.v.values()
	all["refcount_bits"] = fmt.Sprint(x.v.bits) // also where version 2 refuses it
	if x.v.packing != "none" {
		all["compression_type"] = x.v.packing
	}
	for _, axis := range []string{"lazy_refcounts", "preallocation"} {
		if x.m.has(axis) {
			all[axis] = x.m.get(axis)
		}
	}
	if x.m.has("data_file") {
		all["data_file"] = x.path("data")
		if x.m.is("data_file", "raw") {
			all["data_file_raw"] = "on"
		}
	}
	if x.m.has("encryption") {
		all["encrypt.format"], all["encrypt.key-secret"] = x.m.get("encryption"), "s"
		if x.m.is("encryption", "luks") {
			all["encrypt.iter-time"] = "10"
		}
	}
	return all
}

// OpenBacking implements [format.Opener].
func (x *mixImage) OpenBacking(ctx context.Context, name, _ string) (block.Node, error) {
	f, err := file.Open(name, file.Options{})
	if err != nil {
		return nil, err
	}
	return raw.Driver{}.Open(ctx, f, format.OpenOptions{Filename: name})
}

// OpenData implements [format.Opener].
func (x *mixImage) OpenData(_ context.Context, name string, writable bool) (block.Node, error) {
	return file.Open(name, file.Options{Writable: writable, Growable: writable})
}

// open opens the image with our driver.
func (x *mixImage) open(writable bool) *Image {
	x.t.Helper()
	f, err := file.Open(x.path("image"), file.Options{Writable: writable, Growable: writable})
	if err != nil {
		x.t.Fatal(err)
	}
	opts := format.OpenOptions{Writable: writable, Filename: "image", Opener: x, Secrets: testKeys}
	if x.m.has("encryption") {
		opts.Values = map[string]string{"encrypt.key-secret": "s"}
	}
	n, err := Driver{}.Open(x.t.Context(), f, opts)
	if err != nil {
		x.t.Fatal(errors.Join(err, f.Close()))
	}
	return n.(*Image)
}

// create makes the empty image with our driver.
func (x *mixImage) create() (err error) {
	f, err := file.Create(x.path("image"), file.Options{Growable: true})
	if err != nil {
		return err
	}
	opts := format.CreateOptions{Values: x.values(), Filename: "image", Secrets: testKeys}
	if x.base != nil {
		opts.BackingFile, opts.BackingFormat = x.path("base"), "raw"
	}
	if x.m.has("data_file") {
		data, err := file.Create(x.path("data"), file.Options{Growable: true})
		if err != nil {
			return errors.Join(err, f.Close())
		}
		defer func() { _ = data.Close() }()
		opts.Data = data
	}
	return errors.Join(Driver{}.Create(x.t.Context(), f, x.v.size(), opts), f.Close())
}

// ours makes the image with our driver. The error is what it refuses.
func (x *mixImage) ours() error {
	x.t.Helper()
	if err := x.create(); err != nil {
		return err
	}
	img := x.open(true)
	err := x.writeOurs(img)
	return errors.Join(err, img.Close())
}

func (x *mixImage) writeOurs(img *Image) error {
	for _, at := range []int64{0, 1, 2, 6, x.v.size() / x.v.cluster} {
		var err error
		if x.v.packing == "none" {
			_, err = img.WriteAt(x.cluster(at), at*x.v.cluster)
		} else {
			err = img.WriteCompressed(x.cluster(at), at*x.v.cluster)
		}
		if err != nil {
			return err
		}
	}
	if x.m.has("snapshots") {
		if _, err := img.CreateSnapshot(x.t.Context(), mixSnapshot, time.Time{}); err != nil {
			return err
		}
	}
	if x.m.has("bitmaps") {
		return img.AddBitmap(mixBitmap, format.BitmapOptions{Granularity: mixGranularity})
	}
	return nil
}

// arguments name the image to a stock tool.
func (x *mixImage) arguments() []string {
	if x.m.has("encryption") {
		return stockCryptArgs(x.path("image"))
	}
	return []string{"--image-opts", "driver=qcow2,file.filename=" + x.path("image")}
}

// stock makes the image with the stock tools, or what they write into an image
// that we created. The text is what they refuse.
func (x *mixImage) stock(created bool) (refused string) {
	x.t.Helper()
	convert := []string{"convert", "-f", "raw"}
	if x.v.packing != "none" {
		convert = append(convert, "-c")
	}
	args := x.arguments()
	if created {
		if err := x.create(); err != nil {
			x.t.Fatal(err)
		}
		args[len(args)-2] = "--target-image-opts"
		convert = append(append(convert, "-n"), args[:len(args)-1]...)
		convert = append(convert, x.path("want"), args[len(args)-1])
	} else {
		convert = append(append(convert, "-O", "qcow2"), args[:len(args)-2]...)
		for k, v := range maps.All(x.values()) {
			convert = append(convert, "-o", k+"="+v)
		}
		if x.base != nil {
			convert = append(convert, "-B", x.path("base"), "-F", "raw")
		}
		convert = append(convert, x.path("want"), x.path("image"))
	}
	lines := [][]string{convert}
	if x.m.has("snapshots") {
		lines = append(lines, append([]string{"snapshot", "-c", mixSnapshot}, x.arguments()...))
	}
	if x.m.has("bitmaps") {
		lines = append(lines, append(append([]string{"bitmap", "--add", "-g", fmt.Sprint(mixGranularity)}, x.arguments()...), mixBitmap))
	}
	for _, line := range lines {
		r := qemutest.Run(x.t, "qemu-img", line...)
		for strings.Contains(r.Stderr, "Unable to get accurate CPU usage") {
			// On a busy machine stock gives up measuring how fast it is.
			r = qemutest.Run(x.t, "qemu-img", line...)
		}
		if r.Status != 0 {
			return r.Stderr
		}
	}
	return ""
}

// made notes what the snapshot and the bitmap hold from now on.
func (x *mixImage) made() {
	if x.m.has("snapshots") {
		x.snapshot = bytes.Clone(x.want)
	}
	if x.m.has("bitmaps") {
		x.bits = newBitModel(x.v.size(), mixGranularity)
	}
}

// changeOurs changes the image in every way with our driver.
func (x *mixImage) changeOurs() {
	x.t.Helper()
	before := bytes.Clone(x.want)
	img := x.open(true)
	change(x.t, img, x.v, x.want)
	blocktest.RequireContent(x.t, img, x.want)
	closeNode(x.t, img)
	for i := range before {
		if x.bits != nil && before[i] != x.want[i] {
			x.bits.set(int64(i), 1)
		}
	}
}

// changeStock changes the image with stock qemu-io.
func (x *mixImage) changeStock() {
	x.t.Helper()
	cmds, runs := stockChange(x.v, x.want)
	args := x.arguments()
	for _, c := range cmds {
		args = append(args, "-c", c)
	}
	r := qemutest.Run(x.t, "qemu-io", args...)
	if r.Status != 0 || strings.Contains(r.Stdout+r.Stderr, "failed") {
		x.t.Fatalf("qemu-io %q: %s%s", cmds, r.Stdout, r.Stderr)
	}
	for _, run := range runs {
		if x.bits != nil {
			x.bits.set(run[0], run[1])
		}
	}
}

// verifyOurs has our driver check and read all there is. With exact, the
// bitmap holds what it must and nothing else.
func (x *mixImage) verifyOurs(exact bool) {
	x.t.Helper()
	img := x.open(false)
	defer closeNode(x.t, img)
	var lines []string
	res, err := img.Check(x.t.Context(), block.CheckOptions{Report: func(l string) { lines = append(lines, l) }})
	if err != nil || res.Corruptions+res.CheckErrors+res.Leaks > 0 {
		x.t.Fatalf("our check: %+v, %v\n%s", res, err, strings.Join(lines, "\n"))
	}
	blocktest.RequireContent(x.t, img, x.want)
	blocktest.RequireExtents(x.t, img, 0, img.Size())
	if x.snapshot != nil {
		d, err := img.OpenSnapshot(x.t.Context(), 0)
		if err != nil {
			x.t.Fatal(err)
		}
		blocktest.RequireContent(x.t, d, x.snapshot)
		closeNode(x.t, d)
	}
	if x.bits != nil {
		x.takeBits(img, exact)
	}
}

// takeBits compares the bitmap with what it must hold, and takes it as that.
func (x *mixImage) takeBits(img *Image, exact bool) {
	x.t.Helper()
	list := img.Bitmaps()
	if len(list) != 1 || list[0].Name != mixBitmap || list[0].Granularity != mixGranularity || !list[0].Enabled || list[0].Inconsistent {
		x.t.Fatalf("bitmaps %+v", list)
	}
	got := newBitModel(x.v.size(), mixGranularity)
	for _, r := range dirtyRuns(x.t, img, mixBitmap) {
		got.set(r.Start, r.Length)
	}
	for i, set := range x.bits.bits {
		if set && !got.bits[i] || exact && got.bits[i] != set {
			x.t.Fatalf("the bit at %d is %v", int64(i)*mixGranularity, got.bits[i])
		}
	}
	if !slices.Contains(got.bits, false) {
		x.t.Fatal("the bitmap holds all")
	}
	x.bits = got
}

// verifyStock has the stock tools check and read all there is.
func (x *mixImage) verifyStock() {
	x.t.Helper()
	writeRaw(x.t, x.path("want"), x.want)
	for _, line := range [][]string{
		append([]string{"check", "-q"}, x.arguments()...),
		append(append([]string{"compare"}, x.arguments()...), "driver=raw,file.filename="+x.path("want")),
	} {
		if r := qemutest.Run(x.t, "qemu-img", line...); r.Status != 0 {
			x.t.Fatalf("stock %s: status %d: %s%s", line[0], r.Status, r.Stdout, r.Stderr)
		}
	}
	if x.m.is("data_file", "raw") && !x.m.has("encryption") {
		data := readFile(x.t, x.path("data"))
		n := min(len(data), len(x.want))
		requireBytes(x.t, "the raw data file", data[:n], x.want)
		// Stock zeroes up to the end of the last cluster.
		requireBytes(x.t, "the raw data file behind the disk", data[n:], make([]byte, len(data)-n))
	}
	if x.snapshot != nil {
		qemutest.Img(x.t, append(append([]string{"convert", "-O", "raw", "-l", mixSnapshot}, x.arguments()...), x.path("snapshot"))...)
		requireBytes(x.t, "the snapshot that stock reads", readFile(x.t, x.path("snapshot")), x.snapshot)
		if err := os.Remove(x.path("snapshot")); err != nil {
			x.t.Fatal(err)
		}
	}
	if x.bits != nil {
		models := map[string]*bitModel{mixBitmap: x.bits}
		blockdev := ""
		if x.m.has("encryption") {
			blockdev = ",encrypt.key-secret=s,encrypt.format=" + x.m.get("encryption")
		}
		requireHashesOf(x.t, x.path("image"), blockdev, models, x.v.size())
	}
}

// requireBytes says where two disks differ.
func requireBytes(t *testing.T, what string, got, want []byte) {
	t.Helper()
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Fatalf("%s has %#x at %d, want %#x", what, got[i], i, want[i])
		}
	}
	if len(got) != len(want) {
		t.Fatalf("%s has %d bytes, want %d", what, len(got), len(want))
	}
}

// TestInteropMixes makes images with every pair of features that those of
// TestInteropOurs and TestInteropStock do not have, and with every combination
// of encryption, data file, snapshots and bitmaps: by ours, then read, checked
// and changed by the stock tools, then read by ours; and by the stock tools,
// then read and changed by ours, then read by the stock tools.
func TestInteropMixes(t *testing.T) {
	// The stock tools measure the machine for more than a second for each
	// LUKS header, whatever the iteration time. They make one with each kind
	// of data file; the other headers are ours, all else in them is theirs.
	headers := map[string]bool{}
	for i, m := range mixes() {
		created := m.is("encryption", "luks") && headers[m.get("data_file")]
		if m.is("encryption", "luks") {
			headers[m.get("data_file")] = true
		}
		t.Run(fmt.Sprint("ours ", i), func(t *testing.T) {
			t.Parallel()
			t.Log(m)
			x := newMix(t, m)
			if err := x.ours(); err != nil {
				t.Fatal(err)
			}
			x.made()
			x.changeOurs()
			x.verifyOurs(false)
			x.verifyStock()
			x.changeStock()
			x.verifyOurs(true)
		})
		t.Run(fmt.Sprint("stock ", i), func(t *testing.T) {
			t.Parallel()
			t.Log(m)
			x := newMix(t, m)
			if refused := x.stock(created); refused != "" {
				t.Fatal(refused)
			}
			x.made()
			x.changeStock()
			x.verifyOurs(true)
			x.changeOurs()
			x.verifyOurs(false)
			x.verifyStock()
		})
	}
}

// TestInteropRefused holds that the pairs of features with which no image is
// made above are those that the stock tools refuse, and that we do too.
func TestInteropRefused(t *testing.T) {
	_, forbidden := pairs()
	for _, p := range forbidden {
		m := p.mix()
		t.Run(m.String(), func(t *testing.T) {
			t.Parallel()
			if newMix(t, m).stock(false) == "" {
				t.Error("the stock tools make it")
			}
			if newMix(t, m).ours() == nil {
				t.Error("we make it")
			}
		})
	}
}
