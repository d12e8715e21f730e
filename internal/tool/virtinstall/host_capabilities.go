package virtinstall

import (
	"fmt"
	"slices"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// capabilities is what a host can run, of libvirt's capabilities document.
type capabilities struct {
	hostArch  string
	hostModel string // of its CPU
	security  string // the first of its security models
	guests    []capsGuest
}

type capsGuest struct {
	osType, arch, emulator string
	machines               []string
	domains                []capsDomain // in the host's order
}

type capsDomain struct {
	virtType, emulator string
	machines           []string
}

func readCapabilities(doc *domxml.Element) *capabilities {
	c := &capabilities{hostArch: doc.Get("host/cpu/arch"), hostModel: doc.Get("host/cpu/model"),
		security: doc.Get("host/secmodel/model")}
	names := func(e *domxml.Element) (out []string) {
		for _, m := range e.All("machine") {
			out = append(out, m.Text)
			if canonical := m.Attr("canonical"); canonical != "" {
				out = append(out, canonical)
			}
		}
		return out
	}
	for _, e := range doc.All("guest") {
		arch := e.Child("arch")
		g := capsGuest{osType: e.Get("os_type"), arch: arch.Attr("name"), emulator: arch.Get("emulator"), machines: names(arch)}
		for _, d := range arch.All("domain") {
			g.domains = append(g.domains, capsDomain{d.Attr("type"), d.Get("emulator"), names(d)})
		}
		c.guests = append(c.guests, g)
	}
	return c
}

// platform is what a machine runs on.
type platform struct{ osType, arch, virtType, machine, emulator string }

// choose completes what was asked for of a platform with what the host
// prefers, in the original's words where there is none.
func (c *capabilities) choose(want platform) (platform, error) {
	if len(c.guests) == 0 {
		return want, fmt.Errorf("Host does not support any virtualization options")
	}
	guests := slices.Clone(c.guests)
	keep := func(ok func(capsGuest) bool) bool {
		guests = slices.DeleteFunc(guests, func(g capsGuest) bool { return !ok(g) })
		return len(guests) > 0
	}
	switch {
	case want.osType != "" && !keep(func(g capsGuest) bool { return g.osType == want.osType }):
		return want, fmt.Errorf("Host does not support virtualization type '%s'", want.osType)
	case want.arch != "" && !keep(func(g capsGuest) bool { return g.arch == want.arch }):
		if want.osType != "" {
			return want, fmt.Errorf("Host does not support virtualization type '%s' for architecture '%s'", want.osType, want.arch)
		}
		return want, fmt.Errorf("Host does not support any virtualization options for architecture '%s'", want.arch)
	}
	g := guests[0]
	for _, other := range guests {
		if want.arch == "" && other.arch == c.hostArch && g.arch != c.hostArch {
			g = other
		}
	}
	d, ok := g.domain(want)
	if !ok {
		text := "domain type " + none(want.virtType)
		if want.machine != "" {
			text += fmt.Sprintf(" with machine '%s'", want.machine)
		}
		return want, fmt.Errorf("Host does not support %s for virtualization type '%s' with architecture '%s'", text, g.osType, g.arch)
	}
	want.osType, want.arch, want.virtType = g.osType, g.arch, d.virtType
	if want.emulator == "" {
		want.emulator = d.emulator
	}
	if want.emulator == "" {
		want.emulator = g.emulator
	}
	return want, nil
}

// none is how the original prints what was not given.
func none(text string) string {
	if text == "" {
		return "None"
	}
	return text
}

// domain returns the hypervisor to use: the one asked for, else the fastest.
func (g capsGuest) domain(want platform) (capsDomain, bool) {
	var fit []capsDomain
	for _, d := range g.domains {
		machines := slices.Concat(g.machines, d.machines)
		if (want.virtType == "" || d.virtType == want.virtType) && (want.machine == "" || slices.Contains(machines, want.machine)) {
			fit = append(fit, d)
		}
	}
	if len(fit) == 0 {
		return capsDomain{}, false
	}
	for _, best := range []string{"kvm", "kqemu", "hvf"} {
		for _, d := range fit {
			if d.virtType == best {
				return d, true
			}
		}
	}
	return fit[0], true
}

// domainCaps is what of libvirt's domain capabilities document decides
// defaults. Its zero value is a host of which nothing is known.
type domainCaps struct{ doc *domxml.Element }

// machine is the machine type that the host would take.
func (c domainCaps) machine() string { return c.doc.Get("machine") }

// values are what an <enum> of an element lists; known is false where the host
// does not say.
func (c domainCaps) values(path, enum string) (list []string, known bool) {
	e := c.doc.Find(path + "/enum[@name='" + enum + "']")
	if e == nil {
		return nil, false
	}
	for _, v := range e.All("value") {
		list = append(list, v.Text)
	}
	return list, true
}

// has reports whether an <enum> lists a value; a host that does not say is
// taken to have it.
func (c domainCaps) has(path, enum, value string) bool {
	list, known := c.values(path, enum)
	return !known || slices.Contains(list, value)
}

// mode reports whether a CPU mode is supported.
func (c domainCaps) mode(name string) bool {
	return c.doc.Get("cpu/mode[@name='"+name+"']/@supported") == "yes"
}
