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

//go:embed scripts/renew.sh
var renewScript string

// Renew gives the guest at the other end another identity and returns what it
// says of itself, which has been checked against what was asked: an error that
// is an [ErrMismatch] says what differs. It may be called again after an error.
//
// The guest is asked once; twice where Plug is set, and once more where its
// cloud-init has something to do, which takes as long as it takes: an
// [ErrUserData] comes with a valid Report. Log files, an RSA host key and the
// login prompt follow in the background.
func Renew(ctx context.Context, c *Conn, id Identity) (Report, error) {
	if err := id.validate(); err != nil {
		return Report{}, err
	}
	vars, err := id.variables(time.Now())
	if err != nil {
		return Report{}, err
	}
	// The network takes longest, so it begins as soon as the guest knows by which
	// name to ask.
	first := []string{"renew_random", "renew_machine_id", "renew_hostname"}
	rest := []string{"renew_clock", "keep_instance", "renew_ssh", "renew_user"}
	if id.byCloudInit() {
		rest = []string{"renew_clock", "renew_ssh", "renew_user"}
	}
	network := []string{"start_network"}
	last := []string{"start_cards", "report", "later"}
	if len(id.Seed.MACs) == 0 || len(id.Seed.NetworkConfig) > 0 {
		network, last = nil, []string{"report", "later"}
	}
	if id.Plug == nil {
		steps := concat(first, network, rest, last)
		return id.finish(ctx, c, vars, steps)
	}
	s, err := runSteps(ctx, c, vars, concat(first, rest, []string{"report"}))
	if err == nil {
		_, err = s.check(id, false)
	}
	if err != nil {
		return Report{}, err
	}
	if err := id.Plug(ctx); err != nil {
		return Report{}, err
	}
	return id.finish(ctx, c, vars, concat(network, last))
}

// finish runs the last steps of the identity, and what cloud-init has to do.
func (id Identity) finish(ctx context.Context, c *Conn, vars string, steps []string) (Report, error) {
	s, err := runSteps(ctx, c, vars, steps)
	if err != nil {
		return Report{}, err
	}
	r, err := s.check(id, true)
	if err != nil || !id.byCloudInit() {
		return r, err
	}
	s, err = runSteps(ctx, c, vars, []string{"cloud_init", "report"})
	if err != nil {
		return r, fmt.Errorf("%w: %w", ErrUserData, err)
	}
	return s.afterCloudInit(r)
}

func concat(lists ...[]string) []string {
	var out []string
	for _, l := range lists {
		out = append(out, l...)
	}
	return out
}

// runSteps runs functions of the identity script in the guest.
func runSteps(ctx context.Context, c *Conn, vars string, steps []string) (said, error) {
	return runScript(ctx, c, renewScript, vars, steps)
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
	macs := make([]string, len(s.MACs))
	for i, m := range s.MACs {
		macs[i] = strings.ToLower(strings.ReplaceAll(m, "-", ":"))
	}
	var b strings.Builder
	for _, v := range [][2]string{
		{"host", host},
		{"fqdn", s.Hostname},
		{"machine_id", id.MachineID},
		{"instance_id", s.InstanceID},
		{"random", randomHex(64)},
		{"random_seed", randomHex(256)},
		{"now", fmt.Sprintf("%d.%09d", now.Unix(), now.Nanosecond())},
		{"user", s.User},
		{"hash", hash},
		{"ssh_keys", strings.Join(keys, "\n")},
		{"macs", strings.Join(macs, " ")},
		{"patience", fmt.Sprint(int(id.networkTimeout() / (100 * time.Millisecond)))},
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
