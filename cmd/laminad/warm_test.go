package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/client"
	"github.com/lamina-vm/lamina/internal/guestimage"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

// who is what a guest says that no other one may say.
const who = "cat /etc/machine-id; hostname; head -c 16 /dev/urandom | od -An -tx1; cat /var/lib/lamina/instance-id; cat /sys/class/net/eth*/address | tail -n 1"

// strictSSH runs a command in the guest, whose host keys must be those that `lamina ssh`
// knows.
func strictSSH(t *testing.T, m api.Machine, key ssh.Signer, command string) string {
	t.Helper()
	check, err := knownhosts.New(filepath.Join(m.Dir, home.KnownHosts))
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	conf := &ssh.ClientConfig{User: m.User, Auth: []ssh.AuthMethod{ssh.PublicKeys(key)}, Timeout: 30 * time.Second,
		HostKeyAlgorithms: []string{ssh.KeyAlgoED25519},
		HostKeyCallback:   check}
	conn, err := dialAlias(m, conf)
	if err != nil {
		t.Fatalf("%s: %v", m.Name, err)
	}
	defer func() { _ = conn.Close() }()
	s, err := conn.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.Output(command)
	if err != nil {
		t.Fatalf("%s: %v", m.Name, err)
	}
	t.Logf("%s: over SSH in %s", m.Name, time.Since(begun).Round(time.Millisecond))
	return string(out)
}

// dialAlias dials a machine by the name that its keys are known under.
func dialAlias(m api.Machine, conf *ssh.ClientConfig) (*ssh.Client, error) {
	check := conf.HostKeyCallback
	c := *conf
	c.HostKeyCallback = func(_ string, remote net.Addr, key ssh.PublicKey) error {
		return check("lamina-"+m.ID+":22", &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 22}, key)
	}
	return ssh.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", m.SSHPort), &c)
}

// distinct fails the test where two machines say the same of what none may share.
func distinct(t *testing.T, said map[string][]string) {
	t.Helper()
	seen := map[string]string{}
	for name, lines := range said {
		for i, l := range lines {
			if other := seen[fmt.Sprint(i, l)]; other != "" || l == "" {
				t.Errorf("%s and %s both say %q", name, other, l)
			}
			seen[fmt.Sprint(i, l)] = name
		}
	}
}

// linesOver is what a command says over SSH, by lines.
func linesOver(t *testing.T, m api.Machine, key ssh.Signer, command string) []string {
	t.Helper()
	return strings.Split(strings.TrimSpace(strictSSH(t, m, key, command)), "\n")
}

// removeWhenFailed: machines outlive the daemon of a test which fails.
func removeWhenFailed(t *testing.T, c *client.Client) {
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		list, err := c.Machines(context.Background())
		for _, m := range list {
			err = errors.Join(err, c.Remove(context.Background(), m.Name, true))
		}
		if err != nil {
			t.Log(err)
		}
	})
}

// logEvents has the test say what the daemon tells.
func logEvents(t *testing.T) client.EventFunc {
	return func(e api.Event) {
		if e.Text != "" && e.Step != "boot" || e.Warning != "" {
			t.Log(e.Machine, e.Step, e.Text, e.Warning)
		}
	}
}

