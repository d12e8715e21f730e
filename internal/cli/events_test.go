package cli

import (
	"slices"
	"testing"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/vm"
)

func TestChanges(t *testing.T) {
	run := func(pid int) *vm.RunInfo { return &vm.RunInfo{PID: pid} }
	for _, c := range []struct {
		name        string
		before, now []api.Machine
		want        []string
	}{
		{"nothing", []api.Machine{{ID: "1", State: api.Login, Run: run(1)}}, []api.Machine{{ID: "1", State: api.Login, Run: run(1)}}, nil},
		{"defined", nil, []api.Machine{{ID: "1", State: api.Defined}}, []string{"defined"}},
		{"defined and started", nil, []api.Machine{{ID: "1", State: api.Starting, Run: run(1)}}, []string{"defined", "started"}},
		{"login", []api.Machine{{ID: "1", State: api.Starting, Run: run(1)}}, []api.Machine{{ID: "1", State: api.Login, Run: run(1)}}, []string{"login"}},
		{"stopped", []api.Machine{{ID: "1", State: api.Login, Run: run(1)}},
			[]api.Machine{{ID: "1", State: api.Stopped, Exit: &vm.Exit{Reason: "guest shut down"}}}, []string{"stopped guest shut down"}},
		{"paused", []api.Machine{{ID: "1", State: api.Login, Run: run(1)}},
			[]api.Machine{{ID: "1", State: api.Paused, Run: run(1), PauseReason: "no space"}}, []string{"paused no space"}},
		{"another run", []api.Machine{{ID: "1", State: api.Login, Run: run(1)}}, []api.Machine{{ID: "1", State: api.Login, Run: run(2)}}, []string{"started"}},
		{"removed", []api.Machine{{ID: "1", State: api.Stopped}}, nil, []string{"undefined"}},
		{"another of the name", []api.Machine{{ID: "1", Name: "a"}}, []api.Machine{{ID: "2", Name: "a", State: api.Defined}}, []string{"undefined", "defined"}},
	} {
		var got []string
		for _, e := range changes(c.before, c.now) {
			text := e.Kind
			if e.Reason != "" {
				text += " " + e.Reason
			}
			got = append(got, text)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
