package daemon

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/vm"
)

// TestCopiesAlike: copies have the labels, the kind of VNC and the guest's ports of their
// original, and a person is told what else they share with it.
func TestCopiesAlike(t *testing.T) {
	x, _, _ := warmTester(t)
	x.warm()
	c := api.MachineConfig{VNC: vm.VNCNone, Labels: map[string]string{"env": "test", "team": "a"},
		Forwards: []vm.Forward{{Proto: "tcp", HostAddr: "127.0.0.1", HostPort: 2201, GuestPort: 22}, {Proto: "tcp", HostAddr: "127.0.0.1", HostPort: 8081, GuestPort: 80}}}
	warned := func(events []api.Event) (out string) {
		for _, e := range events {
			out += e.Warning + "\n"
		}
		return out
	}
	x.must(x.stream("POST", "/v1/clones", api.CloneRequest{Template: "t", Names: []string{"fresh"}, MachineConfig: c}, nil))
	if w := warned(x.must(x.stream("POST", "/v1/machines/fresh/clone", api.CloneMachineRequest{Names: []string{"early"}}, nil))); strings.Contains(w, "machine-id") {
		t.Errorf("of a machine that never ran: %q", w)
	}
	if _, _, e := x.cloneWarm(api.CloneRequest{Names: []string{"web"}, MachineConfig: c}); e != nil {
		t.Fatal(e)
	}
	var f api.ForkResult
	if w := warned(x.must(x.stream("POST", "/v1/machines/web/fork", api.ForkRequest{Names: []string{"forked"}}, &f))); strings.Contains(w, "machine-id") {
		t.Errorf("of a fork: %q", w)
	}
	x.must(x.stream("POST", "/v1/machines/web/stop", api.StopRequest{Force: true}, nil))
	var made []api.Machine
	events := x.must(x.stream("POST", "/v1/machines/web/clone", api.CloneMachineRequest{Names: []string{"copy"}, MachineConfig: api.MachineConfig{Labels: map[string]string{"env": "prod"}}}, &made))
	for _, w := range []string{"machine-id", "SSH host keys", "template create --generalise web", "lamina fork web"} {
		if !strings.Contains(warned(events), w) {
			t.Errorf("told %q, without %q", warned(events), w)
		}
	}
	for name, env := range map[string]string{"early": "test", "forked": "test", "copy": "prod"} {
		m := x.machine(name)
		if !maps.Equal(m.Labels, map[string]string{"env": env, "team": "a"}) || m.Spec.Graphics.VNC != vm.VNCNone {
			t.Errorf("%s: labels %v, VNC %q", name, m.Labels, m.Spec.Graphics.VNC)
		}
		got := m.Spec.NICs[0].Forwards
		want := slices.Clone(c.Forwards)
		for i := range want {
			want[i].HostPort = 0
			got[i].HostPort = 0 // of one that runs
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: forwards %+v", name, got)
		}
	}
	rec, err := x.d.store.Machine(t.Context(), "copy")
	if err != nil || slices.ContainsFunc(rec.Spec.NICs[0].Forwards, func(f vm.Forward) bool { return f.HostPort != 0 }) {
		t.Errorf("its host ports are its original's: %+v, %v", rec.Spec.NICs, err)
	}
}

// TestLikeMachine: what belongs to one machine alone is not its copies'.
func TestLikeMachine(t *testing.T) {
	original := api.MachineConfig{VNC: "127.0.0.1:1", Labels: map[string]string{"fleet": "f", "group": "g", "fleet-mark": "m", "env": "x"},
		Forwards: []vm.Forward{{HostPort: 80, GuestPort: 80}}}
	c := likeMachine(api.MachineConfig{}, original)
	if c.VNC != "" || !maps.Equal(c.Labels, map[string]string{"env": "x"}) || c.Forwards[0].HostPort != 0 {
		t.Errorf("%+v", c)
	}
	if original.Forwards[0].HostPort != 80 || len(original.Labels) != 4 {
		t.Errorf("the original is %+v", original)
	}
	if note := ownVNC("web", c, original); !strings.Contains(note, "127.0.0.1:1") {
		t.Errorf("told %q", note)
	}
	own := []vm.Forward{{HostPort: 81, GuestPort: 81}}
	if c := likeMachine(api.MachineConfig{Forwards: own, VNC: "unix"}, original); !slices.Equal(c.Forwards, own) || c.VNC != "unix" || ownVNC("web", c, original) != "" {
		t.Errorf("%+v", c)
	}
	if c := likeMachine(api.MachineConfig{}, api.MachineConfig{}); c.Labels != nil || c.Forwards != nil {
		t.Errorf("of a plain one: %+v", c)
	}
}
