package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/blocktest"
	"github.com/lamina-vm/lamina/block/record"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// cryptKeys are secrets by id.
type cryptKeys map[string]string

func (k cryptKeys) Secret(id string) ([]byte, error) {
	v, ok := k[id]
	if !ok {
		return nil, fmt.Errorf("No secret with id '%s'", id)
	}
	return []byte(v), nil
}

var testKeys = cryptKeys{"s": "abc", "t": "something else"}

// encrypted are kinds of encrypted images; values are without the key.
var encrypted = map[string]map[string]string{
	"luks-64k":     {"encrypt.format": "luks"},
	"luks-512":     {"encrypt.format": "luks", "cluster_size": "512", "encrypt.cipher-alg": "aes-128", "encrypt.cipher-mode": "cbc", "encrypt.ivgen-alg": "essiv"},
	"luks-v2":      {"encrypt.format": "luks", "cluster_size": "4k", "compat": "0.10", "preallocation": "metadata"},
	"luks-16k-ext": {"encrypt.format": "luks", "cluster_size": "16k", "extended_l2": "on"},
	"luks-meta":    {"encrypt.format": "luks", "cluster_size": "4k", "preallocation": "metadata", "encrypt.cipher-alg": "twofish-128", "lazy_refcounts": "on"},
	"aes-4k":       {"encrypt.format": "aes", "cluster_size": "4k"},
	"aes-64k":      {"encryption": "on"},
}

func createCrypt(t testing.TB, size int64, values map[string]string) *memory.Disk {
	t.Helper()
	all := map[string]string{"encrypt.key-secret": "s"}
	if values["encrypt.format"] == "luks" {
		all["encrypt.iter-time"] = "0"
	}
	for k, v := range values {
		all[k] = v
	}
	f := memory.NewFile()
	if err := (Driver{}).Create(context.Background(), f, size, format.CreateOptions{Values: all, Secrets: testKeys, Filename: "disk"}); err != nil {
		t.Fatal(err)
	}
	return f
}

func openCryptAs(f block.Node, id string, writable bool) (*Image, error) {
	n, err := (Driver{}).Open(context.Background(), f, format.OpenOptions{
		Writable: writable, Filename: "disk", Secrets: testKeys, Values: map[string]string{"encrypt.key-secret": id},
	})
	if err != nil {
		return nil, err
	}
	return n.(*Image), nil
}

func openCrypt(t testing.TB, f block.Node, writable bool) *Image {
	t.Helper()
	img, err := openCryptAs(f, "s", writable)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// TestConformanceEncrypted runs the suite of the block contract, with its
// model test, over encrypted images.
func TestConformanceEncrypted(t *testing.T) {
	for name, values := range encrypted {
		t.Run(name, func(t *testing.T) {
			files := map[block.Node]*memory.Disk{}
			open := func(t *testing.T, f *memory.Disk, writable bool) *Image {
				img := openCrypt(t, f, writable)
				files[img] = f
				return img
			}
			unit := int64(4096)
			if values["cluster_size"] == "" {
				unit = 64 << 10
			}
			blocktest.Run(t, blocktest.Suite{
				New: func(t *testing.T, size int64) block.Writer { return open(t, createCrypt(t, size, values), true) },
				Reopen: func(t *testing.T, n block.Node, readOnly bool) block.Node {
					if err := n.Close(); err != nil {
						t.Fatal(err)
					}
					return open(t, files[n].Reopen(), !readOnly)
				},
				Check: func(t *testing.T, n block.Node) {
					img := n.(*Image)
					if err := requireRefcounts(img); img.wr != nil && !img.lazy && err != nil {
						t.Error(err)
					}
				},
				Zeroer: true, Discarder: true, Resizer: true, Unit: unit, Operations: 200,
				Dense: values["compat"] != "" && values["preallocation"] != "",
			})
		})
	}
}

// stockCryptArgs name an encrypted image to a stock tool.
func stockCryptArgs(file string) []string {
	return []string{"--object", "secret,id=s,data=" + testKeys["s"], "--image-opts", "driver=qcow2,encrypt.key-secret=s,file.filename=" + file}
}

// testKeyValues are the options that images of the tests are opened with.
func testKeyValues(disk *memory.Disk) map[string]string {
	var head [36]byte
	if _, err := disk.ReadAt(head[:], 0); err != nil || head[35] == cryptNone {
		return nil
	}
	return map[string]string{"encrypt.key-secret": "s"}
}

// stockCrypt runs a stock tool on an encrypted image.
func stockCrypt(t testing.TB, tool, file string, args ...string) string {
	t.Helper()
	a := []string{}
	if tool == "qemu-img" {
		a = append(a, args...)
	}
	a = append(a, stockCryptArgs(file)...)
	if tool == "qemu-io" {
		a = append(a, args...)
	}
	r := qemutest.Run(t, tool, a...)
	if out := r.Stdout + r.Stderr; r.Status != 0 || strings.Contains(out, "failed") || strings.Contains(out, "can't open") {
		t.Fatalf("%s %q: %s", tool, args, out)
	}
	return r.Stdout
}

// TestEncryptedStock has stock read, check and write images of ours, and ours
// read what stock wrote, in the disk and in an internal snapshot of stock's.
func TestEncryptedStock(t *testing.T) {
	for name, values := range encrypted {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const size = 1 << 20
			f := createCrypt(t, size, values)
			img := openCrypt(t, f, true)
			want := make([]byte, size)
			put := func(c byte, off, n int) {
				for i := range n {
					want[off+i] = c
				}
			}
			r := rand.New(rand.NewPCG(5, 6))
			for range 40 {
				off := r.IntN(size - 1)
				n := 1 + r.IntN(min(size-off, 70<<10))
				put(byte(1+r.IntN(200)), off, n)
				if _, err := img.WriteAt(want[off:off+n], int64(off)); err != nil {
					t.Fatal(err)
				}
			}
			if err := img.WriteZeroes(100_000, 200_000, block.ZeroMayUnmap); err != nil {
				t.Fatal(err)
			}
			put(0, 100_000, 200_000)
			blocktest.RequireContent(t, img, want)
			if err := img.Close(); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			file, raw := filepath.Join(dir, "v"), filepath.Join(dir, "raw")
			if err := os.WriteFile(file, f.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			stockCrypt(t, "qemu-img", file, "check")
			qemutest.Img(t, append([]string{"convert", "-O", "raw"}, append(stockCryptArgs(file), raw)...)...)
			got, err := os.ReadFile(raw)
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("stock reads something else (%v)", err)
			}
			before := bytes.Clone(want)
			stockCrypt(t, "qemu-img", file, "snapshot", "-c", "one")
			stockCrypt(t, "qemu-io", file, "-c", "write -P 0xaa 3k 300k", "-c", "write -P 0xbb 700k 512", "-c", "write -z 500k 64k")
			put(0xaa, 3<<10, 300<<10)
			put(0xbb, 700<<10, 512)
			put(0, 500<<10, 64<<10)
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			img = openCrypt(t, memory.NewBytes(b), false)
			blocktest.RequireContent(t, img, want)
			snap, err := img.OpenSnapshot(t.Context(), 0)
			if err != nil {
				t.Fatal(err)
			}
			blocktest.RequireContent(t, snap, before)
			if n := int(img.Size()); n != size || bytes.Contains(b, want[3<<10:3<<10+4096]) {
				t.Error("the file holds the guest's bytes as they are")
			}
		})
	}
}

