package qemu

import (
	"context"
	"strconv"
	"strings"
)

// Reached implements [vm.ForwardProber] by what slirp says of its connections.
func (m *machine) Reached(ctx context.Context, hostPort int) (bool, error) {
	var out string
	if err := m.execute(ctx, "human-monitor-command", map[string]string{"command-line": "info usernet"}, &out); err != nil {
		return false, err
	}
	return !connecting(out, hostPort), nil
}

// connecting says whether a table of slirp's connections has one to a port of the
// host that its guest has not answered. Its lines are, after a heading:
//
//	Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
//	TCP[SYN_SENT]      15       127.0.0.1  8080       10.0.2.15    80     0     0
//
// For a forwarded connection the source is the host's end of the forward.
func connecting(table string, hostPort int) bool {
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) >= 6 && f[0] == "TCP[SYN_SENT]" && f[3] == strconv.Itoa(hostPort) {
			return true
		}
	}
	return false
}
