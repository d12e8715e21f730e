// Package crash holds what no single room can: that every verb that writes
// leaves images whole wherever the power, the program or the disk fails.
package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/block/record"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/tool/qemuimg"
	"github.com/lamina-vm/lamina/internal/underlay"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// secrets has the key of the encrypted images of all tests here.
type secrets struct{}

func (secrets) Secret(string) ([]byte, error) { return []byte("abc"), nil }

// command runs command lines of the tool, separated by semicolons; "@" stands
// for the folder dir. Their verb is the first word; encrypted ones get the key.
func command(dir, lines string) error {
	for line := range strings.SplitSeq(lines, ";") {
		args := strings.Fields(strings.ReplaceAll(line, "@", dir+"/"))
		for i, a := range args {
			if a == "''" {
				args[i] = ""
			}
		}
		var out bytes.Buffer
		if status := qemuimg.Main("lamina img", args, strings.NewReader(""), &out, &out); status != 0 {
			return fmt.Errorf("%s: status %d\n%s", line, status, out.String())
		}
	}
	return nil
}

func mustCommand(t testing.TB, dir, lines string) {
	t.Helper()
	if err := command(dir, lines); err != nil {
		t.Fatal(err)
	}
}

// tempDir is t.TempDir without what option lists cannot hold in its name.
func tempDir(t testing.TB) string {
	t.Helper()
	where := "/dev/shm" // where there is none, the tests take longer
	if _, err := os.Stat(where); err != nil {
		where = ""
	}
	dir, err := os.MkdirTemp(where, "crash")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// A world is the files of a folder while they are recorded.
type world struct {
	dir string

	mu    sync.Mutex // guards what follows
	names []string   // by number of the disk
	base  []*memory.Disk
	set   record.Set
}

// recordFiles runs fn with every change of the files in dir recorded.
func recordFiles(t testing.TB, dir string, fn func(w *world)) *world {
	t.Helper()
	w := &world{dir: dir}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		w.names = append(w.names, e.Name())
		w.base = append(w.base, loadFile(t, filepath.Join(dir, e.Name())))
	}
	undo := underlay.Under(dir, w.wrap)
	defer undo()
	fn(w)
	// Nothing may go past the recording.
	for i, d := range w.replay(len(w.set.Log())) {
		have, err := os.ReadFile(filepath.Join(dir, w.names[i]))
		if err == nil && !bytes.Equal(have, d.Bytes()) {
			t.Fatalf("%s holds other bytes than those recorded", w.names[i])
		}
	}
	return w
}

func loadFile(t testing.TB, path string) *memory.Disk {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := memory.NewFile()
	if _, err := d.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return d
}

