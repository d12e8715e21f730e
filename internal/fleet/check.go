package fleet

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/names"
	"github.com/lamina-vm/lamina/internal/nearest"
	"github.com/lamina-vm/lamina/internal/vm"
)

// Problem is what is wrong in a fleet, and what to do.
type Problem struct {
	Group int    // index of the group, -1 for the fleet itself
	Field string // by its name in the JSON: "count", "rollout.surge", "ports[1]"
	Text  string
}

// maxProblems bounds what is told of one fleet.
const maxProblems = 20

// The words that a fleet may say.
var (
	Checks = []string{CheckLogin, CheckReady, CheckAgent, CheckTCP, CheckHTTP, CheckNone}
	Warmth = []string{string(api.WarmNever), string(api.WarmMust)}
	Buses  = []string{string(vm.BusVirtio), string(vm.BusVirtioSCSI), string(vm.BusSATA), string(vm.BusIDE)}
	Caches = []string{string(vm.CacheWriteback), string(vm.CacheNone), string(vm.CacheWritethrough), string(vm.CacheDirectsync), string(vm.CacheUnsafe)}
	Accels = []string{string(vm.AccelAuto), string(vm.AccelKVM), string(vm.AccelTCG)}
	Types  = []string{vm.MachinePC, vm.MachineQ35}
)

// Problems finds what is wrong in a complete fleet by itself: whether its
// templates exist and its machines can run is for others to say. At most some
// twenty are returned.
func Problems(f api.Fleet) []Problem {
	c := checker{group: -1}
	if err := names.CheckMachine(f.Name); err != nil {
		c.add("name", "%s", strings.Replace(err.Error(), "machine", "fleet", 1))
	}
	if len(f.Groups) > MaxGroups {
		c.add("groups", "%d groups: at most %d are allowed: make several fleets", len(f.Groups), MaxGroups)
		return c.found
	}
	total := 0
	for i := range f.Groups {
		c.group = i
		if c.check(&f.Groups[i]) {
			total += f.Groups[i].Count + f.Groups[i].Rollout.Surge
		}
	}
	c.group = -1
	if total > MaxMachines {
		c.add("groups", "%d machines with their surge: a fleet has at most %d: make several fleets", total, MaxMachines)
		return c.found
	}
	if len(c.found) == 0 {
		c.together(f)
	}
	return c.found[:min(len(c.found), maxProblems)]
}

// Check returns the problems of a complete fleet as one error, which wraps
// [names.ErrInvalid]; nil if there is none.
func Check(f api.Fleet) error {
	var list []error
	for _, p := range Problems(f) {
		where := "fleet " + f.Name
		if p.Group >= 0 {
			where += ": group " + cmp.Or(f.Groups[p.Group].Name, fmt.Sprintf("number %d", p.Group+1))
		}
		list = append(list, fmt.Errorf("%s: %s: %s", where, p.Field, p.Text))
	}
	if len(list) == 0 {
		return nil
	}
	return invalid{errors.Join(list...)}
}

// invalid is an error that is a [names.ErrInvalid] without saying so.
type invalid struct{ error }

func (i invalid) Is(target error) bool { return target == names.ErrInvalid }
func (i invalid) Unwrap() error        { return i.error }

type checker struct {
	group int
	found []Problem
}

func (c *checker) add(field, format string, args ...any) {
	c.found = append(c.found, Problem{Group: c.group, Field: field, Text: fmt.Sprintf(format, args...)})
}

// check looks at one group; false where its numbers are not to be counted with.
func (c *checker) check(g *api.FleetGroup) bool {
	had := len(c.found)
	if err := groupName(g.Name); err != nil {
		c.add("name", "%v", err)
	}
	switch {
	case g.Count < 0:
		c.add("count", "%d machines: 0 is the least", g.Count)
	case g.Count > MaxMachines:
		c.add("count", "%d machines: at most %d are allowed: make several fleets", g.Count, MaxMachines)
	}
	if g.Template == "" {
		c.add("template", "which image its machines are made of is missing: name a template of `lamina template ls`")
	} else if names.CheckTemplate(g.Template) != nil && !names.IsDigest(g.Template) {
		c.add("template", "%.80q is not the name or digest of a template: see `lamina template ls`", g.Template)
	}
	c.rollout(g)
	c.health(g)
	c.config(g)
	if len(c.found) == had {
		if _, err := seatNames(g); err != nil {
			c.add("names", "%v", err)
		}
		c.ports(g)
	}
	return len(c.found) == had
}

