package main

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
)

// layout is the shape of a bench disk: dataSize of its bytes are written, in
// runs with holes between them.
type layout struct {
	diskSize, dataSize int64
	// minRun and maxRun bound the runs, in pages.
	minRun, maxRun int
}

const pageSize = 4096

// writeDisk makes a sparse raw disk whose content is the same in every run: of
// a compressibility like that of an OS disk, no two pages alike.
func writeDisk(path string, l layout) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	if err := f.Truncate(l.diskSize); err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	pool := newPool(rnd)
	if err := pool.check(); err != nil {
		return err
	}
	pages, free := l.dataSize/pageSize, (l.diskSize-l.dataSize)/pageSize
	run := make([]byte, 0, l.maxRun*pageSize)
	for at, serial := int64(0), uint64(0); pages > 0; {
		n := min(int64(l.minRun+rnd.IntN(l.maxRun-l.minRun+1)), pages)
		run = run[:0]
		for range n {
			run = pool.page(run, rnd, &serial)
		}
		if _, err := f.WriteAt(run, at*pageSize); err != nil {
			return err
		}
		pages -= n
		// The holes are spread like the runs.
		hole := min(int64(float64(n)*float64(free)/float64(pages+n)*(0.5+rnd.Float64())), free)
		free -= hole
		at += n + hole
	}
	return f.Sync()
}

// pool is what pages are cut from.
type pool struct{ data []byte }

// poolSize is far beyond what a compressor looks back.
const poolSize = 16 << 20

// newPool makes bytes as compressors find them in programs and text: short
// runs of literals of which some values are much more frequent, and repeats of
// something not far behind. One part in ten does not compress at all.
func newPool(rnd *rand.Rand) *pool {
	var skewed [256]byte
	for i := range skewed {
		skewed[i] = byte(math.Pow(rnd.Float64(), 3) * 256)
	}
	p := make([]byte, 0, poolSize+512)
	for len(p) < poolSize {
		if len(p)/(64<<10)%10 == 9 {
			p = binary.LittleEndian.AppendUint64(p, rnd.Uint64())
			continue
		}
		r := rnd.Uint64()
		for range 2 + r&7 {
			p = append(p, skewed[byte(rnd.Uint32())])
		}
		length := 4 + int(r>>8&15)
		distance := length + int(math.Exp(float64(r>>16&0xffff)/0xffff*math.Log(3500)))
		if distance < len(p) {
			p = append(p, p[len(p)-distance:len(p)-distance+length]...)
		}
	}
	return &pool{p[:poolSize]}
}

// page appends the next page.
func (p *pool) page(to []byte, rnd *rand.Rand, serial *uint64) []byte {
	at := rnd.IntN(poolSize/pageSize) * pageSize
	to = append(to, p.data[at:at+pageSize]...)
	*serial++
	binary.LittleEndian.PutUint64(to[len(to)-8:], *serial)
	return to
}

// check holds that the content compresses as that of an OS disk does.
func (p *pool) check() error {
	var z bytes.Buffer
	w := zlib.NewWriter(&z)
	if _, err := w.Write(p.data[:4<<20]); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	if ratio := float64(4<<20) / float64(z.Len()); ratio < 1.8 || ratio > 3.2 {
		return fmt.Errorf("the content of the bench disk compresses %.2f times: it should be like an OS disk", ratio)
	}
	return nil
}
