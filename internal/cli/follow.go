package cli

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/guest/boot"
	"github.com/lamina-vm/lamina/internal/progress"
)

// follower shows the events of one operation: a task for each machine, and
// each warning once.
type follower struct {
	a     *app
	title string // of the task of events without a machine
	tasks map[string]*progress.Task
	order []string // machines whose guest may run, in the order of their start
	made  int      // overlays
}

func (a *app) follow(title string) *follower {
	if filepath.IsAbs(title) {
		title = filepath.Base(title)
	}
	return &follower{a: a, title: title, tasks: map[string]*progress.Task{}}
}

// steps are the words for the steps of an operation.
var steps = map[string]string{
	"download": "downloading", "verify": "verifying", "import": "importing", "overlay": "making its disk",
	"seed": "writing its seed", "freeze": "freezing its disk", "flatten": "copying what it reads of its templates",
	"rebase": "comparing", "export": "writing", "commit": "making its layer a template", "generalise": "taking out its identity", "start": "starting", "warm": "warming", "fork": "forking", "boot": "booting", "stop": "stopping",
}

// event shows one event. It is a client.EventFunc.
func (f *follower) event(e api.Event) {
	if e.Warning != "" {
		f.a.warn(prefix(e.Machine)+e.Warning, e.Warning)
	}
	if e.Machine != "" && (e.Step == "start" || e.Step == "boot" || e.Boot != nil) {
		if !slices.Contains(f.order, e.Machine) {
			f.order = append(f.order, e.Machine)
		}
	}
	if f.a.quiet {
		return
	}
	switch text := stepText(e); {
	case e.Boot != nil:
		f.boot(e)
	case e.Step == "overlay":
		f.made++
		if f.a.terminal() { // a line for each of a hundred machines says nothing
			f.task("").Stage(fmt.Sprintf("%d made", f.made))
		}
	case e.Text != "" && e.Current == e.Total:
		f.task(e.Machine).Stage(text)
	case e.Total > 0 || e.Current > 0:
		f.task(e.Machine).Bytes(text, e.Current, e.Total)
	case text != "":
		f.task(e.Machine).Stage(text)
	}
}

// stepText is what an event says; the machine's name stands before it anyway.
func stepText(e api.Event) string {
	if e.Text != "" && e.Machine != "" {
		return strings.TrimPrefix(strings.TrimSuffix(e.Text, " "+e.Machine), e.Machine+" ")
	}
	if e.Text != "" {
		return e.Text
	}
	if word := steps[e.Step]; word != "" {
		return word
	}
	return e.Step
}

// boot shows a step of a boot.
func (f *follower) boot(e api.Event) {
	t := f.task(e.Machine)
	if e.Boot.Note != "" {
		t.Note("%s", e.Boot.Note)
	}
	if e.Boot.Stage == boot.StageNone {
		return
	}
	text := e.Boot.Stage.String()
	if !f.a.terminal() {
		text += " after " + progress.Duration(e.Boot.Since)
	}
	t.Stage(text)
}

// task returns the task of a machine. What was shown without one ends when the
// first machine has something to show.
func (f *follower) task(machine string) *progress.Task {
	if machine != "" {
		if t := f.tasks[""]; t != nil {
			t.Done("")
			delete(f.tasks, "")
		}
	}
	t := f.tasks[machine]
	if t == nil {
		name := machine
		if name == "" {
			name = f.title
		}
		t = f.a.display.Task(name)
		f.tasks[machine] = t
	}
	return t
}

// end takes every task off the screen.
func (f *follower) end() {
	for _, t := range f.tasks {
		t.Done("")
	}
	clear(f.tasks)
}

// warn says something once, also where many machines have the same: what a
// warning is about stands before its colon, behind it may stand which and why.
func (a *app) warn(text, about string) {
	about, _, _ = strings.Cut(about, ":")
	if _, again := a.warned.LoadOrStore(about, true); !again {
		a.note("lamina: %s", progress.Clean(text))
	}
}

