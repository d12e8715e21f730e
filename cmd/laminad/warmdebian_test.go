package main

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/client"
	"github.com/lamina-vm/lamina/internal/guest/agent"
	"github.com/lamina-vm/lamina/internal/guest/seed"
	"github.com/lamina-vm/lamina/internal/guestimage"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/qemu"
)

// whoDebian is [who] for the Debian guest, with the identity that its DHCP client has
// shown to the server.
const whoDebian = "cat /etc/machine-id; hostname; head -c 16 /dev/urandom | od -An -tx1; sudo cat /var/lib/cloud/data/instance-id; " +
	"cat /sys/class/net/eth*/address; sudo sed -n 's/^CLIENTID=//p' /run/systemd/netif/leases/*"

// TestWarmDebian warms a cloud image with a real cloud-init, once, and has clones of
// it: two as they come, one with user-data, and one renewed by QEMU's own agent.
func TestWarmDebian(t *testing.T) {
	image := guestimage.Debian(t)
	h := newHome(t)
	p := start(t, h)
	c, ctx := client.New(h), t.Context()
	removeWhenFailed(t, c)
	told := logEvents(t)
	if _, err := c.ImportTemplate(ctx, api.ImportRequest{Source: image, Name: "debian"}, nil); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	u, err := c.WarmTemplate(ctx, "debian", api.WarmRequest{Memory: 768 << 20, Accel: vm.AccelTCG, Timeout: 15 * time.Minute}, told)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("warm after %s: %d MiB of RAM, %d MiB of disk", time.Since(begun).Round(time.Second), u.RAMSize>>20, u.DiskSize>>20)

	signer, public := newKey(t)
	config := api.MachineConfig{Memory: 768 << 20, Accel: vm.AccelTCG, User: "alice", Password: "secret", SSHKeys: []string{public}}
	request := api.CloneRequest{Template: "debian", Names: []string{"d-{1..2}"}, Start: true, Warm: api.WarmMust, Timeout: 5 * time.Minute, MachineConfig: config}
	list, err := c.Clone(ctx, request, told)
	if err != nil {
		t.Fatal(err)
	}
	request.Names = []string{"d-3"}
	request.UserData, request.UserDataTemplate = []byte("#cloud-config\nruncmd:\n- echo {{.Name}} on $(hostname) >/root/ran\n"), true
	third, err := c.Clone(ctx, request, told)
	if err != nil {
		t.Fatal(err)
	}
	said, keys := map[string][]string{}, map[string][]string{}
	for _, m := range append(list, third...) {
		t.Logf("%s: prompt %s, ready %s, %d MiB, %d KiB on disk", m.Name, m.Warmth.Prompt.Round(time.Millisecond), m.Warmth.Ready.Round(time.Millisecond), m.Memory>>20, m.DiskSize>>10)
		if m.State != api.Login || m.Warmth.Unit != u.ID || m.Warmth.Problem != "" || m.Identity == nil {
			t.Fatalf("%+v, %+v", m, m.Warmth)
		}
		said[m.Name], keys[m.Name] = linesOver(t, m, signer, whoDebian), m.Identity.HostKeys
		mac := m.Spec.NICs[0].MAC
		if id := said[m.Name]; len(id) != 6 || id[0] != m.Identity.MachineID || id[1] != m.Name || id[3] != m.Spec.UUID || id[4] != mac ||
			id[5] != "01"+strings.ReplaceAll(mac, ":", "") {
			t.Errorf("%s says %q, and is %+v", m.Name, id, m.Identity)
		}
	}
	distinct(t, said)
	distinct(t, keys)
	requireDebian(t, list[0], signer)
	if got := linesOver(t, third[0], signer, "sudo cat /root/ran; sudo systemctl --failed --no-legend"); !slices.Equal(got, []string{"d-3 on d-3"}) {
		t.Errorf("with user-data: %q", got)
	}
	renewByQEMU(t, list[1])
	if err := c.RemoveWarm(ctx, u.ID); err != nil {
		t.Error(err)
	}
	leaveNothing(t, c, h)
	p.end(t, syscall.SIGTERM)
}

// requireDebian: the user, as cloud-init makes one, and the instance.
func requireDebian(t *testing.T, m api.Machine, key ssh.Signer) {
	t.Helper()
	const about = "hostname -f; id -un; id -nG; sudo id -un; readlink /var/lib/cloud/instance; sudo grep -c '^alice:.6.' /etc/shadow; sudo systemctl --failed --no-legend"
	want := []string{m.Name, "alice", "alice adm sudo", "root", "/var/lib/cloud/instances/" + m.Spec.UUID, "1"}
	if got := linesOver(t, m, key, about); !slices.Equal(got, want) {
		t.Errorf("%s says %q, want %q", m.Name, got, want)
	}
}

// renewByQEMU gives a guest one more identity, by the agent of a distribution.
func renewByQEMU(t *testing.T, m api.Machine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	q, err := agent.Dial(ctx, "", filepath.Join(m.Dir, qemu.ChannelSocket(1)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = q.Close() }()
	keys, err := agent.NewHostKeys()
	if err != nil {
		t.Fatal(err)
	}
	public, err := keys.Public()
	if err != nil {
		t.Fatal(err)
	}
	id := agent.Identity{MachineID: agent.NewMachineID(), HostKeys: keys,
		Seed: seed.Config{InstanceID: "i-other", Hostname: "other.example.org", MACs: []string{m.Spec.NICs[0].MAC}}}
	r, err := agent.Renew(ctx, q, id)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(public)
	slices.Sort(r.HostKeys)
	if q.Kind() == agent.KindLamina || r.Hostname != "other" || r.MachineID != id.MachineID || !slices.Equal(r.HostKeys, public) {
		t.Errorf("%s: %+v", q.Kind(), r)
	}
}
