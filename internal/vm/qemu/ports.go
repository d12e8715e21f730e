package qemu

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"github.com/lamina-vm/lamina/internal/vm"
)

// portPicker chooses free host ports. Between its look and QEMU's bind another
// process may take the port; the driver then starts again with others. Two starts
// of this process cannot choose the same one: udp ports would not even conflict,
// as QEMU binds them for reuse.
type portPicker struct {
	mu   sync.Mutex
	held map[string]bool // "tcp/8080", being given to a machine that starts
}

// fill returns the cards with every host port 0 replaced by a free one, and a
// function that lets go of them once QEMU has bound them or ended. A port that
// the spec names and that is taken is an error.
func (p *portPicker) fill(nics []vm.NIC) (filled []vm.NIC, chosen bool, release func(), err error) {
	var mine []string
	release = func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, k := range mine {
			delete(p.held, k)
		}
	}
	filled = slices.Clone(nics)
	for i := range filled {
		filled[i].Forwards = slices.Clone(filled[i].Forwards)
		for j := range filled[i].Forwards {
			f := &filled[i].Forwards[j]
			if f.HostPort != 0 {
				if _, err := bindable(*f); err != nil {
					release()
					return nil, false, nil, fmt.Errorf("port forward %s: %w: use another host port, or 0 to have one chosen", f, err)
				}
				continue
			}
			key, err := p.pick(f)
			if err != nil {
				release()
				return nil, false, nil, err
			}
			mine, chosen = append(mine, key), true
		}
	}
	return filled, chosen, release, nil
}

// fillDisplays is the same for the ports of displays.
func (p *portPicker) fillDisplays(displays []vm.Display) (filled []vm.Display, chosen bool, release func(), err error) {
	var mine []string
	release = func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, k := range mine {
			delete(p.held, k)
		}
	}
	filled = slices.Clone(displays)
	for i := range filled {
		d := &filled[i]
		if d.Type == vm.DisplayNone || d.NoListen || d.Socket != "" || d.Listen == "" && d.Port == 0 && d.TLSPort == 0 {
			continue
		}
		if d.Port == 0 && d.TLSPort == 0 {
			d.Port = -1
		}
		for _, port := range []*int{&d.Port, &d.TLSPort, &d.Websocket} {
			if *port == 0 {
				continue
			}
			key, err := p.pickDisplay(orLoopback(d.Listen), port)
			if err != nil {
				release()
				return nil, false, nil, fmt.Errorf("display %s: %w", d.Type, err)
			}
			if key != "" {
				mine, chosen = append(mine, key), true
			}
		}
	}
	return filled, chosen, release, nil
}

// The ports that displays are given: VNC's first one, and libvirt's range.
const (
	firstDisplayPort = 5900
	lastDisplayPort  = 65535
)

// pickDisplay sets a port that is -1 to the first free one, and tries one that
// is given.
func (p *portPicker) pickDisplay(host string, port *int) (key string, err error) {
	bind := func(n int) error {
		l, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(n)))
		if err != nil {
			return err
		}
		return l.Close()
	}
	if *port > 0 {
		if err := bind(*port); err != nil {
			return "", fmt.Errorf("%w: use another port, or -1 to have one chosen", err)
		}
		return "", nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var last error
	for n := firstDisplayPort; n <= lastDisplayPort; n++ {
		key := "tcp/" + strconv.Itoa(n)
		if p.held[key] {
			continue
		}
		if last = bind(n); last != nil {
			if !errors.Is(last, syscall.EADDRINUSE) {
				break // the address itself
			}
			continue
		}
		if p.held == nil {
			p.held = map[string]bool{}
		}
		p.held[key] = true
		*port = n
		return key, nil
	}
	return "", fmt.Errorf("no port: %w", last)
}

// pick sets f's host port to a free one.
func (p *portPicker) pick(f *vm.Forward) (key string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range 100 {
		port, err := bindable(*f)
		if err != nil {
			return "", fmt.Errorf("port forward %s: no free port: %w", f, err)
		}
		key := f.Proto + "/" + strconv.Itoa(port)
		if p.held[key] {
			continue
		}
		if p.held == nil {
			p.held = map[string]bool{}
		}
		p.held[key] = true
		f.HostPort = port
		return key, nil
	}
	return "", fmt.Errorf("port forward %s: every port tried is being given to another machine", f)
}

// bindable binds a forward's host port and lets it go again.
func bindable(f vm.Forward) (port int, err error) {
	addr := net.JoinHostPort(f.HostAddr, strconv.Itoa(f.HostPort))
	if f.Proto == "udp" {
		c, err := net.ListenPacket("udp4", addr)
		if err != nil {
			return 0, err
		}
		return c.LocalAddr().(*net.UDPAddr).Port, c.Close()
	}
	l, err := net.Listen("tcp4", addr)
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}