// groupName says whether machines can be called after a group.
func groupName(name string) error {
	if err := names.CheckMachine(name); err != nil {
		return errors.New(strings.Replace(err.Error(), "machine", "group", 1))
	}
	if over := len(surgeName(name, MaxMachines)) - names.MaxLength; over > 0 {
		return fmt.Errorf("group %q: its machines' names would be %d characters too long: shorten it", name, over)
	}
	return nil
}

func (c *checker) rollout(g *api.FleetGroup) {
	r := g.Rollout
	switch {
	case r.Surge < 0 || r.Surge > MaxMachines:
		c.add("rollout.surge", "%d is not 0 to %d", r.Surge, MaxMachines)
	case r.MaxUnavailable < 0 || r.MaxUnavailable > MaxMachines:
		c.add("rollout.maxUnavailable", "%d is not 0 to %d", r.MaxUnavailable, MaxMachines)
	case r.Surge == 0 && r.MaxUnavailable == 0:
		c.add("rollout", "surge and maxUnavailable are both 0, so nothing could ever be replaced: make one of them 1")
	}
}

// Bounds of times.
const (
	maxTimeout  = 24 * time.Hour
	minInterval = 10 * time.Millisecond
)

func (c *checker) health(g *api.FleetGroup) {
	h := g.Health
	c.word("health.check", h.Check, Checks)
	if h.Timeout < 0 || h.Timeout > maxTimeout {
		c.add("health.timeout", "%s is not more than nothing and at most %s", h.Timeout, maxTimeout)
	}
	if h.Interval < minInterval || h.Interval > h.Timeout && h.Timeout > 0 {
		c.add("health.interval", "%s is not %s to the timeout, %s", h.Interval, minInterval, h.Timeout)
	}
	switch h.Check {
	case CheckTCP, CheckHTTP:
		switch {
		case h.Port < 1 || h.Port > 65535:
			c.add("health.port", "%d: the check %s needs the guest's port, 1 to 65535", h.Port, h.Check)
		case !forwarded(g, h.Port):
			c.add("health.port", "the guest's port %d is not forwarded, so it cannot be asked: add %d to the ports", h.Port, h.Port)
		}
	default:
		if h.Port != 0 {
			c.add("health.port", "the check %s asks no port: leave it out, or say check tcp or http", h.Check)
		}
	}
	switch {
	case h.Check != CheckHTTP && h.Path != "":
		c.add("health.path", "the check %s has no path: leave it out, or say check http", h.Check)
	case h.Check == CheckHTTP && (!strings.HasPrefix(h.Path, "/") || len(h.Path) > 2048 || strings.ContainsFunc(h.Path, func(r rune) bool { return r <= ' ' || r == 127 })):
		c.add("health.path", "%.60q is not the path of a URL: begin it with / and encode blanks as %%20", h.Path)
	}
}

// forwarded says whether a TCP port of the guest can be reached. Port 22 always
// can: each machine forwards it.
func forwarded(g *api.FleetGroup, port int) bool {
	has := func(f vm.Forward) bool { return f.GuestPort == port && f.Proto != "udp" }
	return port == 22 || slices.ContainsFunc(g.Ports, has) || slices.ContainsFunc(g.Forwards, has)
}

func (c *checker) config(g *api.FleetGroup) {
	const exbi = 1 << 60
	switch {
	case g.CPUs < 0 || g.CPUs > 1024:
		c.add("cpus", "%d is not 1 to 1024", g.CPUs)
	case g.Memory < 0 || g.Memory > exbi:
		c.add("memory", "%d bytes of memory are not more than nothing and at most 1 EiB", g.Memory)
	case g.DiskSize < 0 || g.DiskSize%512 != 0:
		c.add("diskSize", "%d bytes is not a multiple of 512", g.DiskSize)
	}
	c.word("bus", string(g.Bus), Buses)
	c.word("cache", string(g.Cache), Caches)
	c.word("accel", string(g.Accel), Accels)
	c.word("machine", g.Machine, Types)
	c.word("warm", string(g.Warm), Warmth)
	if g.VNC != "" && g.VNC != vm.VNCUnix && g.VNC != vm.VNCNone {
		c.add("vnc", "%q: the machines of a fleet cannot all have one address: say unix or none", g.VNC)
	}
	if g.Hostname != "" && g.Count != 1 {
		c.add("hostname", "%d machines cannot all be called %q: leave it out, and each has its own name", g.Count, g.Hostname)
	}
	if slices.ContainsFunc(g.Forwards, func(f vm.Forward) bool { return f.HostPort != 0 }) {
		c.add("forwards", "a host port can be one machine's only: say it in ports, where each machine gets its own")
	}
	if len(g.UserData) > MaxUserData {
		c.add("userData", "%d bytes: at most %d are allowed", len(g.UserData), MaxUserData)
	}
	if g.NoSeed && (g.User != "" || g.Password != "" || len(g.SSHKeys) > 0 || len(g.UserData) > 0 || g.Hostname != "") {
		c.add("noSeed", "user, keys, password and user-data reach the guest by the seed: leave them out, or noSeed")
	}
	if len(g.Labels) > MaxLabels {
		c.add("labels", "%d labels: at most %d are allowed", len(g.Labels), MaxLabels)
	}
	for _, k := range slices.Sorted(maps.Keys(g.Labels)) {
		v := g.Labels[k]
		switch {
		case k == LabelFleet || k == LabelGroup || k == LabelMark:
			c.add("labels", "%s is set by the fleet itself: call yours otherwise", k)
		case k == "" || len(k) > 128 || len(v) > 1024:
			c.add("labels", "%.40q: a label has 1 to 128 characters and a value of at most 1024", k)
		}
	}
}

