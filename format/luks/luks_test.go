package luks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/blocktest"
	"github.com/lamina-vm/lamina/block/diskcrypt"
	"github.com/lamina-vm/lamina/block/record"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// keys are secrets by id.
type keys map[string]string

func (k keys) Secret(id string) ([]byte, error) {
	v, ok := k[id]
	if !ok {
		return nil, fmt.Errorf("No secret with id '%s'", id)
	}
	return []byte(v), nil
}

var secrets = keys{"s": "abc", "t": "something else", "bad": "a\xff"}

// create makes a volume in memory, quickly.
func create(t testing.TB, size int64, values map[string]string) *memory.Disk {
	t.Helper()
	all := map[string]string{"key-secret": "s", "iter-time": "0"}
	for k, v := range values {
		all[k] = v
	}
	f := memory.NewFile()
	if err := (Driver{}).Create(t.Context(), f, size, format.CreateOptions{Values: all, Secrets: secrets, Filename: "disk"}); err != nil {
		t.Fatal(err)
	}
	return f
}

func openWith(t testing.TB, f block.Node, id string, writable bool) (*Disk, error) {
	t.Helper()
	n, err := (Driver{}).Open(t.Context(), f, format.OpenOptions{Writable: writable, Filename: "disk", Secrets: secrets, Values: map[string]string{"key-secret": id}})
	if err != nil {
		return nil, err
	}
	return n.(*Disk), nil
}

