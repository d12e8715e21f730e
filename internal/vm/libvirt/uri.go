package libvirt

import (
	"bufio"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// transport is how the daemon is reached.
type transport int

const (
	overUnix transport = iota
	overSSH
)

// place is a connection URI taken apart.
type place struct {
	uri     string // as given
	name    string // what the daemon itself is asked to open: qemu:///system
	session bool
	over    transport
	socket  string // a path that the person gave, or ""
	mode    string // "auto", "legacy" (libvirtd) or "direct" (virtqemud)

	// of ssh
	user, host, port string
	keyfile, netcat  string
	command          string
	proxy            string // "auto", "netcat" or "native"
	noTTY, noVerify  bool
}

// DefaultURI is the URI that libvirt's clients use where none is given: that
// of the environment (LIBVIRT_DEFAULT_URI), else uri_default of the
// client's configuration file, else qemu:///system for root and where the
// user may write to its socket, and qemu:///session for everyone else.
func DefaultURI() string {
	if u := os.Getenv("LIBVIRT_DEFAULT_URI"); u != "" {
		return u
	}
	file := "/etc/libvirt/libvirt.conf"
	if os.Geteuid() != 0 {
		dir, err := os.UserConfigDir()
		if err == nil {
			file = filepath.Join(dir, "libvirt", "libvirt.conf")
		}
	}
	if u := configured(file, "uri_default"); u != "" {
		return u
	}
	if os.Geteuid() == 0 {
		return "qemu:///system"
	}
	return "qemu:///session"
}

// configured reads one string of a libvirt configuration file, "" where the
// file or the key is missing.
func configured(file, key string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	for s := bufio.NewScanner(f); s.Scan(); {
		k, v, ok := strings.Cut(s.Text(), "=")
		if ok && strings.TrimSpace(k) == key {
			if u, err := strconv.Unquote(strings.TrimSpace(v)); err == nil {
				return u
			}
		}
	}
	return ""
}

// parseURI reads a connection URI of the kinds that this package speaks:
// qemu[+unix|+ssh]://[user@][host][:port]/{system,session}[?options].
func parseURI(uri string) (place, error) {
	bad := func(format string, args ...any) (place, error) {
		return place{}, fmt.Errorf("%w %q: %s", ErrBadURI, uri, fmt.Sprintf(format, args...))
	}
	u, err := url.Parse(uri)
	if err != nil {
		return bad("%v: expected the like of qemu:///system", err)
	}
	driver, over, _ := strings.Cut(u.Scheme, "+")
	p := place{uri: uri, host: u.Hostname(), port: u.Port(), user: u.User.Username(), mode: "auto", proxy: "auto"}
	switch {
	case driver == "":
		return bad("it names no driver: expected the like of qemu:///system")
	case driver == "test":
		return bad("the test driver exists inside libvirt's own library only: use qemu:///system or qemu:///session")
	case driver != "qemu":
		return bad("driver %s is not supported here, which speaks to QEMU machines only: use qemu:///system or qemu:///session", driver)
	}
	switch {
	case over == "" && p.host == "", over == "unix" && p.host == "":
		p.over = overUnix
	case over == "unix":
		return bad("a unix socket is on this host: leave out %q", p.host)
	case over == "ssh" && p.host == "":
		return bad("it names no host: expected the like of qemu+ssh://user@host/system")
	case over == "ssh":
		p.over = overSSH
	case over == "", over == "tls":
		return bad("TLS is not supported here: use qemu+ssh://%s%s", p.host, u.Path)
	default:
		return bad("transport %s is not supported here: use unix or ssh", over)
	}
	switch u.Path {
	case "/system":
	case "/session":
		p.session = true
	default:
		return bad("path %q is neither /system nor /session", u.Path)
	}
	p.name = "qemu://" + u.Path
	if err := p.options(u.Query()); err != nil {
		return bad("%v", err)
	}
	if strings.HasPrefix(p.host, "-") || strings.HasPrefix(p.user, "-") {
		return bad("a host or user cannot begin with '-'")
	}
	return p, nil
}

// options reads the query of the URI; an unknown one is refused, as libvirt
// does where it matters, rather than ignored.
func (p *place) options(q url.Values) error {
	for k, values := range q {
		v := values[0]
		switch k {
		case "socket":
			p.socket = v
		case "mode":
			p.mode = v
		case "keyfile":
			p.keyfile = v
		case "netcat":
			p.netcat = v
		case "command":
			p.command = v
		case "proxy":
			p.proxy = v
		case "no_tty":
			p.noTTY = v != "0"
		case "no_verify":
			p.noVerify = v != "0"
		default:
			return fmt.Errorf("unknown option %q: expected socket, mode, keyfile, netcat, command, proxy, no_tty or no_verify", k)
		}
	}
	if p.mode != "auto" && p.mode != "legacy" && p.mode != "direct" {
		return fmt.Errorf("mode=%s: expected auto, legacy or direct", p.mode)
	}
	if p.proxy != "auto" && p.proxy != "netcat" && p.proxy != "native" {
		return fmt.Errorf("proxy=%s: expected auto, netcat or native", p.proxy)
	}
	if p.over == overUnix && p.socket != "" && !filepath.IsAbs(p.socket) {
		return fmt.Errorf("socket=%s is not an absolute path", p.socket)
	}
	return nil
}

// socketDir is the folder of the daemon's sockets on this host.
func (p place) socketDir() (string, error) {
	if !p.session {
		return "/run/libvirt", nil
	}
	if d := os.Getenv("XDG_RUNTIME_DIR"); d != "" {
		return filepath.Join(d, "libvirt"), nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no folder for the session daemon's socket: set XDG_RUNTIME_DIR or HOME: %w", err)
	}
	return filepath.Join(cache, "libvirt"), nil
}

// The sockets' names: of the modular daemon, and of the one for everything.
const (
	directSocket = "virtqemud-sock"
	legacySocket = "libvirt-sock"
)

// sockets are the paths to try, in libvirt's order.
func (p place) sockets() ([]string, error) {
	if p.socket != "" {
		return []string{p.socket}, nil
	}
	dir, err := p.socketDir()
	if err != nil {
		return nil, err
	}
	direct, legacy := filepath.Join(dir, directSocket), filepath.Join(dir, legacySocket)
	switch p.mode {
	case "legacy":
		return []string{legacy}, nil
	case "direct":
		return []string{direct}, nil
	}
	return []string{direct, legacy}, nil
}
