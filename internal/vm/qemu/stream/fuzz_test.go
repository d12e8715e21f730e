package stream

import (
	"bytes"
	"errors"
	"os"
	"testing"
)

// FuzzSplit: no input panics, hangs or takes more than its bounds; what is taken
// apart passes Check, and its state, which has no page of the RAM any more, comes out
// of another split as it went in.
func FuzzSplit(f *testing.F) {
	const pages = 8 // few, as the inputs are copied about a lot
	for _, footers := range []bool{true, false} {
		m := (&maker{footers: footers}).head("pc").start(Block{"pc.ram", pages * PageSize}, Block{"b", 2 * PageSize})
		f.Add(m.part(sectionPart).page("pc.ram", 1, 1).page("pc.ram", 2, 0).eos().
			put([]byte{sectionCommand}, be(2, switchoverStart), be(2, 0)).
			part(sectionEnd).page("b", 0, 3).page("pc.ram", 1, 0).page("b", 1, 0).eos().put(devices).Bytes())
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		ram, state := tempFile(t, "ram"), tempFile(t, "state")
		s := New(Options{Block: "pc.ram", Size: pages * PageSize, RAM: ram, State: state})
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
		again, err := New(Options{Block: "pc.ram", Size: pages * PageSize, RAM: ram2, State: state2}).Run(bytes.NewReader(b))
		if err != nil || again.Data != 0 || again.Machine != res.Machine {
			t.Fatalf("the state again: %+v, %v", again, err)
		}
		if got := contents(t, state2); !bytes.HasPrefix(got, b) {
			t.Error("the state again is another one")
		}
	})
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
