package virtinstall

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// nothing is what a sub-option does that the option's before has taken up.
func nothing(*guest, *domxml.Element, value) error { return nil }

// setMemory gives an element of the domain an amount, which the command line
// has in MiB and the document in KiB.
func setMemory(name string) func(*guest, *domxml.Element, value) error {
	return func(g *guest, _ *domxml.Element, v value) error {
		n, err := wholeNumber(v.text)
		if err != nil {
			return err
		}
		if err := g.dom.Set(name, strconv.FormatInt(n*1024, 10)); err != nil || name != "currentMemory" {
			return err
		}
		if most, err := strconv.ParseInt(g.dom.Get("memory"), 10, 64); err == nil && most >= n*1024 {
			return nil
		}
		return g.dom.Set("memory", strconv.FormatInt(n*1024, 10))
	}
}

// memoryBefore sorts out the two amounts that a machine has: "512" is what it
// starts with, "maxmemory" what it can grow to by its balloon.
func memoryBefore(g *guest, _ *domxml.Element, given *suboptions) error {
	most, hasMost := given.take("maxmemory")
	if amount, ok := given.get("memory"); ok {
		if _, both := given.get("currentMemory"); !both {
			_, _ = given.take("memory")
			given.set("currentMemory", amount)
		}
	}
	if hasMost {
		given.set("memory", most)
	}
	return nil
}

// cpuBefore makes "+feature" and "-feature" what they are short for.
func cpuBefore(g *guest, _ *domxml.Element, given *suboptions) error {
	var kept, short []suboption
	for _, o := range given.list {
		switch {
		case !o.given && strings.HasPrefix(o.key, "+"):
			short = append(short, suboption{"force", o.key[1:], true})
		case !o.given && strings.HasPrefix(o.key, "-"):
			short = append(short, suboption{"disable", o.key[1:], true})
		default:
			kept = append(kept, o)
		}
	}
	given.list = append(kept, short...)
	return nil
}

// setSecure says whether the model gets the features that mend the CPU's
// security problems; see the defaults.
func setSecure(g *guest, _ *domxml.Element, v value) error {
	g.cpuSecure = v.on()
	return nil
}

// The CPUs that are not models.
const (
	cpuHost            = "host"
	cpuHostPassthrough = "host-passthrough"
	cpuHostModel       = "host-model"
	cpuHostModelOnly   = "host-model-only"
	cpuHostCopy        = "host-copy"
	cpuHypervisor      = "hv-default"
	cpuNone            = "none"
	saidCPU            = "cpu" // key of guest.said: no CPU is wanted
)

// setModel sets the model, or a mode where the word is one.
func setModel(g *guest, el *domxml.Element, v value) error {
	model := v.text
	switch model {
	case "":
		return nil
	case cpuHost, cpuHostModel:
		return el.Set("@mode", cpuHostModel)
	case cpuHostPassthrough:
		return el.Set("@mode", model)
	case cpuHypervisor, cpuNone:
		g.said[saidCPU] = "yes"
		*el = domxml.Element{Name: el.Name}
		return nil
	case cpuHostCopy, cpuHostModelOnly:
		if model = g.caps.hostModel; model == "" {
			return fmt.Errorf("the host does not say which model its CPU is: use --cpu %s", cpuHostModel)
		}
		el.SetAttr("mode", "custom")
	}
	if el.Attr("mode") == "" {
		el.SetAttr("mode", "custom")
	}
	if el.Attr("match") == "" {
		el.SetAttr("match", "exact")
	}
	if g.cpuSecure {
		names, err := g.securityFeatures()
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := setFeature(g, el, value{key: "require", text: name}); err != nil {
				return err
			}
		}
	}
	return el.Set("model", model)
}

// setFeature adds a feature with the policy that the sub-option is called.
func setFeature(_ *guest, el *domxml.Element, v value) error {
	for _, f := range el.All("feature") {
		if f.Attr("name") == v.text {
			f.SetAttr("policy", v.key)
			return nil
		}
	}
	el.Add(domxml.New("feature", "policy", v.key, "name", v.text))
	return nil
}

// vcpusBefore sorts out the two numbers that a machine has: "4,maxvcpus=8" are
// four of eight.
func vcpusBefore(_ *guest, _ *domxml.Element, given *suboptions) error {
	if n, ok := given.take("vcpus"); ok {
		given.set("vcpu", n)
	}
	if set, ok := given.take("cpuset"); ok {
		given.set("vcpu.cpuset", set)
	}
	if most, ok := given.take("maxvcpus"); ok {
		if n, both := given.get("vcpu"); both {
			given.set("vcpu.current", n)
		}
		given.set("vcpu", most)
	}
	return nil
}

// setCPUSet pins the virtual CPUs; "auto" leaves it to libvirt's numad.
func setCPUSet(g *guest, _ *domxml.Element, v value) error {
	switch v.text {
	case "":
		return g.dom.Remove("vcpu/@cpuset")
	case "auto":
		return g.dom.Set("vcpu/@placement", "auto")
	}
	return g.dom.Set("vcpu/@cpuset", v.text)
}
