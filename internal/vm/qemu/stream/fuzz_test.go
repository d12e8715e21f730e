package stream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"testing"
)

// FuzzSplit: no input panics, hangs or takes more than its bounds; what is taken
// apart passes Check, and its state, which has no page of the RAM any more, comes out
// of another split as it went in.
func FuzzSplit(f *testing.F) {
	for _, footers := range []bool{true, false} {
		m := (&maker{footers: footers}).head("pc").start(testBlocks[0], Block{"b", 2 * PageSize})
		f.Add(m.part(sectionPart).page("pc.ram", 1, 1).page("pc.ram", 2, 0).eos().
			put([]byte{sectionCommand}, be(2, switchoverStart), be(2, 0)).
			part(sectionEnd).page("b", 0, 3).page("pc.ram", 1, 0).page("b", 1, 0).eos().put(devices).Bytes())
	}
	for _, m := range refusals() {
		f.Add(m.Bytes())
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		checkSeal(t, in)
		ram, state := tempFile(t, "ram"), tempFile(t, "state")
		s := New(Options{Block: "pc.ram", Size: mainPages * PageSize, RAM: ram, State: state})
		res, err := s.Run(bytes.NewReader(in))
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Errorf("an error about the stream that is none: %v", err)
			}
			return
		}
		if err := Check(state, ram); err != nil {
			t.Fatal(err)
		}
		seal, err := readSeal(state, res.State)
		if err != nil || seal == nil {
			t.Fatalf("seal %v, %v", seal, err)
		}
		b, err := os.ReadFile(state.Name())
		if err != nil {
			t.Fatal(err)
		}
		b = b[:len(b)-len(seal)-sealTail]
		ram2, state2 := tempFile(t, "ram2"), tempFile(t, "state2")
		again, err := New(Options{Block: "pc.ram", Size: mainPages * PageSize, RAM: ram2, State: state2}).Run(bytes.NewReader(b))
		if err != nil || again.Data != 0 || again.Machine != res.Machine {
			t.Fatalf("the state again: %+v, %v", again, err)
		}
		if got := contents(t, state2); !bytes.HasPrefix(got, b) {
			t.Error("the state again is another one")
		}
	})
}

// checkSeal takes in for a state whose seal is right but for what it says.
func checkSeal(t *testing.T, in []byte) {
	t.Helper()
	if len(in) < sealFixed {
		return
	}
	ram, state := tempFile(t, "ram0"), tempFile(t, "state0")
	n := sealFixed + min(len(in)-sealFixed, sealSamples*sealSample)/sealSample*sealSample
	seal := append([]byte(nil), in[len(in)-n:]...)
	binary.BigEndian.PutUint32(seal[20:], uint32((n-sealFixed)/sealSample))
	body := in[:len(in)-n]
	if len(in)%2 == 0 { // what is before it is right too, so that the samples are looked at
		binary.BigEndian.PutUint64(seal, 2*PageSize)
		binary.BigEndian.PutUint64(seal[8:], uint64(len(body)))
		binary.BigEndian.PutUint32(seal[16:], crc32.Checksum(body, castagnoli))
	}
	b := append(append([]byte(nil), body...), seal...)
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(seal, castagnoli))
	_, err := state.Write(append(b, sealMark...))
	if err := errors.Join(err, ram.Truncate(2*PageSize)); err != nil {
		t.Fatal(err)
	}
	if err := Check(state, ram); err != nil && !errors.Is(err, ErrDamaged) {
		t.Errorf("a seal: %v", err)
	}
}

// BenchmarkSplit is of 256 MiB of RAM, a quarter of it zeros.
func BenchmarkSplit(b *testing.B) {
	const pages = 65536
	m := &maker{footers: true}
	m.head("pc").start(Block{"pc.ram", pages * PageSize}).part(sectionPart)
	for i := range pages {
		m.page("pc.ram", i, byte(i/512%4))
	}
	m.eos().part(sectionEnd).eos().Write(devices)
	b.SetBytes(pages * PageSize)
	b.ReportAllocs()
	for b.Loop() {
		ram, state := tempFile(b, "ram"), tempFile(b, "state")
		if _, err := New(Options{Block: "pc.ram", Size: pages * PageSize, RAM: ram, State: state}).Run(bytes.NewReader(m.Bytes())); err != nil {
			b.Fatal(err)
		}
		_ = os.Remove(ram.Name())
	}
}
