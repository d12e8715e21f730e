package vm

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
)

// ParseForward reads a port forward as people write it:
//
//	[ADDR:][HOSTPORT:]GUESTPORT[/tcp|/udp]
//
// "8080:80" makes the guest's TCP port 80 reachable on 127.0.0.1:8080, "80"
// on a port that is chosen at the start (as does host port 0), and
// "0.0.0.0:8080:80/udp" a UDP port on every address of the host. ADDR is an
// IPv4 address.
func ParseForward(text string) (Forward, error) {
	bad := func(why string) (Forward, error) {
		return Forward{}, fmt.Errorf("port forward %q: %s: expected [ADDR:][HOSTPORT:]GUESTPORT[/tcp|/udp], such as 8080:80", text, why)
	}
	f := Forward{Proto: "tcp", HostAddr: "127.0.0.1"}
	rest, proto, found := strings.Cut(text, "/")
	if found {
		if proto != "tcp" && proto != "udp" {
			return bad(fmt.Sprintf("unknown protocol %q", proto))
		}
		f.Proto = proto
	}
	if strings.HasPrefix(rest, "[") {
		return bad("QEMU's user network forwards IPv4 only")
	}
	parts := strings.Split(rest, ":")
	if len(parts) > 3 {
		return bad("too many colons")
	}
	guest, ok := parsePort(parts[len(parts)-1])
	if !ok || guest == 0 {
		return bad("the guest port must be 1 to 65535")
	}
	f.GuestPort = guest
	if len(parts) >= 2 {
		host, ok := parsePort(parts[len(parts)-2])
		if !ok {
			return bad("the host port must be 0 (choose one) to 65535")
		}
		f.HostPort = host
	}
	if len(parts) == 3 {
		a, err := netip.ParseAddr(parts[0])
		if err != nil || !a.Is4() {
			return bad(fmt.Sprintf("%q is not an IPv4 address", parts[0]))
		}
		f.HostAddr = a.String()
	}
	return f, nil
}

func parsePort(s string) (int, bool) {
	if s == "" || s[0] == '+' || s[0] == '-' {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 16)
	return int(n), err == nil
}

// String writes a forward as [ParseForward] reads it.
func (f Forward) String() string {
	f = f.withDefaults()
	s := fmt.Sprintf("%s:%d:%d", f.HostAddr, f.HostPort, f.GuestPort)
	if f.Proto != "tcp" {
		s += "/" + f.Proto
	}
	return s
}

// ParseSize reads a number of bytes as qemu-img takes it: a number, which may
// have a fraction, and a suffix of 1024: k, M, G, T, P or E, alone or as in KiB
// or KB. No suffix means bytes.
func ParseSize(text string) (int64, error) { return parseSize(text, "") }

// ParseMemory reads an amount of memory: as [ParseSize], but no suffix means
// MiB, as for QEMU's -m and virt-install's --memory.
func ParseMemory(text string) (int64, error) { return parseSize(text, "M") }

func parseSize(text, defaultSuffix string) (int64, error) {
	bad := func(why string) (int64, error) {
		return 0, fmt.Errorf("size %q: %s: expected a number and k, M, G or T, such as 1G or 512M", text, why)
	}
	i := strings.IndexFunc(text, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	number, suffix := text, defaultSuffix
	if i >= 0 {
		number, suffix = text[:i], text[i:]
	}
	shift, ok := sizeSuffix(suffix)
	if !ok {
		return bad(fmt.Sprintf("unknown suffix %q", suffix))
	}
	if whole, err := strconv.ParseInt(number, 10, 64); err == nil {
		if whole > math.MaxInt64>>shift {
			return bad("too large")
		}
		return whole << shift, nil
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil || number[0] == '.' {
		return bad("not a number")
	}
	f = math.Ldexp(f, int(shift))
	if f >= math.MaxInt64 {
		return bad("too large")
	}
	return int64(f), nil
}

// sizeSuffix returns the power of two that a suffix stands for.
func sizeSuffix(s string) (uint, bool) {
	if s == "" || s == "B" || s == "b" {
		return 0, true
	}
	i := strings.IndexByte("KMGTPE", s[0]&^0x20)
	if i < 0 {
		return 0, false
	}
	switch s[1:] {
	case "", "B", "b", "iB", "ib":
		return uint(i+1) * 10, true
	}
	return 0, false
}
