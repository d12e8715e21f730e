package boot_test

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/lamina-vm/lamina/internal/guest/agent"
	"github.com/lamina-vm/lamina/internal/guest/seed"
	"github.com/lamina-vm/lamina/internal/guestimage"
	"github.com/lamina-vm/lamina/internal/guestimage/guesttest"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/internal/vm"
)

// person is somebody with an SSH key.
type person struct {
	signer ssh.Signer
	line   string
}

func newPerson(t *testing.T) person {
	t.Helper()
	signer, line := guesttest.NewKey(t)
	return person{signer, line}
}

// identity makes one up.
func identity(t *testing.T, name string, s seed.Config) agent.Identity {
	t.Helper()
	keys, err := agent.NewHostKeys()
	if err != nil {
		t.Fatal(err)
	}
	s.InstanceID, s.Hostname = "i-"+name, name
	return agent.Identity{Seed: s, MachineID: agent.NewMachineID(), HostKeys: keys}
}

// publicKeys are what known_hosts has of an identity.
func publicKeys(t *testing.T, id agent.Identity) []string {
	t.Helper()
	keys, err := id.HostKeys.Public()
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func dialAgent(t *testing.T, g *guesttest.Guest) *agent.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	lamina, qga := g.Agents()
	c, err := agent.Dial(ctx, lamina, qga)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// plug adds a card that is reached by SSH.
func plug(t *testing.T, g *guesttest.Guest, mac string) {
	t.Helper()
	_, err := g.Machine.(vm.NICPlugger).PlugNIC(t.Context(), vm.NIC{MAC: mac, Model: "virtio", Forwards: []vm.Forward{{GuestPort: 22}}})
	if err != nil {
		t.Fatal(err)
	}
}

// said runs a script in the guest, which must succeed.
func said(t *testing.T, c *agent.Conn, script string) string {
	t.Helper()
	r, err := c.Run(t.Context(), script, nil)
	if err != nil || r.Status != 0 {
		t.Fatalf("%s: status %d, %v\n%s", script, r.Status, err, r.Output)
	}
	return string(r.Output)
}

// TestAgentSmall gives one small guest two identities, one after the other.
func TestAgentSmall(t *testing.T) {
	t.Parallel()
	path := guestimage.Small(t)
	slot(t)
	disk := vm.Disk{Path: overlay(t, t.TempDir(), path, "qcow2", nil), Format: "qcow2", Bus: vm.BusVirtio}
	g := guesttest.Start(t, guesttest.Config{Disk: disk, Agents: true, NoNIC: true})
	g.Login()
	c := dialAgent(t, g)
	if c.Kind() != agent.KindLamina {
		t.Fatalf("%s answers, want ours", c.Kind())
	}
	const mac = "52:54:00:12:34:56"
	alice := newPerson(t)
	first := identity(t, "one", seed.Config{User: "alice", SSHKeys: []string{alice.line}, MACs: []string{mac}})
	first.Plug = func(context.Context) error { plug(t, g, mac); return nil }
	before := time.Now()
	r, err := agent.Renew(t.Context(), c, first)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("renewed in %s: %+v", time.Since(before).Round(time.Millisecond), r)
	g.Become("alice", alice.signer, publicKeys(t, first))
	const who = "hostname; cat /etc/machine-id; id -un; sudo id -un"
	if got, want := g.SSH(who), "one\n"+first.MachineID+"\nalice\nroot\n"; got != want {
		t.Errorf("over SSH: %q, want %q", got, want)
	}

	bob := newPerson(t)
	second := identity(t, "two.example.org", seed.Config{User: "bob", Password: "secret", SSHKeys: []string{bob.line, alice.line}, MACs: []string{mac}})
	said(t, c, "date -s 2001-01-01 >/dev/null")
	before = time.Now()
	r, err = agent.Renew(t.Context(), c, second)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("renewed in %s: %+v", time.Since(before).Round(time.Millisecond), r)
	if r.Hostname != "two" || r.MachineID != second.MachineID || !slices.Equal(sorted(r.HostKeys), sorted(publicKeys(t, second))) || !slices.Contains(r.Addresses, "10.0.2.15") {
		t.Errorf("it says %+v", r)
	}
	g.Become("bob", bob.signer, publicKeys(t, second))
	if got, want := g.SSH(who), "two\n"+second.MachineID+"\nbob\nroot\n"; got != want {
		t.Errorf("over SSH: %q, want %q", got, want)
	}
	if got := said(t, c, "hostname; grep -c two.example.org /etc/hosts; grep -c ^127.0.1.1 /etc/hosts; cat /var/lib/lamina/instance-id; ls /home/bob/.ssh; grep -c . /home/bob/.ssh/authorized_keys; grep -c '^bob:.6.' /etc/shadow"); got !=
		"two\n1\n1\ni-two.example.org\nauthorized_keys\n2\n1\n" {
		t.Errorf("in the guest: %q", got)
	}
	clock, err := strconv.ParseInt(strings.TrimSpace(said(t, c, "date +%s")), 10, 64)
	if off := time.Since(time.Unix(clock, 0)); err != nil || off.Abs() > 10*time.Second {
		t.Errorf("its clock is %s off, %v", off, err)
	}
	g.Stop()
	qemutest.RequireClean(t, disk.Path)
}

func sorted(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return s
}