// TestEncryptedResize grows and shrinks, with preallocation: what is added
// reads as zeros.
func TestEncryptedResize(t *testing.T) {
	for name, values := range encrypted {
		for _, mode := range []block.Preallocation{block.PreallocOff, block.PreallocMetadata, block.PreallocFull} {
			f := createCrypt(t, 100<<10, values)
			img := openCrypt(t, f, true)
			want := bytes.Repeat([]byte{7}, 100<<10)
			if _, err := img.WriteAt(want, 0); err != nil {
				t.Fatal(err)
			}
			if err := img.Resize(t.Context(), 900<<10, block.ResizeOptions{Prealloc: mode}); err != nil {
				t.Fatalf("%s %s: %v", name, mode, err)
			}
			want = append(want, make([]byte, 800<<10)...)
			blocktest.RequireContent(t, img, want)
			if err := img.Resize(t.Context(), 50<<10, block.ResizeOptions{AllowShrink: true}); err != nil {
				t.Fatal(err)
			}
			if err := img.Close(); err != nil {
				t.Fatal(err)
			}
			img = openCrypt(t, f.Reopen(), true)
			blocktest.RequireContent(t, img, want[:50<<10])
			if err := requireRefcounts(img); err != nil && !img.lazy {
				t.Errorf("%s %s: %v", name, mode, err)
			}
		}
	}
}

// TestEncryptedCrash replays a power loss during writes and changes of key
// slots: in every state the image opens with the passphrase that stays, its
// refcounts hold, and what was flushed reads back.
func TestEncryptedCrash(t *testing.T) {
	for _, name := range []string{"luks-512", "luks-16k-ext", "aes-4k"} {
		base := createCrypt(t, 256<<10, encrypted[name])
		rec := record.Wrap(base.Clone())
		img := openCrypt(t, rec, true)
		first := bytes.Repeat([]byte{1}, 100_001)
		if _, err := img.WriteAt(first, 777); err != nil {
			t.Fatal(err)
		}
		if err := img.Flush(); err != nil {
			t.Fatal(err)
		}
		flushed := rec.Len()
		if img.crypt.method == cryptLUKS {
			for _, v := range []map[string]string{
				{"encrypt.state": "active", "encrypt.new-secret": "t", "encrypt.iter-time": "0"},
				{"encrypt.state": "inactive", "encrypt.keyslot": "1"},
			} {
				if err := img.Amend(t.Context(), format.AmendOptions{Values: v, Secrets: testKeys}); err != nil {
					t.Fatal(err)
				}
			}
		}
		if _, err := img.WriteAt(bytes.Repeat([]byte{2}, 50_000), 150_001); err != nil {
			t.Fatal(err)
		}
		if err := img.Close(); err != nil {
			t.Fatal(err)
		}
		r := rand.New(rand.NewPCG(3, 4))
		for n := range rec.Len() + 1 {
			for range 2 {
				state, err := openCryptAs(rec.Log().Crash(base, n, r), "s", true)
				if err != nil {
					t.Fatalf("%s, after %d of %d events: %v", name, n, rec.Len(), err)
				}
				res, err := state.Check(t.Context(), block.CheckOptions{})
				if err != nil || res.Corruptions != 0 || res.CheckErrors != 0 {
					t.Fatalf("%s, after %d of %d events: check %+v, %v", name, n, rec.Len(), res, err)
				}
				if n >= flushed {
					blocktest.RequireAt(t, state, 777, first)
				}
			}
		}
	}
}

