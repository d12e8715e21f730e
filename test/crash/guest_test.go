package crash

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/block"
)

// guestRun is a recorded run of a guest's requests.
type guestRun struct {
	img imageFile
	// versions holds the disk after each request; at how many events there
	// were then; safe which of them every power loss from then on keeps.
	versions [][]byte
	at       []int
	safe     []bool
}

func (g *guestRun) note(w *world, disk []byte, safe bool) {
	g.versions = append(g.versions, append([]byte(nil), disk...))
	g.at = append(g.at, w.set.Len())
	g.safe = append(g.safe, safe)
}

// requests makes n random requests to the image in dir.
func (g *guestRun) requests(t *testing.T, w *world, dir string, r *rand.Rand, n int) {
	im, err := open(t.Context(), dir, g.img, true)
	if err != nil {
		t.Fatal(err)
	}
	disk, err := readAll(im.Node())
	if err != nil {
		t.Fatal(err)
	}
	g.note(w, disk, true)
	wr, _ := block.As[block.Writer](im.Node())
	zr, _ := block.As[block.Zeroer](im.Node())
	dis, _ := block.As[block.Discarder](im.Node())
	size := int64(len(disk))
	for range n {
		off := r.Int64N(size/512) * 512
		length := min(512*(1+r.Int64N(24)), size-off)
		var err error
		switch r.IntN(10) {
		case 0, 1, 2, 3:
			p := randomBytes(r, length)
			_, err = wr.WriteAt(p, off)
			copy(disk[off:], p)
		case 4, 5:
			err = zr.WriteZeroes(off, length, block.ZeroMayUnmap)
			clear(disk[off : off+length])
		case 6:
			err = zr.WriteZeroes(off, length, 0)
			clear(disk[off : off+length])
		case 7, 8:
			if err = dis.Discard(off, length); err == nil {
				disk, err = readAll(im.Node()) // what is discarded may read as anything of its own
			}
		default:
			err = wr.Flush()
			g.note(w, disk, true)
		}
		if err != nil {
			t.Fatal(err)
		}
		g.note(w, disk, false)
	}
	if err := im.Close(); err != nil {
		t.Fatal(err)
	}
	g.note(w, disk, false)
}

// judge says whether a disk is as a power loss at the event at may leave it:
// each sector as at the last flush or at any time since.
func (g *guestRun) judge(disk []byte, at int) error {
	first, last := 0, len(g.at)-1
	for i, n := range g.at {
		if n <= at && g.safe[i] {
			first = i
		}
		if n >= at {
			last = i
			break
		}
	}
	if len(disk) != len(g.versions[0]) {
		return fmt.Errorf("the disk has %d bytes", len(disk))
	}
	for off := 0; off < len(disk); off += block.SectorSize {
		ok := false
		for i := first; i <= last && !ok; i++ {
			ok = string(disk[off:off+block.SectorSize]) == string(g.versions[i][off:off+block.SectorSize])
		}
		if !ok {
			return fmt.Errorf("the sector at %d is neither as flushed nor as written since (requests %d to %d)", off, first, last)
		}
	}
	return nil
}

// guestMixes are those of the verbs and those that only a guest's requests
// make different.
func guestMixes() []string {
	out := append([]string(nil), mixes...)
	for _, m := range mixes[:4] {
		out = append(out, m+" backing")
	}
	return append(out, extraMixes...)
}

func runGuest(t *testing.T, mix string, seed uint64, requests, samples int) (states int) {
	dir := tempDir(t)
	r := rand.New(rand.NewPCG(seed, 2))
	options, backed := strings.CutSuffix(mix, " backing")
	size := diskSize(mix)
	g := &guestRun{img: qcow2("a")}
	if backed {
		base := qcow2("base")
		mustCommand(t, dir, fmt.Sprintf("create -q -f qcow2 @base %d", size-3*512))
		fill(t, dir, base, r, 0.6)
		options += " -b base -F qcow2"
	}
	mustCommand(t, dir, fmt.Sprintf("create -q -f qcow2 -o %s @a %d", options, size))
	fill(t, dir, g.img, r, 0.3)
	w := recordFiles(t, dir, func(w *world) { g.requests(t, w, dir, r, requests) })
	for at, disks := range w.states(r, samples) {
		states++
		s := &state{w, disks}
		v, err := look(s.context(t.Context()), dir, g.img)
		if err == nil {
			err = g.judge(v.disk, at)
		}
		if err != nil {
			t.Fatalf("%s, seed %d: power loss after %d of %d events: %v\n%s", mix, seed, at, w.set.Len(), err,
				verbCase{lines: filepath.Base(dir)}.story(w, at))
		}
	}
	return states
}