func open(t testing.TB, f block.Node, writable bool) *Disk {
	t.Helper()
	d, err := openWith(t, f, "s", writable)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// fixed hides that a volume can be resized: what is added does not read as
// zeros (see TestResize).
type fixed struct{ block.Writer }

func TestConformance(t *testing.T) {
	files := map[block.Node]*memory.Disk{}
	blocktest.Run(t, blocktest.Suite{
		New: func(t *testing.T, size int64) block.Writer {
			f := create(t, size, nil)
			d := open(t, f, true)
			if _, err := d.WriteAt(make([]byte, size), 0); err != nil {
				t.Fatal(err)
			}
			n := fixed{d}
			files[n] = f
			return n
		},
		Reopen: func(t *testing.T, n block.Node, readOnly bool) block.Node {
			if err := n.Close(); err != nil {
				t.Fatal(err)
			}
			f := files[n].Reopen()
			m := fixed{open(t, f, !readOnly)}
			files[m] = f
			return m
		},
		Dense: true, Operations: 300,
	})
}

func TestResize(t *testing.T) {
	f := create(t, 4096, nil)
	d := open(t, f, true)
	want := bytes.Repeat([]byte{5}, 8192)
	if d.ZeroInit() {
		t.Error("a new volume says that it reads as zeros")
	}
	if err := d.Resize(t.Context(), 8192, block.ResizeOptions{}); err != nil || d.Size() != 8192 {
		t.Fatalf("grow: %v, size %d", err, d.Size())
	}
	if _, err := d.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Resize(t.Context(), 4096, block.ResizeOptions{}); !errors.Is(err, block.ErrUnsupported) {
		t.Errorf("shrink unasked: %v", err)
	}
	if err := d.Resize(t.Context(), 512, block.ResizeOptions{AllowShrink: true}); err != nil {
		t.Fatal(err)
	}
	blocktest.RequireContent(t, open(t, f, false), want[:512])
}

// TestPassphrase holds the words about passphrases.
func TestPassphrase(t *testing.T) {
	f := create(t, 1<<20, nil)
	for id, want := range map[string]string{
		"":     "Parameter 'key-secret' is required for cipher",
		"t":    "Invalid password, cannot unlock any keyslot",
		"nope": "No secret with id 'nope'",
		"bad":  "Data from secret bad is not valid UTF-8",
	} {
		if _, err := openWith(t, f, id, false); err == nil || err.Error() != want {
			t.Errorf("secret %q: %v, want %s", id, err, want)
		}
	}
	n, err := (Driver{}).Open(t.Context(), f, format.OpenOptions{NoData: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.ReadAt(make([]byte, 1), 0); err == nil {
		t.Error("data is read without a key")
	}
	if _, err := n.(format.Informer).ImageInfo(); err != nil {
		t.Error(err)
	}
}

// amend changes key slots. opts are key=value.
func amend(t testing.TB, d *Disk, force bool, opts ...string) error {
	t.Helper()
	values := map[string]string{}
	for _, o := range opts {
		k, v, _ := strings.Cut(o, "=")
		values[k] = v
	}
	return d.Amend(t.Context(), format.AmendOptions{Values: values, Secrets: secrets, Force: force})
}

// TestSlots adds and erases passphrases; what stock says is in the table of
// the work-alike.
func TestSlots(t *testing.T) {
	f := create(t, 1<<20, nil)
	d := open(t, f, true)
	want := bytes.Repeat([]byte("data"), 1<<18)
	if _, err := d.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	add := []string{"state=active", "new-secret=t", "iter-time=0"}
	for i := 1; i < diskcrypt.Slots; i++ {
		if err := amend(t, d, false, add...); err != nil {
			t.Fatal(err)
		}
		d2, err := openWith(t, f, "t", false)
		if err != nil {
			t.Fatal(err)
		}
		blocktest.RequireContent(t, d2, want)
	}
	for _, c := range []struct {
		opts string
		want string
	}{
		{"state=active new-secret=t", "Can't add a keyslot - all keyslots are in use"},
		{"state=active new-secret=t keyslot=3", "Refusing to overwrite active keyslot 3 - please erase it first"},
		{"state=inactive keyslot=8", "Invalid keyslot 8 specified, must be between 0 and 7"},
		{"state=inactive old-secret=bad", "Data from secret bad is not valid UTF-8"},
		{"state=inactive old-secret=s keyslot=3", "Given keyslot 3 doesn't contain the given old password for erase operation"},
		{"state=inactive old-secret=t", ""},
		{"state=inactive old-secret=t", "No keyslots match given (old) password for erase operation"},
		{"state=inactive keyslot=5", "Given keyslot 5 is already erased (inactive) "},
		{"state=inactive keyslot=0", "Attempt to erase the only active keyslot 0 which will erase all the data in the image irreversibly - refusing operation"},
		{"state=inactive old-secret=s", "All the active keyslots match the (old) password that was given and erasing them will erase all the data in the image irreversibly - refusing operation"},
		{"state=active new-secret=t keyslot=6 iter-time=0", ""},
		{"state=inactive keyslot=0", ""},
	} {
		err := amend(t, d, false, strings.Fields(c.opts)...)
		if err == nil && c.want != "" || err != nil && err.Error() != c.want {
			t.Errorf("%s: %v, want %q", c.opts, err, c.want)
		}
	}
	if _, err := openWith(t, f, "s", false); err == nil {
		t.Error("the erased passphrase opens the volume")
	}
	d2, err := openWith(t, f, "t", true)
	if err != nil {
		t.Fatal(err)
	}
	blocktest.RequireContent(t, d2, want)
	if err := amend(t, d2, true, "state=inactive", "old-secret=t"); err != nil {
		t.Fatal(err)
	}
	if _, err := openWith(t, f, "t", false); err == nil {
		t.Error("a volume without keys opens")
	}
}

// TestSlotsCrash replays a power loss at every instant of adding and erasing a
// passphrase: the one that stays opens the volume in every state, and the
// other one opens it before or after.
func TestSlotsCrash(t *testing.T) {
	for _, slot := range []string{"1", "6", "7"} { // 6 lies in two sectors of the header
		base := create(t, 4096, map[string]string{"cipher-alg": "aes-128", "cipher-mode": "cbc"})
		rec := record.Wrap(base.Clone())
		d := open(t, rec, true)
		if err := amend(t, d, false, "state=active", "new-secret=t", "iter-time=0", "keyslot="+slot); err != nil {
			t.Fatal(err)
		}
		added := rec.Len()
		if err := amend(t, d, false, "state=inactive", "keyslot="+slot); err != nil {
			t.Fatal(err)
		}
		r := rand.New(rand.NewPCG(1, 2))
		states, opened := 0, 0
		for n := range rec.Len() + 1 {
			for range 3 {
				states++
				f := rec.Log().Crash(base, n, r)
				if _, err := openWith(t, f, "s", false); err != nil {
					t.Fatalf("slot %s, after %d events of %d: %v", slot, n, rec.Len(), err)
				}
				_, err := openWith(t, f, "t", false)
				switch {
				case err == nil:
					opened++
				case !errors.Is(err, diskcrypt.ErrPassphrase):
					t.Fatalf("slot %s, after %d events: %v", slot, n, err)
				case n == added:
					t.Fatalf("slot %s: the new passphrase does not open the volume: %v", slot, err)
				}
			}
		}
		if opened == 0 || opened == states {
			t.Errorf("slot %s: the passphrase opened %d of %d states", slot, opened, states)
		}
	}
}

// TestHostileHeader holds that no header costs more than a moment, and that
// damage is said.
func TestHostileHeader(t *testing.T) {
	good := create(t, 4096, nil).Bytes()
	file := memory.NewBytes(bytes.Clone(good))
	for at := range diskcrypt.HeaderBytes {
		for _, v := range []byte{0, 1, 0x7f, 0xff} {
			if at >= 165 && at < 168 || at >= 212 && at < 216 {
				continue // iterations, below
			}
			for i, c := range []byte{good[max(at-1, 0)], v} { // undo the last one
				if _, err := file.WriteAt([]byte{c}, int64(max(at-1+i, 0))); err != nil {
					t.Fatal(err)
				}
			}
			n, err := (Driver{}).Open(t.Context(), file.ReadOnly(), format.OpenOptions{NoData: true, Filename: "disk"})
			if err != nil {
				continue
			}
			if _, err := n.ReadAt(make([]byte, 10), 0); err == nil {
				t.Fatalf("byte %d = %#x: data is read without a key", at, v)
			}
		}
	}
	for _, at := range []int{164, 212} {
		b := bytes.Clone(good)
		copy(b[at:], "\xff\xff\xff\xff")
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		o := format.OpenOptions{Secrets: secrets, Values: map[string]string{"key-secret": "s"}}
		if _, err := (Driver{}).Open(ctx, memory.NewBytes(b), o); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("iterations without end: %v", err)
		}
		cancel()
		o.Untrusted = true
		if _, err := (Driver{}).Open(t.Context(), memory.NewBytes(b), o); !errors.Is(err, block.ErrUntrusted) {
			t.Errorf("iterations without end of an image from outside: %v", err)
		}
	}
}

// FuzzHeader: a value or an error, whatever the header says, without cost.
func FuzzHeader(f *testing.F) {
	f.Add(create(f, 4096, nil).Bytes()[:diskcrypt.HeaderBytes])
	f.Add(create(f, 4096, map[string]string{"cipher-alg": "cast5-128", "cipher-mode": "cbc"}).Bytes()[:diskcrypt.HeaderBytes])
	f.Fuzz(func(t *testing.T, b []byte) {
		file := memory.NewBytes(b)
		n, err := (Driver{}).Open(t.Context(), file, format.OpenOptions{NoData: true, Filename: "disk"})
		if (n == nil) == (err == nil) {
			t.Fatalf("%v, %v", n, err)
		}
		if err == nil {
			if _, err := n.(*Disk).ImageInfo(); err != nil {
				t.Fatal(err)
			}
			return
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		_, _ = (Driver{}).Open(ctx, file, format.OpenOptions{Secrets: secrets, Values: map[string]string{"key-secret": "s"}})
	})
}
