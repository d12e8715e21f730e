package qemu

import (
	"net"
	"sync"
	"testing"

	"github.com/lamina-vm/lamina/internal/vm"
)

// TestPortsAtOnce: machines that start at once never get the same port, and
// the spec's own cards keep their 0.
func TestPortsAtOnce(t *testing.T) {
	var p portPicker
	var mu sync.Mutex
	seen := map[string]bool{}
	nics := []vm.NIC{{Forwards: []vm.Forward{
		{Proto: "tcp", HostAddr: "127.0.0.1", GuestPort: 22},
		{Proto: "udp", HostAddr: "127.0.0.1", GuestPort: 53},
	}}}
	var wg sync.WaitGroup
	var releases []func()
	for range 50 {
		wg.Go(func() {
			filled, chosen, release, err := p.fill(nics)
			if err != nil || !chosen {
				t.Errorf("chosen %v, %v", chosen, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			releases = append(releases, release)
			for _, f := range filled[0].Forwards {
				if f.HostPort == 0 || seen[f.String()] {
					t.Errorf("%s is given twice, or none", f)
				}
				seen[f.String()] = true
			}
		})
	}
	wg.Wait()
	for _, r := range releases {
		r()
	}
	if len(p.held) != 0 {
		t.Errorf("still held: %v", p.held)
	}
	if nics[0].Forwards[0].HostPort != 0 {
		t.Error("the spec was changed")
	}
}

// TestPortTaken: a port that the spec names is refused before QEMU is started.
func TestPortTaken(t *testing.T) {
	c, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	taken := c.LocalAddr().(*net.UDPAddr).Port
	var p portPicker
	_, _, _, err = p.fill([]vm.NIC{{Forwards: []vm.Forward{
		{Proto: "tcp", HostAddr: "127.0.0.1", GuestPort: 22},
		{Proto: "udp", HostAddr: "127.0.0.1", HostPort: taken, GuestPort: 53},
	}}})
	if err == nil {
		t.Fatal("a port in use was given away")
	}
	requireIn(t, err.Error(), "address already in use", "another host port")
	if len(p.held) != 0 {
		t.Errorf("still held: %v", p.held)
	}
}
