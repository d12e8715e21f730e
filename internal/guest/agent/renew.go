package agent

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

var (
	//go:embed scripts/renew.sh
	renewScript string
	//go:embed scripts/network.sh
	networkScript string
	//go:embed scripts/cards.sh
	cardsScript string
	//go:embed scripts/dhcp.sh
	dhcpScript string
	//go:embed scripts/report.sh
	reportScript string
	//go:embed scripts/cloudinit.sh
	cloudInitScript string
)

// Renew gives the guest at the other end another identity and returns what it
// says of itself, which has been checked against what was asked: an error that
// is an [ErrMismatch] says what differs. It may be called again after an error.
//
// One script does it all but for the wait for the cards' addresses and what the guest's
// cloud-init has to do, which takes as long as it takes: an [ErrUserData] comes
// with a valid Report. Log files, an RSA host key and the login prompt follow in
// the background.
func Renew(ctx context.Context, c *Conn, id Identity) (Report, error) {
	if err := id.validate(); err != nil {
		return Report{}, err
	}
	vars, err := id.variables(time.Now())
	if err != nil {
		return Report{}, err
	}
	steps := []string{"renew_random", "renew_machine_id", "renew_hostname"}
	// Its addresses come by what the person's configuration says, if there is one.
	macs := id.macs()
	if len(id.Seed.NetworkConfig) > 0 {
		macs = nil
	}
	if len(macs) > 0 {
		steps = append(steps, "network")
	}
	steps = append(steps, "renew_clock", "renew_ssh", "renew_user")
	if !id.byCloudInit() {
		steps = append(steps, "keep_instance")
	}
	steps = append(steps, "report", "later")
	s, err := runScript(ctx, c, renewScript+networkScript+reportScript, vars, steps)
	if err != nil {
		return Report{}, err
	}
	r, err := s.check(id)
	if err != nil {
		return Report{}, err
	}
	if id.Plug != nil {
		if err := id.Plug(ctx); err != nil {
			return Report{}, err
		}
	}
	if len(macs) > 0 {
		w := cardWait{c: c, macs: macs, manager: s.one("network"), timeout: id.networkTimeout()}
		if r.Addresses, err = w.wait(ctx); err != nil {
			return Report{}, err
		}
	}
	r.At = time.Now()
	if !id.byCloudInit() {
		return r, nil
	}
	s, err = runScript(ctx, c, renewScript+cloudInitScript+reportScript, vars, []string{"cloud_init", "report"})
	if err != nil {
		return r, fmt.Errorf("%w: %w", ErrUserData, err)
	}
	return s.afterCloudInit(r)
}

// runScript runs functions of a script that ends with a line "=end".
func runScript(ctx context.Context, c *Conn, script, vars string, steps []string) (said, error) {
	res, err := c.Run(ctx, vars+"\n"+squeeze(script)+strings.Join(steps, "\n"), nil)
	if err != nil {
		return said{}, err
	}
	s := parseSaid(res.Output)
	if !s.whole {
		return said{}, fmt.Errorf("the script ended with status %d in the guest before it was done%s", res.Status, s.noiseText())
	}
	return s, nil
}

// squeeze leaves comments and indentation out of a script: in the guest each
// byte costs a system call. A line of the script must not begin with a blank or
// a # that means something.
func squeeze(script string) string {
	var b strings.Builder
	for line := range strings.SplitSeq(script, "\n") {
		line = strings.TrimLeft(line, " ")
		if line == "" || line[0] == '#' {
			continue
		}
		b.WriteString(line)
		b.WriteByte('\n')
	}
	return b.String()
}

// variables are the assignments that the script begins with.
func (id Identity) variables(now time.Time) (string, error) {
	s := id.Seed
	hash, err := s.PasswordHash()
	if err != nil {
		return "", err
	}
	public, err := id.HostKeys.Public()
	if err != nil {
		return "", err
	}
	ed, ec, err := id.HostKeys.openSSH()
	if err != nil {
		return "", err
	}
	dropED, dropEC, err := id.HostKeys.dropbear()
	if err != nil {
		return "", err
	}
	host, _, _ := strings.Cut(s.Hostname, ".")
	var keys []string
	for _, k := range s.SSHKeys {
		keys = append(keys, strings.TrimSpace(k))
	}
	var b strings.Builder
	for _, v := range [][2]string{
		{"host", host},
		{"fqdn", s.Hostname},
		{"machine_id", id.MachineID},
		{"instance_id", s.InstanceID},
		{"random", randomHex(64)},
		{"random_seed", randomHex(64)},
		{"now", fmt.Sprintf("%d.%09d", now.Unix(), now.Nanosecond())},
		{"user", s.User},
		{"hash", hash},
		{"ssh_keys", strings.Join(keys, "\n")},
		{"macs", strings.Join(id.macs(), " ")},
		// A UUID but for its last digit, the card's number.
		{"uuid", uuidOf(NewMachineID())[:35]},
		{"ed25519", ed},
		{"ecdsa", ec},
		{"ed25519_pub", public[0]},
		{"ecdsa_pub", public[1]},
		{"dropbear_ed25519", octal(dropED)},
		{"dropbear_ecdsa", octal(dropEC)},
	} {
		b.WriteString(v[0] + "=" + quote(v[1]) + "\n")
	}
	return b.String(), nil
}

// randomHex is n random bytes in hexadecimal digits.
func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // does not fail
	return hex.EncodeToString(b)
}

func uuidOf(id string) string {
	return id[:8] + "-" + id[8:12] + "-" + id[12:16] + "-" + id[16:20] + "-" + id[20:]
}

// octal is data as printf's format takes it.
func octal(data []byte) string {
	var b strings.Builder
	for _, c := range data {
		fmt.Fprintf(&b, `\%03o`, c)
	}
	return b.String()
}

// quote makes one word of the shell of s.
func quote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// errNotSaid is for a guest that leaves out a part of its report.
var errNotSaid = errors.New("it does not say")
