package image_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/qemutest"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

// stock makes an image with the stock tool.
func stock(t *testing.T, args ...string) {
	t.Helper()
	qemutest.Img(t, append([]string{"create", "-q"}, args...)...)
}

// content reads a whole disk.
func content(t *testing.T, name, format string) []byte {
	t.Helper()
	im, err := image.Open(t.Context(), name, image.Options{Format: format})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = im.Close() }()
	p := make([]byte, im.Node().Size())
	if _, err := im.Node().ReadAt(p, 0); err != nil && len(p) > 0 {
		t.Fatal(err)
	}
	return p
}

func TestOpenDeepMixedChain(t *testing.T) {
	dir := t.TempDir()
	name := func(i int) string { return filepath.Join(dir, fmt.Sprintf("l%d", i)) }
	stock(t, "-f", "raw", name(0), "8M")
	qemutest.IO(t, "raw", name(0), "write -P 9 0 1M")
	format := "raw"
	for i := 1; i <= 60; i++ {
		if err := image.Overlay(t.Context(), name(i), image.OverlayOptions{Base: fmt.Sprintf("l%d", i-1), BaseFormat: format}); err != nil {
			t.Fatal(err)
		}
		format = "qcow2"
		if i%10 == 0 {
			qemutest.IO(t, "qcow2", name(i), fmt.Sprintf("write -P %d %dM 64k", i, i/10))
		}
	}
	im, err := image.Open(t.Context(), name(60), image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	layers := im.Layers()
	if len(layers) != 61 || layers[60].Format != "raw" || layers[60].Name != name(0) || layers[0].Probed == layers[60].Probed {
		t.Errorf("%d layers, last %+v", len(layers), layers[len(layers)-1])
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "out")
	if err := image.Convert(t.Context(), []string{name(60)}, out, image.ConvertOptions{SourceFormat: "qcow2"}); err != nil {
		t.Fatal(err)
	}
	qemutest.RequireSame(t, "qcow2", name(60), "raw", out)
}

func TestBackingLoop(t *testing.T) {
	dir := t.TempDir()
	at := func(n string) string { return filepath.Join(dir, n) }
	stock(t, "-f", "qcow2", "-u", "-b", "link", "-F", "qcow2", at("a"), "1M")
	stock(t, "-f", "qcow2", "-u", "-b", "a", "-F", "qcow2", at("b"), "1M")
	if err := os.Link(at("b"), at("hard")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("hard", at("link")); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"a", "b", "hard", "link"} {
		_, err := image.Open(t.Context(), at(n), image.Options{})
		if !errors.Is(err, block.ErrBackingLoop) {
			t.Errorf("%s: %v", n, err)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	at := func(n string) string { return filepath.Join(dir, n) }
	stock(t, "-f", "raw", at("raw"), "1M")
	stock(t, "-f", "qcow2", "-u", "-b", "gone", "-F", "raw", at("over"), "1M")
	for _, c := range []struct {
		name, format string
		want         error
	}{
		{at("none"), "", fs.ErrNotExist},
		{at("raw"), "qcow2", block.ErrNotFormat},
		{at("raw"), "vmdk", block.ErrUnknownFormat},
		{dir, "", block.ErrUnsupported},
		{at("over"), "", fs.ErrNotExist},
		{"nbd:host", "", block.ErrUnsupported},
		{`json:{"driver":"qcow2"}`, "", block.ErrUnsupported},
	} {
		_, err := image.Open(t.Context(), c.name, image.Options{Format: c.format})
		if !errors.Is(err, c.want) {
			t.Errorf("%s as %q: %v, want %v", c.name, c.format, err, c.want)
		}
	}
	_, err := image.Open(t.Context(), at("over"), image.Options{Untrusted: true})
	if !errors.Is(err, block.ErrUntrusted) {
		t.Errorf("untrusted: %v", err)
	}
	im, err := image.Open(t.Context(), at("over"), image.Options{NoBacking: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestProbedRawStaysRaw: through an image whose format was guessed, nobody
// may write what makes the next guess another one.
func TestProbedRawStaysRaw(t *testing.T) {
	dir := t.TempDir()
	name, evil := filepath.Join(dir, "disk"), filepath.Join(dir, "evil")
	stock(t, "-f", "raw", name, "1M")
	stock(t, "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", evil, "1M")
	header, err := os.ReadFile(evil)
	if err != nil {
		t.Fatal(err)
	}
	im, err := image.Open(t.Context(), name, image.Options{Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = im.Close() }()
	if !im.Layers()[0].ProbedRaw() {
		t.Error("not reported as probed raw")
	}
	w, ok := block.As[block.Writer](im.Node())
	if !ok {
		t.Fatal("not writable")
	}
	for off, p := range map[int64][]byte{0: header[:512], 2: header[2:512]} {
		if off == 2 {
			if _, err := w.WriteAt(header[:2], 0); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := w.WriteAt(p, off); !errors.Is(err, block.ErrReadOnly) {
			t.Errorf("write of a header at %d: %v", off, err)
		}
	}
	if _, err := w.WriteAt(bytes.Repeat([]byte{1}, 512), 0); err != nil {
		t.Errorf("write of other bytes: %v", err)
	}
	if _, err := w.WriteAt(header[:512], 512); err != nil {
		t.Errorf("write behind the first sector: %v", err)
	}
	explicit := filepath.Join(dir, "explicit")
	stock(t, "-f", "raw", explicit, "1M")
	im2, err := image.Open(t.Context(), explicit, image.Options{Writable: true, Format: "raw"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = im2.Close() }()
	w2, _ := block.As[block.Writer](im2.Node())
	if _, err := w2.WriteAt(header[:512], 0); err != nil {
		t.Errorf("explicit raw: %v", err)
	}
}

func TestOverlay(t *testing.T) {
	dir := t.TempDir()
	base, over := filepath.Join(dir, "base.qcow2"), filepath.Join(dir, "over.qcow2")
	stock(t, "-f", "qcow2", base, "3G")
	if err := image.Overlay(t.Context(), over, image.OverlayOptions{Base: base, BaseFormat: "qcow2", Flush: true}); err != nil {
		t.Fatal(err)
	}
	if err := image.Overlay(t.Context(), over, image.OverlayOptions{Base: base, BaseFormat: "qcow2"}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over an existing file: %v", err)
	}
	if err := image.Overlay(t.Context(), over+"2", image.OverlayOptions{Base: base}); !errors.Is(err, image.ErrNoBackingFormat) {
		t.Errorf("without a format: %v", err)
	}
	infos, err := image.Inspect(t.Context(), over, image.InfoOptions{Chain: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(infos) != 2 || infos[0].VirtualSize != 3<<30 || infos[0].BackingFile != base || infos[0].DiskSize > 16*kib {
		t.Errorf("%+v", infos)
	}
	qemutest.RequireClean(t, over)
}

// disk makes a qcow2 image of size bytes with random runs of data and zeros,
// and returns what the guest reads.
func disk(t *testing.T, name string, size int64, seed uint64) []byte {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 1))
	want := make([]byte, size)
	im, err := image.Open(t.Context(), name, image.Options{Format: "qcow2", Writable: true})
	if err != nil {
		t.Fatal(err)
	}
	w, _ := block.As[block.Writer](im.Node())
	for range 40 {
		off := rnd.Int64N(size)
		p := make([]byte, min(rnd.Int64N(200*kib), size-off))
		if rnd.IntN(3) > 0 {
			for i := range p {
				p[i] = byte(rnd.Uint32())
			}
		}
		copy(want[off:], p)
		if _, err := w.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	return want
}

func TestConvertWays(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src.qcow2")
	const size = 9*mib + 512
	stock(t, "-f", "qcow2", src, fmt.Sprint(size))
	want := disk(t, src, size, 7)
	for i, o := range []image.ConvertOptions{
		{}, {NoSparse: true}, {Sparse: 512}, {Sparse: mib}, {Workers: 1}, {Workers: 16, OutOfOrder: true}, {CopyRange: true}, {Salvage: true},
		{Cache: image.CacheUnsafe}, {Cache: image.CacheDirectsync, SourceCache: image.CacheNone},
		{Format: "qcow2"}, {Format: "qcow2", Compress: true}, {Format: "qcow2", Compress: true, NoSparse: true, Workers: 3},
		{Format: "qcow2", Values: map[string]string{"cluster_size": "512"}},
		{Format: "qcow2", Values: map[string]string{"cluster_size": "2097152"}, OutOfOrder: true},
		{Format: "qcow2", Compress: true, Values: map[string]string{"compression_type": "zstd", "cluster_size": "4096"}},
	} {
		out := filepath.Join(dir, fmt.Sprint("out", i))
		var last int64
		o.Progress = func(done, total int64) {
			if done < last || done > total {
				t.Errorf("progress %d of %d after %d", done, total, last)
			}
			last = done
		}
		if err := image.Convert(t.Context(), []string{src}, out, o); err != nil {
			t.Errorf("%d: %v", i, err)
			continue
		}
		if last != size {
			t.Errorf("%d: progress ended at %d of %d", i, last, int64(size))
		}
		if got := content(t, out, o.Format); !bytes.Equal(got, want) {
			t.Errorf("%d: content differs", i)
		}
		if o.Format == "qcow2" {
			qemutest.RequireClean(t, out)
			qemutest.RequireSame(t, "qcow2", src, "qcow2", out)
		}
	}
}

// TestConvertIntoLarger: what a larger target holds behind the copy is kept.
func TestConvertIntoLarger(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	if err := os.WriteFile(src, bytes.Repeat([]byte{5}, 100*kib), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, o := range []image.ConvertOptions{{}, {Format: "qcow2"}, {Format: "qcow2", Compress: true}, {NoSparse: true}} {
		out := filepath.Join(dir, "out")
		format := cmp.Or(o.Format, "raw")
		stock(t, "-f", format, out, "1M")
		qemutest.IO(t, format, out, "write -P 7 0 1M")
		want := content(t, out, format)
		copy(want, bytes.Repeat([]byte{5}, 100*kib))
		o.NoCreate, o.SourceFormat = true, "raw"
		if err := image.Convert(t.Context(), []string{src}, out, o); err != nil {
			t.Errorf("%+v: %v", o, err)
			continue
		}
		if !bytes.Equal(content(t, out, format), want) {
			t.Errorf("%+v: content differs", o)
		}
	}
}

// TestConvertOntoBacking: a new base that is not the source's own one takes
// no difference away.
func TestConvertOntoBacking(t *testing.T) {
	dir := t.TempDir()
	at := func(n string) string { return filepath.Join(dir, n) }
	const size = 4 * mib
	stock(t, "-f", "qcow2", at("base"), fmt.Sprint(size))
	disk(t, at("base"), size, 1)
	stock(t, "-f", "qcow2", at("other"), fmt.Sprint(size-mib))
	disk(t, at("other"), size-mib, 2)
	stock(t, "-f", "qcow2", "-b", at("base"), "-F", "qcow2", at("mid"))
	disk(t, at("mid"), size, 3)
	stock(t, "-f", "qcow2", "-b", at("mid"), "-F", "qcow2", at("top"), fmt.Sprint(size+mib))
	qemutest.IO(t, "qcow2", at("top"), "write -z 0 128k", "write -P 3 2M 64k")
	if err := image.Convert(t.Context(), []string{at("base")}, at("copy"), image.ConvertOptions{Format: "qcow2"}); err != nil {
		t.Fatal(err)
	}
	for _, base := range []string{"base", "mid", "other", "copy"} {
		for _, compress := range []bool{false, true} {
			out := at(fmt.Sprint("on-", base, compress))
			o := image.ConvertOptions{Format: "qcow2", BackingFile: at(base), BackingFormat: "qcow2", Compress: compress}
			if err := image.Convert(t.Context(), []string{at("top")}, out, o); err != nil {
				t.Fatalf("%s: %v", base, err)
			}
			qemutest.RequireClean(t, out)
			qemutest.RequireSame(t, "qcow2", at("top"), "qcow2", out)
		}
	}
	thin, err := os.Stat(at("on-copyfalse"))
	if err != nil {
		t.Fatal(err)
	}
	thick, err := os.Stat(at("on-otherfalse"))
	if err != nil {
		t.Fatal(err)
	}
	if thin.Size() >= thick.Size() {
		t.Errorf("on a copy of its base the overlay takes %d bytes, on another one %d", thin.Size(), thick.Size())
	}
}

// TestConvertIntoOverlay: what an existing overlay holds is replaced even where
// the source falls through to the base that both share.
func TestConvertIntoOverlay(t *testing.T) {
	dir := t.TempDir()
	at := func(n string) string { return filepath.Join(dir, n) }
	const size = 2 * mib
	stock(t, "-f", "qcow2", at("base"), fmt.Sprint(size))
	disk(t, at("base"), size, 1)
	stock(t, "-f", "qcow2", "-b", at("base"), "-F", "qcow2", at("src"))
	qemutest.IO(t, "qcow2", at("src"), "write -P 3 1M 64k", "write -z 1200k 64k")
	for _, o := range []image.ConvertOptions{{}, {Compress: true}, {BackingFile: at("base"), BackingFormat: "qcow2"}, {BackingFile: at("base"), BackingFormat: "qcow2", Compress: true}} {
		_ = os.Remove(at("out")) // of the case before
		stock(t, "-f", "qcow2", "-b", at("base"), "-F", "qcow2", at("out"))
		qemutest.IO(t, "qcow2", at("out"), "write -P 7 0 900k", "write -z 1M 200k", "write -P 8 1900k 50k")
		o.NoCreate, o.Format = true, "qcow2"
		if err := image.Convert(t.Context(), []string{at("src")}, at("out"), o); err != nil {
			t.Errorf("%+v: %v", o, err)
			continue
		}
		qemutest.RequireClean(t, at("out"))
		qemutest.RequireSame(t, "qcow2", at("src"), "qcow2", at("out"))
	}
}

// TestConvertFailureLeavesNothing: a target that could not be completed goes.
func TestConvertFailureLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	src, out := filepath.Join(dir, "src.qcow2"), filepath.Join(dir, "out")
	stock(t, "-f", "qcow2", src, "64M")
	qemutest.IO(t, "qcow2", src, "write -P 1 0 64M")
	before, err := os.ReadFile(src)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = image.Convert(ctx, []string{src}, out, image.ConvertOptions{Progress: func(done, _ int64) {
		if done > 4*mib {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled: %v", err)
	}
	if _, err := os.Stat(out); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the unfinished target is there: %v", err)
	}
	for _, o := range []image.ConvertOptions{{Format: "raw", Compress: true}, {Format: "vmdk"}, {Values: map[string]string{"nonsense": "1"}}} {
		if err := image.Convert(t.Context(), []string{src}, out, o); err == nil {
			t.Errorf("%+v: no error", o)
		}
		if _, err := os.Stat(out); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%+v: target is there: %v", o, err)
		}
	}
	for _, o := range []image.ConvertOptions{{Format: "qcow2"}, {Format: "qcow2", SourceNoLock: true}} {
		if err := image.Convert(t.Context(), []string{src}, src, o); !errors.Is(err, block.ErrInUse) && !errors.Is(err, image.ErrSourceIsTarget) {
			t.Errorf("onto itself: %v", err)
		}
	}
	after, err := os.ReadFile(src)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the source was changed: %v", err)
	}
}

// partitionDisk writes a partition table with util-linux's tool.
func partitionDisk(t *testing.T, name, script string) {
	t.Helper()
	cmd := exec.Command(qemutest.Path(t, "sfdisk"), "-q", name)
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
}

func TestResizeKeepsPartitions(t *testing.T) {
	dir := t.TempDir()
	at := func(n string) string { return filepath.Join(dir, n) }
	for _, label := range []string{"dos", "gpt"} {
		raw := at(label)
		stock(t, "-f", "raw", raw, "64M")
		partitionDisk(t, raw, "label: "+label+"\nstart=1M, size=20M\nstart=30M, size=20M\n")
		for _, format := range []string{"raw", "qcow2"} {
			name := at(label + "." + format)
			qemutest.Img(t, "convert", "-f", "raw", "-O", format, raw, name)
			want := content(t, name, format)
			resize := func(o image.ResizeOptions) error {
				o.Format = format
				_, err := image.Resize(t.Context(), name, o)
				return err
			}
			var cut *image.CutError
			if err := resize(image.ResizeOptions{Size: 40 * mib, Shrink: true}); !errors.As(err, &cut) || cut.Partition.Number != 2 {
				t.Fatalf("%s, %s: cut in a partition: %v", label, format, err)
			}
			if err := resize(image.ResizeOptions{Size: 40 * mib}); !errors.Is(err, image.ErrNeedsShrink) {
				t.Errorf("without shrink: %v", err)
			}
			if got := content(t, name, format); !bytes.Equal(got, want) {
				t.Fatal("a refused resize changed the disk")
			}
			if err := resize(image.ResizeOptions{Size: 51 * mib, Shrink: true}); err != nil {
				t.Errorf("%s, %s: behind the last partition: %v", label, format, err)
			}
			if got := content(t, name, format); !bytes.Equal(got, want[:51*mib]) {
				t.Error("shrinking changed what is left")
			}
			if label == "gpt" {
				continue // its backup is gone now, and the primary is enough
			}
			if err := resize(image.ResizeOptions{Size: 11 * mib, Change: image.SizeShrink, Shrink: true, Force: true}); err != nil {
				t.Errorf("forced: %v", err)
			}
		}
	}
}

// TestCreateKeepsExisting: what Create refuses, it refuses before the file that
// is there is made empty.
func TestCreateKeepsExisting(t *testing.T) {
	dir := t.TempDir()
	at := func(n string) string { return filepath.Join(dir, n) }
	for _, name := range []string{"base", "mid"} {
		stock(t, "-f", "qcow2", at(name), "1M")
		disk(t, at(name), mib, 5)
	}
	qemutest.Img(t, "rebase", "-u", "-b", "base", "-F", "qcow2", at("mid"))
	if err := os.Symlink("base", at("link")); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(at("base"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		o    image.CreateOptions
		want error
	}{
		{"base", image.CreateOptions{Format: "qcow2", Size: mib, Values: map[string]string{"cluster_size": "5"}}, block.ErrUnsupported},
		{"base", image.CreateOptions{Format: "qcow2", Size: mib, Values: map[string]string{"nonsense": "5"}}, block.ErrUnsupported},
		{"base", image.CreateOptions{Format: "qcow2", Size: 1 << 62}, block.ErrUnsupported},
		{"base", image.CreateOptions{Format: "raw", Size: mib, Values: map[string]string{"preallocation": "metadata"}}, block.ErrUnsupported},
		{"base", image.CreateOptions{Format: "qcow2", Size: mib, BackingFile: "base", BackingFormat: "qcow2"}, block.ErrBackingLoop},
		{"link", image.CreateOptions{Format: "qcow2", Size: mib, BackingFile: "./base", BackingFormat: "qcow2"}, block.ErrBackingLoop},
		{"base", image.CreateOptions{Format: "qcow2", Size: mib, BackingFile: "link", BackingFormat: "qcow2", Unchecked: true}, block.ErrBackingLoop},
		{"base", image.CreateOptions{Format: "qcow2", BackingFile: "mid", BackingFormat: "qcow2", SizeFromBacking: true}, block.ErrBackingLoop},
	} {
		if err := image.Create(t.Context(), at(c.name), c.o); !errors.Is(err, c.want) {
			t.Errorf("%s, %+v: %v", c.name, c.o, err)
		}
		if now, err := os.ReadFile(at("base")); err != nil || !bytes.Equal(now, before) {
			t.Fatalf("%s, %+v: the file is no longer what it was, %v", c.name, c.o, err)
		}
	}
}

func TestCreateRefusals(t *testing.T) {
	dir := t.TempDir()
	at := func(n string) string { return filepath.Join(dir, n) }
	stock(t, "-f", "qcow2", at("base"), "1M")
	for _, c := range []struct {
		o    image.CreateOptions
		want error
	}{
		{image.CreateOptions{Format: "vmdk"}, block.ErrUnknownFormat},
		{image.CreateOptions{Format: "raw", BackingFile: "base", BackingFormat: "qcow2"}, block.ErrUnsupported},
		{image.CreateOptions{Format: "qcow2", BackingFile: "base"}, image.ErrNoBackingFormat},
		{image.CreateOptions{Format: "qcow2", BackingFile: "gone", BackingFormat: "raw"}, fs.ErrNotExist},
		{image.CreateOptions{Format: "qcow2", SizeFromBacking: true}, image.ErrNoSize},
		{image.CreateOptions{Format: "qcow2", Size: -1}, block.ErrOutOfRange},
		{image.CreateOptions{Format: "qcow2", Size: mib, Values: map[string]string{"cluster_size": "5"}}, nil},
	} {
		err := image.Create(t.Context(), at("new"), c.o)
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%+v: %v, want %v", c.o, err, c.want)
		}
		if _, err := os.Stat(at("new")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%+v: the file is there", c.o)
		}
	}
	if err := image.Create(t.Context(), at("new"), image.CreateOptions{Format: "qcow2", BackingFile: "base", BackingFormat: "qcow2", SizeFromBacking: true}); err != nil {
		t.Fatal(err)
	}
	infos, err := image.Inspect(t.Context(), at("new"), image.InfoOptions{})
	if err != nil || infos[0].VirtualSize != mib || !strings.HasSuffix(infos[0].FullBackingFile, "/base") {
		t.Errorf("%+v, %v", infos, err)
	}
}

func TestCheckAndMap(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "a.qcow2")
	stock(t, "-f", "qcow2", name, "4M")
	qemutest.IO(t, "qcow2", name, "write -P 1 1M 64k", "write -z 2M 64k")
	report, err := image.Check(t.Context(), name, image.CheckOptions{})
	if err != nil || report.Corruptions != 0 || report.Leaks != 0 || report.Format != "qcow2" {
		t.Errorf("%+v, %v", report, err)
	}
	im, err := image.Open(t.Context(), name, image.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = im.Close() }()
	var kinds []string
	var end int64
	for e, err := range im.Map(t.Context(), 0, -1) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Start != end {
			t.Errorf("gap before %+v", e)
		}
		end = e.Start + e.Length
		kinds = append(kinds, fmt.Sprintf("%dK data=%t zero=%t", e.Length/kib, e.Data, e.Zero))
	}
	want := "1024K data=false zero=true|64K data=true zero=false|960K data=false zero=true|64K data=false zero=true|1984K data=false zero=true"
	if got := strings.Join(kinds, "|"); got != want || end != 4*mib {
		t.Errorf("got %s", got)
	}
	raw := filepath.Join(dir, "raw")
	stock(t, "-f", "raw", raw, "1M")
	if _, err := image.Check(t.Context(), raw, image.CheckOptions{Format: "raw"}); !errors.Is(err, image.ErrNoCheck) {
		t.Errorf("raw: %v", err)
	}
}
