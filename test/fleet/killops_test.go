package fleet

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/fleet"
)

// operation is one that is begun and broken off.
type operation struct {
	name   string
	weight int
	// late: what counts is at its end, so half of the kills come in its last fifth.
	late bool
	// prepare makes what it needs, undisturbed, and says what to run.
	prepare func(l *killLoop) task
}

// task is a command line, and what may come of it.
type task struct {
	args []string
	// origin is the id of the machine that new ones are copies of, "" for none.
	origin string
	// mayGo are the names of machines that it removes.
	mayGo []string
	// fleet: the machines of the fleet may come and go.
	fleet bool
}

const (
	guestMemory = "--memory=128M"
	fleetName   = "shop"
	// keeper begins the names of machines that keep the templates in use, and that
	// nothing removes.
	keeper = "keep"
	// Beyond these machines are removed: what a round costs is to stay the same.
	maxMachines, maxRunning = 40, 4
)

// operations are what is broken off. Each gets its first run whole.
var operations = []operation{
	{name: "clone", weight: 10, prepare: func(l *killLoop) task {
		return task{args: []string{"clone", "base", l.names(1 + l.rng.IntN(30)), guestMemory}}
	}},
	{name: "clone --start --cold", weight: 4, prepare: func(l *killLoop) task {
		return task{args: []string{"clone", "base", l.names(1), guestMemory, "--start", "--cold", "--no-wait"}}
	}},
	{name: "clone --start --warm", weight: 12, prepare: func(l *killLoop) task {
		l.needUnit()
		return task{args: []string{"clone", "base", l.names(1 + l.rng.IntN(2)), guestMemory, "--start", "--warm", "--wait", l.either("prompt", "ready")}}
	}},
	{name: "start", weight: 8, prepare: func(l *killLoop) task {
		l.needUnit()
		name := l.names(1)
		l.do("clone", "base", name, guestMemory)
		return task{args: []string{"start", name, "--warm", "--wait", "prompt"}}
	}},
	{name: "clone of a stopped machine", weight: 10, prepare: func(l *killLoop) task {
		m := l.needStopped()
		return task{args: []string{"clone", m.Name, l.names(1 + l.rng.IntN(4))}, origin: m.ID}
	}},
	{name: "clone of a running machine", weight: 12, prepare: func(l *killLoop) task {
		m := l.needRunning()
		return task{args: []string{"clone", m.Name, l.names(1 + l.rng.IntN(4))}, origin: m.ID}
	}},
	{name: "commit", weight: 4, prepare: func(l *killLoop) task {
		m := l.needStopped()
		return task{args: []string{"commit", m.Name, fmt.Sprintf("c%d", l.round)}}
	}},
	{name: "flatten", weight: 3, prepare: func(l *killLoop) task {
		return task{args: []string{"flatten", l.needStopped().Name}}
	}},
	{name: "template warm", weight: 5, late: true, prepare: func(l *killLoop) task {
		return task{args: []string{"template", "warm", "base", guestMemory, "--again"}}
	}},
	{name: "template cool", weight: 4, prepare: func(l *killLoop) task {
		l.needUnit()
		units := l.look().units
		return task{args: []string{"template", "cool", units[l.rng.IntN(len(units))].ID}}
	}},
	{name: "fork", weight: 14, prepare: func(l *killLoop) task {
		m := l.needRunning()
		return task{args: []string{"fork", m.Name, l.names(1 + l.rng.IntN(2)), "--wait", l.either("prompt", "ready")}, origin: m.ID}
	}},
	{name: "fleet apply", weight: 14, prepare: func(l *killLoop) task {
		l.needUnit()
		return task{args: []string{"fleet", "apply", l.document(), "--yes"}, fleet: true}
	}},
	{name: "fleet rm", weight: 2, prepare: func(l *killLoop) task {
		l.needUnit()
		if len(l.look().fleets) == 0 {
			l.do("fleet", "apply", l.document(), "--yes")
		}
		return task{args: []string{"fleet", "rm", fleetName, "--force"}, fleet: true}
	}},
	{name: "prune", weight: 8, prepare: func(l *killLoop) task {
		for i := range 1 + l.rng.IntN(3) {
			m := l.needStopped()
			l.do("template", "create", "--from", m.Name, "--name", fmt.Sprintf("t%d-%d", l.round, i), "--flatten")
		}
		return task{args: []string{"prune", "--templates", "--yes"}}
	}},
	{name: "rm", weight: 6, prepare: func(l *killLoop) task {
		list := l.removable()
		if len(list) == 0 {
			name := l.names(5)
			l.do("clone", "base", name, guestMemory)
			l.world = l.look()
			list = l.removable()
		}
		return task{args: append([]string{"rm", "-f"}, list...), mayGo: list}
	}},
}

// names is a pattern of names that no round before has used.
func (l *killLoop) names(n int) string {
	if n == 1 {
		return fmt.Sprintf("m%d", l.round)
	}
	return fmt.Sprintf("m%d-{1..%d}", l.round, n)
}

