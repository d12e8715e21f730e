package agent

import (
	"context"
	_ "embed"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/lamina-vm/lamina/internal/guest/seed"
)

var (
	//go:embed scripts/prepare.sh
	prepareScript string
	//go:embed scripts/settled.sh
	settledScript string
	//go:embed scripts/install.sh
	installScript []byte
	//go:embed scripts/lamina-agent.service
	serviceUnit []byte
)

// WarmingSeed is the seed of the boot of a template that is to be frozen: it
// installs [Script] and starts it, and makes no user. What it installs does
// nothing in a machine without the agent's channel.
func WarmingSeed(instanceID string) seed.Config {
	var b strings.Builder
	b.WriteString("#cloud-config\nusers: []\nssh_genkeytypes: [ed25519, ecdsa]\nwrite_files:\n")
	for _, f := range []struct {
		path, mode string
		data       []byte
	}{
		{"/usr/local/sbin/lamina-agent", "0755", Script},
		{"/etc/systemd/system/lamina-agent.service", "0644", serviceUnit},
		{"/run/lamina-agent-install", "0700", installScript},
	} {
		fmt.Fprintf(&b, "- path: %s\n  permissions: '%s'\n  encoding: b64\n  content: %s\n", f.path, f.mode, base64.StdEncoding.EncodeToString(f.data))
	}
	b.WriteString("runcmd:\n- [sh, /run/lamina-agent-install]\n")
	return seed.Config{InstanceID: instanceID, UserData: []byte(b.String())}
}

// How long a guest has to be quiet, and how long that is waited for.
const (
	settleEvery = time.Second
	quietShare  = 70 // percent of its CPUs' time
	quietWithin = time.Minute
)

// WaitReady returns when the guest's boot is over: cloud-init and systemd say
// so, and its CPUs have nothing to do (the last is given up after a minute).
// The end of ctx is an error that says what the guest was still about.
func WaitReady(ctx context.Context, c *Conn) error {
	var before cpuTime
	var over time.Time
	busy := "it was not asked yet"
	for {
		s, err := runScript(ctx, c, settledScript, "", []string{"settled"})
		if err != nil {
			if ctx.Err() != nil {
				err = fmt.Errorf("the guest is not ready: %s: %w", busy, err)
			}
			return err
		}
		now := s.cpu()
		switch {
		case len(s.values["busy"]) > 0:
			busy, over = printable(clip(strings.Join(s.values["busy"], ", "))), time.Time{}
		case over.IsZero():
			over = time.Now()
		case now.idleShare(before) >= quietShare, time.Since(over) > quietWithin:
			return nil
		default:
			busy = "its CPUs are busy"
		}
		before = now
		select {
		case <-ctx.Done():
			return fmt.Errorf("the guest is not ready: %s: %w", busy, context.Cause(ctx))
		case <-time.After(settleEvery):
		}
	}
}

// cpuTime is what /proc/stat counts, in ticks.
type cpuTime struct{ busy, idle uint64 }

func (s said) cpu() cpuTime {
	busy, idle, _ := strings.Cut(s.one("cpu"), " ")
	b, err := strconv.ParseUint(busy, 10, 48)
	if err != nil {
		return cpuTime{}
	}
	i, err := strconv.ParseUint(idle, 10, 48)
	if err != nil {
		return cpuTime{}
	}
	return cpuTime{b, i}
}

// idleShare is the percentage of the time since before that was idle.
func (t cpuTime) idleShare(before cpuTime) uint64 {
	if t.idle < before.idle || t.busy < before.busy || t == before {
		return 0
	}
	idle, busy := t.idle-before.idle, t.busy-before.busy
	return idle * 100 / (idle + busy)
}

// Prepare makes a guest ready to be frozen so that any number of machines go on
// from it: its network is stopped and its leases are forgotten, timers are put
// off, what it has written is on its disk, and RAM that it does not need is zeros.
// The card and the seed should have been unplugged. Afterwards the guest is of
// use only for [Renew].
func Prepare(ctx context.Context, c *Conn) error {
	s, err := runScript(ctx, c, renewScript+networkScript+prepareScript, "", []string{"prepare"})
	if err != nil {
		return fmt.Errorf("prepare the guest: %w", err)
	}
	if p := s.values["problem"]; len(p) > 0 {
		return fmt.Errorf("prepare the guest: %s", printable(clip(strings.Join(p, "; "))))
	}
	if err := keepLibrary(ctx, c); err != nil {
		return fmt.Errorf("prepare the guest: what it is to keep: %w", err)
	}
	return nil
}