// TestWarm takes a template to warm machines and their forks, with real guests.
func TestWarm(t *testing.T) {
	image := guestimage.Small(t)
	h := newHome(t)
	p := start(t, h)
	c, ctx := client.New(h), t.Context()
	if _, err := c.ImportTemplate(ctx, api.ImportRequest{Source: image, Name: "small", User: guestimage.User}, nil); err != nil {
		t.Fatal(err)
	}
	removeWhenFailed(t, c)
	told := logEvents(t)
	begun := time.Now()
	u, err := c.WarmTemplate(ctx, "small", api.WarmRequest{Memory: 128 << 20, Accel: vm.AccelTCG}, told)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("warm after %s, boot %s: %+v", time.Since(begun).Round(time.Millisecond), time.Duration(u.BootTime).Round(time.Millisecond), u)
	if !u.Fits || u.Agent != "lamina" {
		t.Errorf("the unit: %+v", u)
	}
	signer, public := newKey(t)
	config := api.MachineConfig{Memory: 128 << 20, Accel: vm.AccelTCG, SSHKeys: []string{public}}
	begun = time.Now()
	list, err := c.Clone(ctx, api.CloneRequest{Template: "small", Names: []string{"w-{1..3}"}, Start: true, Warm: api.WarmMust, MachineConfig: config}, told)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d clones ready after %s", len(list), time.Since(begun).Round(time.Millisecond))
	said, keys := map[string][]string{}, map[string][]string{}
	for _, m := range list {
		t.Logf("%s: prompt %s, ready %s, %d MiB, %d KiB on disk", m.Name, m.Warmth.Prompt.Round(time.Millisecond), m.Warmth.Ready.Round(time.Millisecond), m.Memory>>20, m.DiskSize>>10)
		if m.State != api.Login || m.Warmth.Unit != u.ID || m.Warmth.Prompt == 0 || m.Identity == nil || m.SSHPort == 0 {
			t.Fatalf("%+v", m)
		}
		said[m.Name] = linesOver(t, m, signer, who)
		keys[m.Name] = m.Identity.HostKeys
		if id := said[m.Name]; len(id) != 5 || id[0] != m.Identity.MachineID || id[1] != m.Name || id[3] != m.Spec.UUID || id[4] != m.Spec.NICs[0].MAC {
			t.Errorf("%s says %q, and is %+v", m.Name, id, m.Identity)
		}
	}
	for _, m := range warmFleet(t, c, u, config) {
		said[m.Name], keys[m.Name] = linesOver(t, m, signer, who), m.Identity.HostKeys
		if got := linesOver(t, m, signer, "cat /tmp/told"); got[0] != m.Name+" of 2 on "+m.Name {
			t.Errorf("%s: its user-data left %q", m.Name, got)
		}
	}
	distinct(t, said)
	distinct(t, keys)
	if err := c.RemoveFleet(ctx, "crew", true, told); err != nil {
		t.Error(err)
	}

	// A cold start of its own disk keeps who it is.
	if _, err := c.Stop(ctx, "w-1", api.StopRequest{}, nil); err != nil {
		t.Fatal(err)
	}
	m, err := c.Start(ctx, "w-1", api.StartRequest{}, nil)
	if err != nil || m.Warmth != nil {
		t.Fatalf("%+v, %v", m, err)
	}
	if id := strings.Split(strings.TrimSpace(overSSH(t, m, signer, who)), "\n"); id[0] != said["w-1"][0] || id[1] != "w-1" || id[3] != said["w-1"][3] {
		t.Errorf("after a cold start it says %q, it was %q", id, said["w-1"])
	}

	// A fork: the original goes on, its copies are others.
	strictSSH(t, list[1], signer, "echo before >/tmp/file; (while [ -e /tmp/file ]; do date >>/tmp/ticks; sleep 0.2; done) >/dev/null 2>&1 &")
	begun = time.Now()
	f, err := c.Fork(ctx, "w-2", api.ForkRequest{Count: 2}, told)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("forked in %s, pause %s, %d KiB", time.Since(begun).Round(time.Millisecond), f.Pause.Round(time.Millisecond), f.Written>>10)
	for _, m := range f.Machines {
		t.Logf("%s: %s, prompt %s, ready %s, port %d", m.Name, m.State, m.Warmth.Prompt.Round(time.Millisecond), m.Warmth.Ready.Round(time.Millisecond), m.SSHPort)
		out := linesOver(t, m, signer, who+"; cat /tmp/file")
		if out[len(out)-1] != "before" {
			t.Errorf("%s has not the original's file: %q", m.Name, out)
		}
		said[m.Name], keys[m.Name] = out[:len(out)-1], m.Identity.HostKeys
	}
	distinct(t, said)
	distinct(t, keys)
	if out := strictSSH(t, list[1], signer, "a=$(grep -c . /tmp/ticks); sleep 1; echo $(($(grep -c . /tmp/ticks) - a))"); strings.TrimSpace(out) == "0" {
		t.Error("the original's process does not go on")
	}
	strictSSH(t, list[1], signer, "rm /tmp/file")
	if left, _ := filepath.Glob(filepath.Join(h.Machine(list[1].ID), "frozen.*")); len(left) > 0 {
		t.Errorf("the fork left %q", left)
	}

	// A daemon that comes next finds them all as they are.
	p.end(t, syscall.SIGKILL)
	p = start(t, h)
	if m, err := c.Machine(ctx, "w-3"); err != nil || m.State != api.Login || m.Identity == nil || m.Warmth == nil {
		t.Errorf("after another daemon: %+v, %v", m, err)
	}

	// Damage is told, and a cold start is what is left.
	ram := filepath.Join(h.Unit(u.ID), home.RAMFile)
	if err := os.Truncate(ram, 64<<20); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Clone(ctx, api.CloneRequest{Template: "small", Names: []string{"no"}, Start: true, Warm: api.WarmMust, MachineConfig: config}, nil); err == nil || !strings.Contains(err.Error(), u.ID) {
		t.Errorf("a cut RAM file: %v", err)
	}
	cold, err := c.Clone(ctx, api.CloneRequest{Template: "small", Names: []string{"cold"}, Start: true, NoWait: true, MachineConfig: config}, nil)
	if err != nil || cold[0].State != api.Starting || cold[0].Warmth != nil {
		t.Errorf("%+v, %v", cold, err)
	}
	if err := c.RemoveWarm(ctx, u.ID); err != nil {
		t.Error(err)
	}
	leaveNothing(t, c, h)
	for _, dir := range []string{h.Warm(), h.Layers()} {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("left behind in %s: %v, %v", dir, left, err)
		}
	}
	p.end(t, syscall.SIGTERM)
}

// warmFleet applies a fleet of two with user-data, which starts warm by itself.
func warmFleet(t *testing.T, c *client.Client, u api.WarmUnit, config api.MachineConfig) []api.Machine {
	t.Helper()
	config.UserData, config.UserDataTemplate = []byte("#!/bin/sh\necho {{.Name}} of {{.Count}} on $(hostname) >/tmp/told\n"), true
	fleet := api.Fleet{Name: "crew", Groups: []api.FleetGroup{{Name: "hand", Template: "small", Count: 2, MachineConfig: config,
		Health: api.Health{Check: "ready", Timeout: 3 * time.Minute}}}}
	begun := time.Now()
	state, err := c.ApplyFleet(t.Context(), api.FleetRequest{Fleet: fleet}, logEvents(t))
	if err != nil || state.State != api.FleetApplied || state.Healthy != 2 || len(state.Machines) != 2 {
		t.Fatalf("%+v, %v", state, err)
	}
	t.Logf("a fleet of two healthy after %s", time.Since(begun).Round(time.Millisecond))
	for _, m := range state.Machines {
		if m.Warmth == nil || m.Warmth.Unit != u.ID || m.Warmth.Problem != "" || m.Identity == nil {
			t.Fatalf("%s did not start warm: %+v", m.Name, m)
		}
	}
	if plan, err := c.PlanFleet(t.Context(), api.FleetRequest{Fleet: fleet}); err != nil || len(plan.Steps) != 0 || plan.Kept != 2 {
		t.Errorf("what is applied is not what is planned: %+v, %v", plan, err)
	}
	return state.Machines
}
