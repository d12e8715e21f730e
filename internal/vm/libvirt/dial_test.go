package libvirt

import (
	"encoding/binary"
	"io"
	"net"
	"slices"
	"testing"
)

// TestWireOrder: a stream's packets come after the answer that opens it, also
// where the daemon sends them before it.
func TestWireOrder(t *testing.T) {
	packet := func(kind, serial uint32, text string) []byte {
		p := make([]byte, packetMin, packetMin+len(text))
		binary.BigEndian.PutUint32(p, uint32(packetMin+len(text)))
		binary.BigEndian.PutUint32(p[typeOffset:], kind)
		binary.BigEndian.PutUint32(p[serialOffset:], serial)
		return append(p, text...)
	}
	here, there := net.Pipe()
	sent := [][]byte{
		packet(typeReply, 4, "open"), packet(typeStream, 5, "one"), packet(2, 0, "event"),
		packet(typeStream, 5, "two"), packet(typeReply, 5, "answer"), packet(typeStream, 5, "three"),
	}
	go func() {
		for _, p := range sent {
			for len(p) > 0 { // in pieces, as a socket may have them
				n, err := there.Write(p[:min(len(p), 7)])
				if err != nil {
					return
				}
				p = p[n:]
			}
		}
		_ = there.Close()
	}()
	got, err := io.ReadAll(newWire(here))
	if err != nil {
		t.Fatal(err)
	}
	if want := slices.Concat(sent[0], sent[2], sent[4], sent[1], sent[3], sent[5]); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
