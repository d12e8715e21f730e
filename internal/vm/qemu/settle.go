package qemu

import (
	"context"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm"
)

// settle tells QEMU what its command line cannot say, or should not say where
// everybody reads it, before the guest executes. It may be repeated.
func (m *machine) settle(ctx context.Context) error {
	s := m.record.Spec
	for i, d := range s.Disks {
		if d.Throttle.Bounded() {
			if err := m.throttle(ctx, m.record.diskID(i), d.Throttle); err != nil {
				return err
			}
		}
	}
	for i, n := range s.NICs {
		if n.Link == vm.LinkDown {
			if err := m.setLink(ctx, m.record.nicID(i), n.Link); err != nil {
				return err
			}
		}
	}
	for _, d := range s.Displays {
		if d.Password != "" {
			if err := m.setPassword(ctx, d.Type, d.Password, d.PasswordValidTo); err != nil {
				return err
			}
		}
	}
	if b := s.Balloon; b != nil && b.StatsPeriod > 0 {
		args := map[string]any{"path": "/machine/peripheral/balloon0", "property": "guest-stats-polling-interval", "value": b.StatsPeriod}
		return m.execute(ctx, "qom-set", args, nil)
	}
	return nil
}

// findPTYs notes the pseudoterminals that QEMU has opened.
func (m *machine) findPTYs(ctx context.Context) error {
	if !hasPTY(m.record.Spec) {
		return nil
	}
	var devices []struct {
		Label    string `json:"label"`
		Filename string `json:"filename"`
	}
	if err := m.execute(ctx, "query-chardev", nil, &devices); err != nil {
		return err
	}
	for _, d := range devices {
		if path, ok := strings.CutPrefix(d.Filename, "pty:"); ok {
			if m.record.Info.PTYs == nil {
				m.record.Info.PTYs = map[string]string{}
			}
			m.record.Info.PTYs[d.Label] = path
		}
	}
	return nil
}

func hasPTY(s vm.Spec) bool {
	pty := func(c vm.Char) bool { return c.Type == "" || c.Type == vm.CharPTY }
	for i, c := range s.Serials {
		if pty(c) && (i > 0 || !ownSerial(c)) {
			return true
		}
	}
	for _, list := range [][]vm.Char{s.Parallels, s.Consoles} {
		for _, c := range list {
			if pty(c) {
				return true
			}
		}
	}
	for _, c := range s.Channels {
		if pty(c.Char) {
			return true
		}
	}
	return false
}

// setPassword makes viewers from now on say a password.
func (m *machine) setPassword(ctx context.Context, kind vm.DisplayType, password, until string) error {
	if kind == vm.DisplayVNC && len(password) > vm.VNCPasswordLength {
		password = password[:vm.VNCPasswordLength] // all that the protocol carries
	}
	args := map[string]string{"protocol": string(kind), "password": password}
	if err := m.execute(ctx, "set_password", args, nil); err != nil || until == "" {
		return err
	}
	seconds, err := unixTime(until)
	if err != nil {
		return err
	}
	return m.execute(ctx, "expire_password", map[string]string{"protocol": string(kind), "time": seconds}, nil)
}