func prefix(machine string) string {
	if machine == "" {
		return ""
	}
	return machine + ": "
}

// explain says why a boot stopped and what to try.
func (a *app) explain(p *boot.Problem) {
	var b strings.Builder
	fmt.Fprintf(&b, "  stopped at   %s (%s)\n", p.Stage, progress.Clean(p.Kind))
	if p.Cause != "" {
		fmt.Fprintf(&b, "  likely cause %s\n", progress.Clean(p.Cause))
	}
	if len(p.Last) > 0 {
		b.WriteString("  last lines\n")
		for _, l := range p.Last {
			fmt.Fprintf(&b, "    | %s\n", progress.Clean(l))
		}
	}
	for i, r := range p.Remedy {
		head := "   "
		if i == 0 {
			head = "try"
		}
		fmt.Fprintf(&b, "  %s          %s\n", head, progress.Clean(r))
	}
	a.say("%s", strings.TrimRight(b.String(), "\n"))
}

// reached says that a machine is there, and how to get in. Of one of many it
// is a line.
func (a *app) reached(m api.Machine, many bool) error {
	if w := m.Warmth; w != nil && w.Problem != "" {
		a.note("lamina: %s: %s", m.Name, progress.Clean(w.Problem))
	}
	if many && m.State == api.Login && m.Warmth != nil {
		return a.printf("%s is ready after %s: lamina ssh %s%s\n", m.Name, progress.Duration(m.Warmth.Ready), m.Name, portsText(m))
	}
	if many && m.State == api.Login {
		return a.printf("%s is at its login prompt after %s: lamina ssh %s%s\n", m.Name, progress.Duration(m.LoginIn), m.Name, portsText(m))
	}
	var b strings.Builder
	switch m.State {
	case api.Login:
		if m.Warmth != nil {
			fmt.Fprintf(&b, "%s is ready after %s, and was at its prompt after %s\n", m.Name, progress.Duration(m.Warmth.Ready), progress.Duration(m.Warmth.Prompt))
			break
		}
		fmt.Fprintf(&b, "%s is at its login prompt after %s\n", m.Name, progress.Duration(m.LoginIn))
	case api.Renewing:
		fmt.Fprintf(&b, "%s is at its prompt; its guest is becoming itself\n", m.Name)
	case api.Starting, api.Running:
		fmt.Fprintf(&b, "%s runs; its boot is not waited for\n", m.Name)
	default:
		fmt.Fprintf(&b, "%s is %s\n", m.Name, m.State)
	}
	if m.SSHPort != 0 {
		as := ""
		if m.User != "" {
			as = m.User + " "
		}
		fmt.Fprintf(&b, "  ssh      lamina ssh %s  (%son 127.0.0.1 port %d)\n", m.Name, as, m.SSHPort)
	}
	fmt.Fprintf(&b, "  console  lamina console %s  (leave it with Ctrl-])\n", m.Name)
	for _, f := range extraForwards(m) {
		fmt.Fprintf(&b, "  port     %s\n", f)
	}
	return a.printf("%s", b.String())
}

// portsText are the ports that a person asked for, for the end of a line.
func portsText(m api.Machine) string {
	if list := extraForwards(m); len(list) > 0 {
		return "; " + strings.Join(list, ", ")
	}
	return ""
}

// extraForwards are the ports that a person asked for, "127.0.0.1:8080 -> 80".
func extraForwards(m api.Machine) []string {
	if m.Run == nil {
		return nil
	}
	var out []string
	for _, f := range m.Run.Forwards {
		if f.HostPort == m.SSHPort && f.GuestPort == 22 {
			continue
		}
		addr := f.HostAddr
		if addr == "" {
			addr = "127.0.0.1"
		}
		s := fmt.Sprintf("%s:%d -> %d", addr, f.HostPort, f.GuestPort)
		if f.Proto == "udp" {
			s += "/udp"
		}
		out = append(out, s)
	}
	return out
}