func (w *world) wrap(path string, node block.Node) block.Node {
	disk, ok := node.(block.Writer)
	if !ok {
		return node
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	name := filepath.Base(path)
	for i, n := range w.names {
		if n == name {
			return punched{w.set.Wrap(i, disk)}
		}
	}
	w.names = append(w.names, name)
	w.base = append(w.base, memory.NewFile())
	return punched{w.set.Wrap(len(w.names)-1, disk)}
}

// punched is a recorded file. What is discarded of a file reads as zeros, as
// the replay has to know.
type punched struct{ *record.Disk }

func (p punched) Discard(off, n int64) error {
	return p.WriteZeroes(off, n, block.ZeroMayUnmap)
}

// clone copies the files as they were when the recording began.
func (w *world) clone() []*memory.Disk {
	out := make([]*memory.Disk, len(w.base))
	for i, d := range w.base {
		out[i] = d.Clone()
	}
	return out
}

// replay returns the files after the first n events.
func (w *world) replay(n int) []*memory.Disk {
	out := w.clone()
	for _, e := range w.set.Log()[:n] {
		e.Apply(out[e.Disk])
	}
	return out
}

// allOrders is the number of pending changes up to which every choice of
// those that reached the disk is tried.
const allOrders = 6

// states yields the different states in which a power loss can leave the
// files: at is the number of events that had been asked for. Between two
// barriers each prefix is tried; then each choice of what reached the disk if
// few changes are pending, or else samples of what did, in which order, with
// writes torn between sectors.
func (w *world) states(r *rand.Rand, samples int) iter.Seq2[int, []*memory.Disk] {
	return func(yield func(int, []*memory.Disk) bool) {
		log := w.set.Log()
		seen := map[uint64]bool{}
		seed := maphash.MakeSeed()
		emit := func(at int, disks []*memory.Disk) bool {
			var h maphash.Hash
			h.SetSeed(seed)
			for _, d := range disks {
				b := d.Bytes()
				fmt.Fprint(&h, len(b), " ")
				_, _ = h.Write(b)
			}
			if sum := h.Sum64(); !seen[sum] {
				seen[sum] = true
				return yield(at, disks)
			}
			return true
		}
		durable := make([]bool, len(log))
		settled := w.clone()
		var pending []int
		for i := 0; i <= len(log); i++ {
			if i < len(log) && log[i].Kind < record.Barrier {
				pending = append(pending, i)
				now := cloneAll(settled)
				for _, k := range pending {
					log[k].Apply(now[log[k].Disk])
				}
				if !emit(i+1, now) {
					return
				}
				continue
			}
			for now := range choices(log, settled, pending, r, samples) {
				if !emit(i, now) {
					return
				}
			}
			if i == len(log) || log[i].Kind != record.Barrier {
				continue
			}
			for _, k := range log[i].Durable {
				durable[k] = true
			}
			settled, pending = w.clone(), pending[:0]
			for k, e := range log[:i] {
				if durable[k] {
					e.Apply(settled[e.Disk])
				} else if e.Kind < record.Barrier {
					pending = append(pending, k)
				}
			}
		}
	}
}

func cloneAll(disks []*memory.Disk) []*memory.Disk {
	out := make([]*memory.Disk, len(disks))
	for i, d := range disks {
		out[i] = d.Clone()
	}
	return out
}

// choices yields what may be there of the pending changes.
func choices(log record.Log, settled []*memory.Disk, pending []int, r *rand.Rand, samples int) iter.Seq[[]*memory.Disk] {
	return func(yield func([]*memory.Disk) bool) {
		if len(pending) <= allOrders {
			for mask := range 1 << len(pending) {
				now := cloneAll(settled)
				for bit, k := range pending {
					if mask>>bit&1 != 0 {
						log[k].Apply(now[log[k].Disk])
					}
				}
				if !yield(now) {
					return
				}
			}
		}
		if len(pending) == 0 {
			return
		}
		for range samples {
			now := cloneAll(settled)
			order := append([]int(nil), pending...)
			r.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
			keep := 1 + r.IntN(8) // of 8
			for _, k := range order {
				switch x := r.IntN(8); {
				case x == 0:
					log[k].Tear(now[log[k].Disk], r)
				case x <= keep:
					log[k].Apply(now[log[k].Disk])
				}
			}
			if !yield(now) {
				return
			}
		}
	}
}

// A state is what a power loss left of a world's files. Images in it are
// opened by their paths; the real files there only lend their names and locks.
type state struct {
	w     *world
	disks []*memory.Disk
}

func (s *state) disk(name string) *memory.Disk {
	for i, n := range s.w.names {
		if n == name {
			return s.disks[i]
		}
	}
	return nil
}

// stateFile is a file's bytes in a state.
type stateFile struct {
	*memory.Disk
	file block.Node
}

func (f stateFile) Close() error { return f.file.Close() }

func (s *state) context(ctx context.Context) context.Context {
	return underlay.With(ctx, func(path string, node block.Node) block.Node {
		if d := s.disk(filepath.Base(path)); d != nil {
			return stateFile{d, node}
		}
		return node
	})
}

// imageFile names an image.
type imageFile struct{ name, format string }

func openOptions(f imageFile) image.Options {
	return image.Options{Format: f.format, Secrets: secrets{}}
}

func open(ctx context.Context, dir string, f imageFile, writable bool) (*image.Image, error) {
	opts := openOptions(f)
	opts.Writable, opts.NoLock = writable, !writable
	name := filepath.Join(dir, f.name)
	switch f.format {
	case "luks":
		opts.Format, name = "", fmt.Sprintf(`json:{"driver":"luks","key-secret":"k","file":{"driver":"file","filename":%q}}`, name)
	case "qcow2 luks":
		opts.Format, name = "", fmt.Sprintf(`json:{"driver":"qcow2","encrypt.key-secret":"k","file":{"driver":"file","filename":%q}}`, name)
	}
	return image.Open(ctx, name, opts)
}

// readAll reads the whole disk.
func readAll(n block.Node) ([]byte, error) {
	p := make([]byte, n.Size())
	if len(p) == 0 {
		return p, nil
	}
	_, err := n.ReadAt(p, 0)
	return p, err
}

// view is what a user sees of an image: its disk and its snapshots.
type view struct {
	disk      []byte
	snapshots map[string][]byte
	// corruptions is what the check found of an image damaged on purpose.
	corruptions int64
}

// corruptError is for an image whose check finds errors.
type corruptError struct {
	n    int64
	text string
}

func (e *corruptError) Error() string { return e.text }

// look opens an image, checks it and reads all there is. Leaks are no errors.
func look(ctx context.Context, dir string, f imageFile) (v view, err error) {
	im, err := open(ctx, dir, f, false)
	if err != nil {
		return v, err
	}
	defer func() { err = errors.Join(err, im.Close()) }()
	inf, _ := block.As[format.Informer](im.Node())
	var info format.Info
	if inf != nil {
		if info, err = inf.ImageInfo(); err != nil {
			return v, fmt.Errorf("info: %w", err)
		}
	}
	if info.Dirty {
		return lookRepaired(ctx, dir, f)
	}
	var damage error
	if c, ok := block.As[block.Checker](im.Node()); ok {
		var lines []string
		res, err := c.Check(ctx, block.CheckOptions{Report: func(l string) { lines = append(lines, l) }})
		if err != nil {
			return v, fmt.Errorf("check: %w", err)
		}
		if n := res.Corruptions + res.CheckErrors; n > 0 {
			damage = &corruptError{n, fmt.Sprintf("check: %+v\n%s", res, strings.Join(lines, "\n"))}
		}
	}
	if v.disk, err = readAll(im.Node()); err != nil {
		return v, fmt.Errorf("read: %w", err)
	}
	v.snapshots = map[string][]byte{}
	for i, s := range info.Snapshots {
		o, _ := block.As[format.SnapshotOpener](im.Node())
		n, err := o.OpenSnapshot(ctx, i)
		if err != nil {
			return v, fmt.Errorf("snapshot %s: %w", s.Name, err)
		}
		if v.snapshots[s.Name], err = readAll(n); err != nil {
			return v, fmt.Errorf("read snapshot %s: %w", s.Name, err)
		}
		if err := n.Close(); err != nil {
			return v, err
		}
	}
	return v, damage
}

// lookRepaired looks at an image whose refcounts are late: opening it for
// writing brings them up to date.
func lookRepaired(ctx context.Context, dir string, f imageFile) (view, error) {
	im, err := open(ctx, dir, f, true)
	if err != nil {
		return view{}, fmt.Errorf("open dirty image: %w", err)
	}
	if err := im.Close(); err != nil {
		return view{}, err
	}
	return look(ctx, dir, f)
}

// fill writes random runs of data to an image, with holes between them.
func fill(t testing.TB, dir string, f imageFile, r *rand.Rand, share float64) {
	t.Helper()
	im, err := open(t.Context(), dir, f, true)
	if err != nil {
		t.Fatal(err)
	}
	w, _ := block.As[block.Writer](im.Node())
	size := im.Node().Size()
	for off := int64(0); off < size; {
		n := min(size-off, 512*(1+r.Int64N(16)))
		if r.Float64() < share {
			if _, err := w.WriteAt(randomBytes(r, n), off); err != nil {
				t.Fatal(err)
			}
		}
		off += n
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
}

// fillZeros writes runs of zeros as data.
func fillZeros(t testing.TB, dir string, f imageFile, r *rand.Rand) {
	t.Helper()
	im, err := open(t.Context(), dir, f, true)
	if err != nil {
		t.Fatal(err)
	}
	w, _ := block.As[block.Writer](im.Node())
	size := im.Node().Size()
	for range 5 {
		off := r.Int64N(size/512) * 512
		if _, err := w.WriteAt(make([]byte, min(size-off, size/6)), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
}

func randomBytes(r *rand.Rand, n int64) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32()) | 1
	}
	return p
}
