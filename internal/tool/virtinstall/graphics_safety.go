package virtinstall

import (
	"crypto/rand"
	"fmt"
	"net"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// secureGraphics gives a password to every screen that others than this
// computer's users can reach and that has none, and says it: virt-install's
// listen=0.0.0.0 goes on working, but not for everybody. It is called when a
// machine is really made, so that a printed document is the original's.
// --insecure-graphics leaves the screens as they are.
func (g *guest) secureGraphics(docs ...*domxml.Element) error {
	if g.args.has("insecure-graphics") || len(docs) == 0 {
		return nil
	}
	made := map[int]string{} // by the screen's place: both phases have the same
	for _, doc := range docs {
		for i, el := range doc.Child("devices").All("graphics") {
			address, exposed := exposedAt(el)
			if !exposed {
				continue
			}
			if made[i] == "" {
				length := 16
				if el.Attr("type") == "vnc" {
					length = 8 // it looks at no more
				}
				made[i] = newPassword(length)
				if _, err := fmt.Fprintf(g.std.Out, "The %s screen listens on %s, which others can reach. Its password is %s (choose another with password=, or none with --insecure-graphics).\n",
					el.Attr("type"), address, made[i]); err != nil {
					return fmt.Errorf("the password of the screen cannot be shown: %w", err)
				}
			}
			el.SetAttr("passwd", made[i])
		}
	}
	return nil
}

// exposedAt returns the address at which others can use a screen without a
// password and without TLS.
func exposedAt(el *domxml.Element) (string, bool) {
	kind := el.Attr("type")
	if kind != "vnc" && kind != "spice" || el.Attr("passwd") != "" || kind == "spice" && el.Attr("defaultMode") == "secure" {
		return "", false
	}
	addresses := []string{el.Attr("listen")}
	for _, l := range el.All("listen") {
		switch l.Attr("type") {
		case "none", "socket":
		case "network":
			return "the network " + l.Attr("network"), true
		default:
			addresses = append(addresses, l.Attr("address"))
		}
	}
	for _, a := range addresses {
		if a != "" && !isLoopback(a) {
			return a, true
		}
	}
	return "", false
}

// isLoopback reports whether an address is this computer's own. A name other
// than localhost may be anything.
func isLoopback(address string) bool {
	if strings.EqualFold(address, "localhost") {
		return true
	}
	ip := net.ParseIP(strings.Trim(address, "[]"))
	return ip != nil && ip.IsLoopback()
}

// newPassword makes up a password of letters and digits that are not mistaken
// for one another: 5 bits each.
func newPassword(length int) string {
	const alphabet = "abcdefghijkmnpqrstuvwxyz23456789"
	b := make([]byte, length)
	_, _ = rand.Read(b) // never fails
	for i := range b {
		b[i] = alphabet[b[i]%32]
	}
	return string(b)
}