// madeIn says whether a machine has a name that the round has given.
func madeIn(round int, name string) bool {
	prefix := fmt.Sprintf("m%d", round)
	return name == prefix || strings.HasPrefix(name, prefix+"-")
}

func (l *killLoop) either(a, b string) string {
	if l.rng.IntN(3) > 0 {
		return a
	}
	return b
}

// do runs a command undisturbed: it must succeed.
func (l *killLoop) do(args ...string) {
	l.t.Helper()
	l.h.run(l.t, 5*time.Minute, args...)
}

// needUnit warms the template if it has no unit.
func (l *killLoop) needUnit() {
	l.t.Helper()
	if !slices.ContainsFunc(l.look().units, func(u api.WarmUnit) bool { return u.Fits }) {
		l.do("template", "warm", "base", guestMemory)
	}
}

func isKeeper(m api.Machine) bool { return strings.HasPrefix(m.Name, keeper) }

func ofFleet(m api.Machine) bool { return m.Labels[fleet.LabelFleet] != "" }

// pick returns a machine that is right, and whether there is one.
func (l *killLoop) pick(right func(api.Machine) bool) (api.Machine, bool) {
	var list []api.Machine
	for _, m := range l.world.machines {
		if right(m) && !ofFleet(m) {
			list = append(list, m)
		}
	}
	if len(list) == 0 {
		return api.Machine{}, false
	}
	return list[l.rng.IntN(len(list))], true
}

func isStopped(m api.Machine) bool {
	return m.Run == nil && (m.State == api.Defined || m.State == api.Stopped || m.State == api.Crashed)
}

// atLogin: its guest has an identity, and its agent answers.
func atLogin(m api.Machine) bool { return m.Run != nil && m.State == api.Login && m.Identity != nil }

// needStopped returns a machine that does not run, with something on its disk.
func (l *killLoop) needStopped() api.Machine {
	l.t.Helper()
	m, ok := l.pick(func(m api.Machine) bool { return isStopped(m) && !isKeeper(m) && l.depth(m) < api.AdviseDepth })
	if !ok {
		name := fmt.Sprintf("s%d", l.round)
		l.do("clone", "base", name, guestMemory)
		l.remember()
		m = l.h.machine(l.t, name)
	}
	if k := l.known[m.ID]; k != nil && len(k.marks) < maxMarks {
		l.markStopped(m)
	}
	return m
}

// needRunning returns a machine that runs, to whose disk its guest has written.
func (l *killLoop) needRunning() api.Machine {
	l.t.Helper()
	m, ok := l.pick(func(m api.Machine) bool { return atLogin(m) && l.depth(m) < api.AdviseDepth })
	if !ok {
		l.needUnit()
		name := fmt.Sprintf("r%d", l.round)
		l.do("clone", "base", name, guestMemory, "--start", "--warm")
		l.remember()
		m = l.h.machine(l.t, name)
	}
	l.markRunning(m)
	return m
}

// depth is how many layers a machine lies over.
func (l *killLoop) depth(m api.Machine) (n int) {
	for key := m.Base; key != ""; n++ {
		i := slices.IndexFunc(l.world.templates, func(t api.Template) bool { return t.Digest == key })
		if i < 0 {
			return n
		}
		key = l.world.templates[i].Parent
	}
	return n
}

// removable are some machines that may go: all that are too many, else a few.
func (l *killLoop) removable() (list []string) {
	running := 0
	for _, m := range l.world.machines {
		switch {
		case ofFleet(m) || isKeeper(m):
		case m.Run != nil && !atLogin(m): // a guest that boots takes the processor
			list = append(list, m.Name)
		case m.Run != nil:
			if running++; running > maxRunning/2 || l.rng.IntN(4) == 0 {
				list = append(list, m.Name)
			}
		case len(l.world.machines) > maxMachines && l.rng.IntN(4) > 0 || l.rng.IntN(8) == 0:
			list = append(list, m.Name)
		}
	}
	return list
}

// document writes a document of the fleet: more or fewer machines, a change that
// replaces them, or another template, cold.
func (l *killLoop) document() string {
	l.t.Helper()
	count := l.rng.IntN(4)
	template, start := "base", "warm"
	if l.rng.IntN(6) == 0 {
		template, start, count = "other", "cold", min(count, 1)
	}
	health := "{check: none}"
	if start == "warm" && l.rng.IntN(3) == 0 {
		health = "{check: login, timeout: 30s}"
	}
	if l.rng.IntN(2) == 0 {
		l.version++
	}
	text := fmt.Sprintf(`name: %s
groups:
  - name: web
    template: %s
    count: %d
    memory: 128M
    warm: %s
    userData: "#cloud-config\n# version %d\n"
    health: %s
`, fleetName, template, count, start, l.version, health)
	path := filepath.Join(l.documents, fmt.Sprintf("fleet-%d.yaml", l.round))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		l.t.Fatal(err)
	}
	return path
}
