package agent

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// How often the guest is asked for its cards' addresses. QEMU's agent starts a
// program for each question.
const (
	askLamina = 100 * time.Millisecond
	askQEMU   = 300 * time.Millisecond
)

// cardWait waits for cards to have addresses.
type cardWait struct {
	c       *Conn
	macs    []string
	manager string // what manages the guest's network, in its own words
	timeout time.Duration
	first   *said // what the guest has said of its cards already; nil: it was not asked
}

// wait returns the addresses of all the cards, when each has one.
func (w *cardWait) wait(ctx context.Context) ([]string, error) {
	every := askLamina
	if w.c.Kind() == KindQEMU {
		every = askQEMU
	}
	asked := map[string]bool{}
	for began := time.Now(); ; {
		s, err := w.look(ctx)
		if err != nil {
			return nil, err
		}
		for _, mac := range s.values["asked"] {
			asked[mac] = true
		}
		cards, addresses := s.cards()
		late := time.Since(began) > w.timeout/2
		var missing []string
		for _, mac := range w.macs {
			switch card := cards[mac]; {
			case slices.ContainsFunc(addresses[mac], isIPv4), late && len(addresses[mac]) > 0:
			case card == "":
				missing = append(missing, "no card with the address "+mac)
			default:
				missing = append(missing, "no address for its card "+mac)
				if asked[mac] || w.byItself() {
					break
				}
				asked[mac] = true
				if err := w.ask(ctx, card); err != nil {
					return nil, err
				}
			}
		}
		if len(missing) == 0 {
			var all []string
			for _, mac := range w.macs {
				all = append(all, addresses[mac]...)
			}
			slices.Sort(all)
			return slices.Compact(all), nil
		}
		if time.Since(began) > w.timeout {
			return nil, fmt.Errorf("%w: after %s it has %s", ErrMismatch, w.timeout, strings.Join(missing, ", "))
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the guest has %s: %w", strings.Join(missing, ", "), context.Cause(ctx))
		case <-time.After(every):
		}
	}
}

// look asks the guest for its cards, unless it has said them unasked.
func (w *cardWait) look(ctx context.Context) (said, error) {
	if w.first != nil {
		s := *w.first
		w.first = nil
		return s, nil
	}
	vars := "macs=" + quote(strings.Join(w.macs, " ")) + "\nfact_network=" + quote(w.manager) + "\n"
	return runLibrary(ctx, w.c, vars, []string{"cards", "echo =end"}, nil)
}

// byItself: a service of the guest brings cards up that come.
func (w *cardWait) byItself() bool {
	return w.manager == "networkd" || w.manager == "networkmanager"
}

// ask has the guest ask for an address for a card, which it does within
// seconds, or not.
func (w *cardWait) ask(ctx context.Context, card string) error {
	_, err := runLibrary(ctx, w.c, "fact_network="+quote(w.manager)+"\n", []string{"ask " + quote(card), "echo =end"}, nil)
	return err
}

// cards are the names, and the addresses that count, by the cards' own
// addresses.
func (s said) cards() (names map[string]string, addresses map[string][]string) {
	names, addresses = map[string]string{}, map[string][]string{}
	for _, v := range s.values["card"] {
		if mac, name, ok := strings.Cut(v, " "); ok && isCardName(name) {
			names[mac] = name
		}
	}
	for _, v := range s.values["address"] {
		f := strings.Fields(v)
		if len(f) != 3 {
			continue
		}
		p, err := netip.ParsePrefix(f[2])
		if err != nil || p.Addr().IsLoopback() || p.Addr().IsLinkLocalUnicast() || p.Addr().Zone() != "" {
			continue
		}
		addresses[f[0]] = append(addresses[f[0]], p.Addr().String())
	}
	return names, addresses
}

// isIPv4: that of IPv6 may be there before the DHCP server has answered.
func isIPv4(address string) bool {
	a, err := netip.ParseAddr(address)
	return err == nil && a.Is4()
}

// isCardName: what the kernel lets a card be called, but for what a shell
// would see more in.
func isCardName(name string) bool {
	return name != "" && len(name) < 16 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == ""
}
