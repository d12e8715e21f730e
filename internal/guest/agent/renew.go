package agent

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
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
// One script does it all but for what the guest's cloud-init has to do and, where a
// service of the guest asks for them, the wait for the cards' addresses: Plug is called
// while it runs, when the guest has said its new name. User-data takes as long as it
// takes: an [ErrUserData] comes with a valid Report. Log files, an RSA host key and the login prompt follow in
// the background.
func Renew(ctx context.Context, c *Conn, id Identity) (Report, error) {
	if err := id.validate(); err != nil {
		return Report{}, err
	}
	vars, err := id.variables(time.Now())
	if err != nil {
		return Report{}, err
	}
	// Its addresses come by what the person's configuration says, if there is one.
	macs := id.macs()
	if len(id.Seed.NetworkConfig) > 0 {
		macs = nil
	}
	plug := &plugging{ctx: ctx, id: id}
	defer func() { _ = plug.wait() }()
	s, err := runLibrary(ctx, c, vars, renewSteps(id, len(macs) > 0), plug.told)
	if err != nil {
		return Report{}, err
	}
	r, err := s.check(id)
	if err != nil {
		return Report{}, err
	}
	plug.begin()
	if err := plug.wait(); err != nil {
		return Report{}, err
	}
	if len(macs) > 0 {
		w := cardWait{c: c, macs: macs, manager: s.one("network"), timeout: id.networkTimeout(), first: &s}
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

// renewSteps are the functions that are called, in order. The keys are changed
// before the guest may be reached, its name before it asks for an address.
func renewSteps(id Identity, cards bool) []string {
	steps := []string{"renew_clock", "renew_random", "renew_machine_id", "renew_hostname"}
	if cards {
		steps = append(steps, "network")
	}
	steps = append(steps, "renew_ssh", "named", "renew_user")
	if !id.byCloudInit() {
		steps = append(steps, "keep_instance")
	}
	if cards {
		steps = append(steps, "ask_all", "cards")
	}
	return append(steps, "report", "later")
}

// plugging calls Identity.Plug once, beside the script.
type plugging struct {
	ctx  context.Context
	id   Identity
	once sync.Once
	done chan struct{}
	err  error // valid when done is closed
}

// told begins when the guest has said who it is now.
func (p *plugging) told(line string) {
	if line == "=named "+p.id.hostname()+" "+p.id.MachineID {
		p.begin()
	}
}

func (p *plugging) begin() {
	p.once.Do(func() {
		if p.id.Plug == nil {
			return
		}
		p.done = make(chan struct{})
		go func() {
			defer close(p.done)
			p.err = p.id.Plug(p.ctx)
		}()
	})
}

// wait returns when what was begun is done.
func (p *plugging) wait() error {
	if p.done == nil {
		return nil
	}
	<-p.done
	return p.err
}

// library are the functions of the identity script. [Prepare] has Lamina's agent keep
// them, so that they are neither sent to nor parsed by each machine.
var library = sync.OnceValue(func() string {
	return squeeze(renewScript + networkScript + dhcpScript + cardsScript + reportScript)
})

// libraryName tells libraries apart.
var libraryName = sync.OnceValue(func() string {
	sum := sha256.Sum256([]byte(library()))
	return hex.EncodeToString(sum[:8])
})

// runLibrary runs functions of the library, those that the agent has if it has them.
func runLibrary(ctx context.Context, c *Conn, vars string, steps []string, tell func(string)) (said, error) {
	if c.Kind() == KindLamina && !c.noLibrary.Load() {
		have := "[ \"$lamina_library\" = " + libraryName() + " ] || { echo =unknown; echo =end; exit; }\n"
		s, err := runTold(ctx, c, have+vars+"\n"+strings.Join(steps, "\n"), tell)
		if err != nil || len(s.values["unknown"]) == 0 {
			return s, err
		}
		c.noLibrary.Store(true)
	}
	return runTold(ctx, c, vars+"\n"+library()+strings.Join(steps, "\n"), tell)
}

// keepLibrary has the agent keep the library, if it can.
func keepLibrary(ctx context.Context, c *Conn) error {
	l, ok := c.wire.(*lamina)
	if !ok {
		return nil
	}
	r, err := c.Run(ctx, "echo $lamina_agent", nil)
	if err != nil {
		return err
	}
	if version, err := strconv.Atoi(strings.TrimSpace(string(r.Output))); err != nil || version < 2 {
		return nil // an image with an older one
	}
	return c.locked(ctx, func() error {
		r, err := l.define(library() + "lamina_library=" + libraryName())
		if err == nil && r.Status != 0 {
			err = fmt.Errorf("status %d%s", r.Status, parseSaid(r.Output).noiseText())
		}
		return err
	})
}

// runScript runs functions of a script that ends with a line "=end".
func runScript(ctx context.Context, c *Conn, script, vars string, steps []string) (said, error) {
	return runTold(ctx, c, vars+"\n"+squeeze(script)+strings.Join(steps, "\n"), nil)
}

func runTold(ctx context.Context, c *Conn, script string, tell func(string)) (said, error) {
	res, err := c.run(ctx, script, nil, tell)
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
	var keys []string
	for _, k := range s.SSHKeys {
		keys = append(keys, strings.TrimSpace(k))
	}
	var b strings.Builder
	for _, v := range [][2]string{
		{"host", id.hostname()},
		{"fqdn", s.Hostname},
		{"machine_id", id.MachineID},
		{"instance_id", s.InstanceID},
		{"random", randomHex(64)},
		{"random_seed", randomHex(64)},
		{"now", fmt.Sprintf("%d.%09d", now.Unix(), now.Nanosecond())},
		{"user", s.User},
		{"in_use", id.inUse()},
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
		{"dropbear_ed25519_sum", hexSum(dropED)},
		{"dropbear_ecdsa_sum", hexSum(dropEC)},
	} {
		b.WriteString(v[0] + "=" + quote(v[1]) + "\n")
	}
	return b.String(), nil
}

func hexSum(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
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
