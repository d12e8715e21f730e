package luks

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/block/blocktest"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// opts are the block options of stock tools for a volume.
func opts(id, file string) []string {
	return []string{"--object", "secret,id=s,data=" + secrets["s"], "--object", "secret,id=t,data=" + secrets["t"], "--image-opts", "driver=luks,key-secret=" + id + ",file.filename=" + file}
}

// stockIO runs stock qemu-io on a volume.
func stockIO(t *testing.T, file string, cmds ...string) {
	t.Helper()
	args := opts("s", file)
	for _, c := range cmds {
		args = append(args, "-c", c)
	}
	r := qemutest.Run(t, "qemu-io", args...)
	if out := r.Stdout + r.Stderr; r.Status != 0 || strings.Contains(out, "failed") || strings.Contains(out, "can't open") {
		t.Fatalf("qemu-io %q: %s", cmds, out)
	}
}

// stockCreate makes a volume with stock qemu-img, which on a busy machine
// gives up measuring how fast it is.
func stockCreate(t *testing.T, file, size, options string) {
	t.Helper()
	for range 20 {
		r := qemutest.Run(t, "qemu-img", "create", "-q", "--object", "secret,id=s,data="+secrets["s"], "-f", "luks", "-o", "key-secret=s,iter-time=1,"+options, file, size)
		if r.Status == 0 {
			return
		}
		if !strings.Contains(r.Stderr, "accurate CPU usage") {
			t.Fatal(r.Stderr)
		}
	}
	t.Fatal("qemu-img create: no accurate CPU usage in 20 attempts")
}

// combinations are all algorithms that stock can write. (With keys of 24 bytes
// it ends with a failed assertion in any mode but XTS.)
func combinations() []map[string]string {
	var list []map[string]string
	hashes := []string{"md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160"}
	add := func(cipher, mode, iv, ivHash string) {
		v := map[string]string{"cipher-alg": cipher, "cipher-mode": mode, "ivgen-alg": iv, "hash-alg": hashes[len(list)%len(hashes)]}
		if ivHash != "" {
			v["ivgen-hash-alg"] = ivHash
		}
		list = append(list, v)
	}
	for _, family := range []string{"aes", "serpent", "twofish"} {
		for _, bits := range []string{"-128", "-192", "-256"} {
			for _, mode := range []string{"ecb", "cbc", "xts", "ctr"} {
				if bits == "-192" && mode != "xts" {
					continue
				}
				add(family+bits, mode, "plain", "")
				add(family+bits, mode, "plain64", "sha1")
				add(family+bits, mode, "essiv", "md5")
				add(family+bits, mode, "essiv", "sha256")
			}
		}
	}
	for _, mode := range []string{"ecb", "cbc", "ctr"} {
		add("cast5-128", mode, "plain", "")
		add("cast5-128", mode, "plain64", "")
	}
	return list
}

func describe(v map[string]string) string {
	var s []string
	for _, k := range []string{"cipher-alg", "cipher-mode", "ivgen-alg", "ivgen-hash-alg", "hash-alg"} {
		if v[k] != "" {
			s = append(s, k+"="+v[k])
		}
	}
	return strings.Join(s, ",")
}

// TestStockReadsOurs has stock read and write volumes of ours, of every
// combination of algorithms, and ours read what stock wrote.
func TestStockReadsOurs(t *testing.T) {
	for _, v := range combinations() {
		t.Run(strings.ReplaceAll(describe(v), ",", "+"), func(t *testing.T) {
			t.Parallel()
			f := create(t, 128<<10, v)
			d := open(t, f, true)
			want := make([]byte, 128<<10)
			for i, c := range []byte{0x11, 0x22} {
				q := want[i<<16 : (i+1)<<16]
				for k := range q {
					q[k] = c
				}
				if _, err := d.WriteAt(q, int64(i)<<16); err != nil {
					t.Fatal(err)
				}
			}
			name := filepath.Join(t.TempDir(), "v")
			if err := os.WriteFile(name, f.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			stockIO(t, name, "read -P 0x11 0 64k", "read -P 0x22 64k 64k", "write -P 0x33 1k 100k")
			for i := 1 << 10; i < 101<<10; i++ {
				want[i] = 0x33
			}
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			blocktest.RequireContent(t, open(t, memory.NewBytes(b), false), want)
		})
	}
}

// TestOursReadsStock opens volumes whose header stock wrote.
func TestOursReadsStock(t *testing.T) {
	for _, v := range []string{
		"cipher-alg=aes-256", "cipher-alg=serpent-128,cipher-mode=cbc,ivgen-alg=essiv,hash-alg=ripemd160",
		"cipher-alg=twofish-192,hash-alg=md5", "cipher-alg=aes-192,hash-alg=sha384,ivgen-alg=plain,ivgen-hash-alg=md5",
	} {
		t.Run(strings.ReplaceAll(v, ",", "+"), func(t *testing.T) {
			t.Parallel()
			name := filepath.Join(t.TempDir(), "v")
			stockCreate(t, name, "1M", v)
			stockIO(t, name, "write -P 7 0 1M")
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			want := []byte(strings.Repeat("\x07", 1<<20))
			blocktest.RequireContent(t, open(t, memory.NewBytes(b), false), want)
		})
	}
}

// TestCryptsetup has cryptsetup, which the format comes from, look at volumes
// of ours, also of a kind that stock QEMU cannot write. Trying the passphrase
// needs device mapper or AF_ALG in the kernel.
func TestCryptsetup(t *testing.T) {
	for _, v := range append(slices.Clone(combinations()[:12]), map[string]string{"cipher-alg": "aes-192", "cipher-mode": "cbc", "ivgen-alg": "essiv"}, nil) {
		if v["hash-alg"] == "md5" {
			continue // it has none
		}
		name := filepath.Join(t.TempDir(), "v")
		if err := os.WriteFile(name, create(t, 1<<20, v).Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		if r := qemutest.Run(t, "cryptsetup", "luksDump", name); r.Status != 0 || !strings.Contains(r.Stdout, "Key Slot 0: ENABLED") {
			t.Errorf("%v: luksDump: %s%s", v, r.Stdout, r.Stderr)
		}
	}
}
