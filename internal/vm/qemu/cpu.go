package qemu

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm"
)

// cpuArg: under TCG, where host does not exist, max has what every distribution
// asks of a CPU (x86-64-v3). Smaller models, and max without five-level page
// tables, AVX or SMAP, took between 90 and 101 % of its time to the login of the
// test guest, which is within the noise of the measurement.
func cpuArg(model string, a vm.Accel) string {
	switch {
	case a == vm.AccelTCG && (model == "" || model == "host"):
		return "max"
	case model == "":
		return "host"
	}
	return model
}

// cpu is the model with all that is said of it.
func (c config) cpu() string {
	p, x := c.spec.Processor, c.spec.Features
	model := c.spec.CPU
	switch {
	case p.Mode == vm.CPUHostPassthrough || p.Mode == vm.CPUHostModel:
		model = "host"
	case p.Mode == vm.CPUMaximum:
		model = "max"
	case p.Model != "":
		model = p.Model
	}
	words := []string{cpuArg(model, c.accel)}
	host := words[0] == "host"
	set := func(name string, t vm.Toggle) {
		if t != "" {
			words = append(words, name+"="+string(t))
		}
	}
	if host {
		set("migratable", p.Migratable)
	}
	words = append(words, cacheWords(p.Cache, host)...)
	switch {
	case p.PhysBits == "passthrough" && c.accel == vm.AccelKVM:
		words = append(words, "host-phys-bits=on")
	case p.PhysBits != "" && p.PhysBits != "passthrough":
		words = append(words, "phys-bits="+p.PhysBits)
	}
	set("pae", x.PAE)
	set("apic", onlyOff(x.APIC))
	set("pmu", x.PMU)
	if c.accel == vm.AccelKVM {
		words = append(words, kvmWordsOf(c.spec)...)
	}
	return strings.Join(append(words, featureWords(p)...), ",")
}

func onlyOff(t vm.Toggle) vm.Toggle {
	if t == vm.Off {
		return t
	}
	return ""
}

// cacheWords: the caches that the guest is told of.
func cacheWords(mode string, host bool) []string {
	switch mode {
	case "passthrough":
		if host {
			return []string{"host-cache-info=on", "l3-cache=off"}
		}
	case "emulate":
		return []string{"l3-cache=on"}
	case "disable":
		return []string{"l3-cache=off"}
	}
	return nil
}

// featureWords are the flags. QEMU refuses to start without a required one
// when it is told to enforce.
func featureWords(p vm.Processor) []string {
	var words []string
	enforce := p.Check == "full"
	for _, f := range p.Features {
		switch f.Policy {
		case vm.FeatureDisable, vm.FeatureForbid:
			words = append(words, f.Name+"=off")
		case vm.FeatureForce, vm.FeatureOptional:
			words = append(words, f.Name+"=on")
		default:
			words = append(words, f.Name+"=on")
			enforce = true
		}
	}
	if enforce {
		words = append(words, "enforce=on")
	}
	return words
}

// kvmWordsOf are what only KVM can offer; under TCG there is nothing like it and
// guests do without.
func kvmWordsOf(s vm.Spec) []string {
	var words []string
	set := func(name string, t vm.Toggle) {
		if t != "" {
			words = append(words, name+"="+string(t))
		}
	}
	x, h := s.Features, s.Features.HyperV
	if x.KVMHidden == vm.On {
		words = append(words, "kvm=off")
	}
	set("kvm-pv-eoi", x.EOI)
	set("kvm-pv-unhalt", x.PVSpinlock)
	if h.Passthrough {
		words = append(words, "hv-passthrough=on")
	}
	for _, f := range []struct {
		name string
		t    vm.Toggle
	}{
		{"hv-relaxed", h.Relaxed}, {"hv-vapic", h.VAPIC}, {"hv-vpindex", h.VPIndex}, {"hv-runtime", h.Runtime}, {"hv-synic", h.SynIC},
		{"hv-stimer", h.STimer}, {"hv-stimer-direct", h.STimerDirect}, {"hv-reset", h.Reset}, {"hv-frequencies", h.Frequencies},
		{"hv-reenlightenment", h.Reenlightenment}, {"hv-tlbflush", h.TLBFlush}, {"hv-ipi", h.IPI}, {"hv-evmcs", h.EVMCS}, {"hv-avic", h.AVIC},
	} {
		set(f.name, f.t)
	}
	if h.Spinlocks == vm.On {
		retries := h.SpinlockRetries
		if retries == 0 {
			retries = 8191
		}
		words = append(words, fmt.Sprintf("hv-spinlocks=0x%x", retries))
	}
	if s.Panic != nil && s.Panic.Model == "hyperv" {
		words = append(words, "hv-crash=on")
	}
	if h.VendorID != "" {
		words = append(words, "hv-vendor-id="+h.VendorID)
	}
	for _, t := range s.Clock.Timers {
		switch {
		case t.Name == "kvmclock":
			set("kvmclock", t.Present)
		case t.Name == "hypervclock":
			set("hv-time", t.Present)
		case t.Name == "tsc" && t.Frequency > 0:
			words = append(words, fmt.Sprintf("tsc-frequency=%d", t.Frequency))
		}
	}
	return words
}

// smpArg is how many processors there are, and how they are arranged.
func smpArg(s vm.Spec) string {
	t, most := s.Processor.Topology, s.MaxCPUCount()
	if t.Count() == 0 && most == s.CPUs {
		return strconv.Itoa(s.CPUs)
	}
	words := []string{strconv.Itoa(s.CPUs), "maxcpus=" + strconv.Itoa(most)}
	if t.Count() == 0 {
		t.Sockets = most
	}
	for _, p := range []struct {
		name string
		n    int
	}{{"sockets", t.Sockets}, {"dies", t.Dies}, {"cores", t.Cores}, {"threads", t.Threads}} {
		words = append(words, p.name+"="+strconv.Itoa(max(p.n, 1)))
	}
	return strings.Join(words, ",")
}

// cpuKey names what a machine asks of KVM's CPU, for the memory of what works.
func cpuKey(s vm.Spec) string {
	c := config{spec: s, accel: vm.AccelKVM}
	plain := config{spec: vm.Spec{CPU: s.CPU}, accel: vm.AccelKVM}
	if full := c.cpu(); full != plain.cpu() {
		return full
	}
	return s.CPU
}

// vendors are libvirt's names of CPU makers, and cpuid's.
var vendors = map[string]string{"Intel": "GenuineIntel", "AMD": "AuthenticAMD", "Hygon": "HygonGenuine", "Zhaoxin": "  Shanghai  "}

// checkVendor refuses a host whose CPU another maker made than the machine
// wants. cpuinfo is the content of /proc/cpuinfo.
func checkVendor(want, cpuinfo string) error {
	if want == "" {
		return nil
	}
	id := want
	if v, ok := vendors[want]; ok {
		id = v
	}
	lines := slices.Collect(strings.Lines(cpuinfo))
	if slices.ContainsFunc(lines, func(l string) bool {
		return strings.HasPrefix(l, "vendor_id") && strings.Contains(l, strings.TrimSpace(id))
	}) {
		return nil
	}
	return fmt.Errorf("the machine wants a CPU by %s, and this host has another one: leave out the vendor, or run it elsewhere", want)
}