// TestEncryptionHeader holds the words for damage and wrong keys.
func TestEncryptionHeader(t *testing.T) {
	good := createCrypt(t, 1<<20, encrypted["luks-64k"]).Bytes()
	ext := bytes.Index(good[:65536], binary.BigEndian.AppendUint32(nil, extEncryption))
	for _, c := range []struct {
		at    int
		bytes string
		want  string
	}{
		{ext + 4, "\x00\x00\x00\x08", "CRYPTO header extension size 8, but expected size 16"},
		{ext + 8, "\x00\x00\x00\x00\x00\x00\x00\x01", "Encryption header offset '1' is not a multiple of cluster size '65536'"},
		{ext + 8, "\x7f\xff\xff\xff\xff\xff\x00\x00", "does not lie in the file"},
		{ext + 16, "\x7f\xff\xff\xff\xff\xff\xff\xff", "does not lie in the file"},
		{ext + 16, "\x00\x00\x00\x00\x00\x00\x01\x00", "does not lie in its 256 bytes"},
		{ext, "\x12\x34\x56\x78", "has no LUKS header"},
		{35, "\x01", "CRYPTO header extension only expected with LUKS encryption method"},
		{35, "\x03", "Unsupported encryption method 3"},
	} {
		b := bytes.Clone(good)
		copy(b[c.at:], c.bytes)
		for _, noData := range []bool{false, true} {
			_, err := (Driver{}).Open(t.Context(), memory.NewBytes(b), format.OpenOptions{NoData: noData, Secrets: testKeys, Values: map[string]string{"encrypt.key-secret": "s"}})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%q at %d: %v, want %s", c.bytes, c.at, err, c.want)
			}
		}
	}
	for id, want := range map[string]string{
		"": "Parameter 'encrypt.key-secret' is required for cipher", "t": "Invalid password, cannot unlock any keyslot", "nope": "No secret with id 'nope'",
	} {
		if _, err := openCryptAs(memory.NewBytes(good), id, false); err == nil || err.Error() != want {
			t.Errorf("secret %q: %v, want %s", id, err, want)
		}
	}
	img := openCrypt(t, memory.NewBytes(bytes.Clone(good)), true)
	if err := img.WriteCompressed(make([]byte, 65536), 0); err == nil {
		t.Error("a compressed cluster was written to an encrypted image")
	}
}

// An L1 entry that points into the key slots is damage; its repair must not
// write there as if it were an L2 table.
func TestRepairKeepsKeys(t *testing.T) {
	base := createCrypt(t, 1<<20, encrypted["luks-64k"])
	img := openCrypt(t, base, true)
	if _, err := img.WriteAt(bytes.Repeat([]byte{9}, 64<<10), 0); err != nil {
		t.Fatal(err)
	}
	l1, off, length := int64(img.hdr.l1Offset), img.crypt.offset, img.crypt.length
	if err := img.Flush(); err != nil {
		t.Fatal(err)
	}
	base = base.Clone()
	keys := make([]byte, length)
	if _, err := base.ReadAt(keys, int64(off)); err != nil {
		t.Fatal(err)
	}
	// Behind the header itself: key material, which is no table.
	entry := binary.BigEndian.AppendUint64(nil, uint64(off)+64<<10|entryCopied)
	if _, err := base.WriteAt(entry, l1); err != nil {
		t.Fatal(err)
	}
	n, err := (Driver{}).Open(t.Context(), base, format.OpenOptions{
		Writable: true, ForCheck: true, Secrets: testKeys, Values: map[string]string{"encrypt.key-secret": "s"},
	})
	if err != nil {
		t.Fatal(err)
	}
	res, err := n.(*Image).Check(t.Context(), block.CheckOptions{Repair: block.RepairAll})
	t.Logf("%+v, %v", res, err)
	after := make([]byte, length)
	if _, err := base.ReadAt(after, int64(off)); err != nil || !bytes.Equal(keys, after) {
		t.Errorf("the repair wrote into the key slots (%v)", err)
	}
}