// word checks one of a few words, "" being the default.
func (c *checker) word(field, value string, known []string) {
	if value == "" || slices.Contains(known, value) {
		return
	}
	hint := ""
	if near := nearest.Word(value, known); near != "" {
		hint = "; did you mean " + near + "?"
	}
	c.add(field, "%.40q is not one of %s%s", value, strings.Join(known, ", "), hint)
}

// ports looks at a group's ports: each is a range of the host's, of as many as
// there may be machines.
func (c *checker) ports(g *api.FleetGroup) {
	if len(g.Ports) > MaxPorts {
		c.add("ports", "%d ports: at most %d are allowed", len(g.Ports), MaxPorts)
		return
	}
	for i, f := range g.Ports {
		field := fmt.Sprintf("ports[%d]", i)
		last := f.HostPort + span(g) - 1
		switch {
		case f.GuestPort < 1 || f.GuestPort > math.MaxUint16:
			c.add(field, "the guest's port %d is not 1 to 65535", f.GuestPort)
		case f.HostPort < 0 || f.HostPort > math.MaxUint16:
			c.add(field, "the host's port %d is not 0 (choose one) to 65535", f.HostPort)
		case f.HostPort != 0 && last > math.MaxUint16:
			c.add(field, "%d machines from host port %d on would need port %d: begin lower", span(g), f.HostPort, last)
		}
	}
}

// span is how many machines of a group may have host ports at one time.
func span(g *api.FleetGroup) int { return max(1, g.Count+mostSurge(g)) }

// together finds where groups are in each other's way.
func (c *checker) together(f api.Fleet) {
	groups := make(map[string]int)
	machines := make(map[string]int)
	type used struct {
		group, port int
		vm.Forward
	}
	taken := make(map[string][]used) // by proto: ranges, few
	for i := range f.Groups {
		g := &f.Groups[i]
		c.group = i
		if other, ok := groups[g.Name]; ok {
			c.add("name", "groups[%d] has the name %s too: give each its own", other, g.Name)
			continue
		}
		groups[g.Name] = i
		list, _ := seatNames(g) // was checked
		for k := range mostSurge(g) {
			list = append(list, surgeName(g.Name, k+1))
		}
		for _, name := range list {
			if other, ok := machines[name]; ok {
				c.add("names", "machine %s is of the group %s too: give the groups names of their own", name, f.Groups[other].Name)
				break
			}
			machines[name] = i
		}
		for j, p := range g.Ports {
			if p.HostPort == 0 {
				continue
			}
			proto := cmp.Or(p.Proto, "tcp")
			for _, u := range taken[proto] {
				mine, theirs := span(g), span(&f.Groups[u.group])
				if sameAddress(p, u.Forward) && p.HostPort < u.HostPort+theirs && u.HostPort < p.HostPort+mine {
					c.add(fmt.Sprintf("ports[%d]", j), "host ports %d to %d are needed, of which %d to %d are also those of ports[%d] of the group %s: leave them apart",
						p.HostPort, p.HostPort+mine-1, u.HostPort, u.HostPort+theirs-1, u.port, f.Groups[u.group].Name)
					break
				}
			}
			taken[proto] = append(taken[proto], used{i, j, p})
		}
		if len(c.found) > maxProblems {
			return
		}
	}
}

// sameAddress says whether two forwards of one protocol and port exclude each
// other.
func sameAddress(a, b vm.Forward) bool {
	const every = "0.0.0.0"
	x, y := cmp.Or(a.HostAddr, "127.0.0.1"), cmp.Or(b.HostAddr, "127.0.0.1")
	return x == y || x == every || y == every
}
