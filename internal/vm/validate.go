package vm

import (
	"fmt"
	"iter"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// The limits of a machine.
const (
	MinMemory = 1 << 20        // bytes
	MaxMemory = int64(1) << 42 // bytes; more needs a CPU with more address bits than most have
	MaxCPUs   = 255            // what xAPIC ids can name
	maxSerial = 20             // virtio-blk's serial field, the shortest of all buses
)

// Values of Graphics.VNC beside HOST:DISPLAY.
const (
	VNCUnix = "unix"
	VNCNone = "none"
)

// Problem is one thing in a spec that cannot work.
type Problem struct {
	Field  string `json:"field"`  // as in JSON: "disks[0].bus"
	Text   string `json:"text"`   // what is wrong
	Remedy string `json:"remedy"` // what to do
}

// String is the problem as a line of an error message.
func (p Problem) String() string { return fmt.Sprintf("%s: %s: %s", p.Field, p.Text, p.Remedy) }

// InvalidError is the error of [Spec.Validate]: all problems of a spec.
type InvalidError struct {
	Name     string // of the machine
	Problems []Problem
}

// Error lists every problem, one a line if there are more than one.
func (e *InvalidError) Error() string {
	if len(e.Problems) == 1 {
		return fmt.Sprintf("machine %q cannot work: %s", e.Name, e.Problems[0])
	}
	var b strings.Builder
	fmt.Fprintf(&b, "machine %q cannot work:", e.Name)
	for _, p := range e.Problems {
		fmt.Fprintf(&b, "\n  %s", p)
	}
	return b.String()
}

// findings collects problems.
type findings []Problem

func (f *findings) add(field, text, remedy string) {
	*f = append(*f, Problem{Field: field, Text: text, Remedy: remedy})
}

// Validate says everything that keeps the machine from working, as an
// [*InvalidError], nil if there is nothing. It expects a spec that
// [Spec.WithDefaults] has filled in. It opens files where only that can tell
// (O_DIRECT), but a missing disk is not its matter: see [Spec.CheckFiles].
func (s Spec) Validate() error {
	var f findings
	s.validateMachine(&f)
	s.validateCPUs(&f)
	s.validateMemory(&f)
	s.validateBoot(&f)
	s.validateFeatures(&f)
	s.validateEvents(&f)
	s.validateDisks(&f)
	s.validateNICs(&f)
	s.validateBootOrder(&f)
	s.validateScreen(&f)
	s.validateChars(&f)
	s.validateDevices(&f)
	s.validateControllers(&f)
	s.validateSlots(&f)
	if len(f) == 0 {
		return nil
	}
	return &InvalidError{Name: s.Name, Problems: f}
}

// The patterns are compiled when they are first needed: the command links this
// package and should start at once.
var (
	validName   = pattern(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	validUUID   = pattern(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	validCPU    = pattern(`^[A-Za-z0-9][A-Za-z0-9._+-]*(,[+-]?[A-Za-z0-9][A-Za-z0-9._-]*(=[A-Za-z0-9._-]+)?)*$`)
	validWord   = pattern(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)
	validSerial = pattern(`^[A-Za-z0-9_.+-]{0,20}$`)
)

func pattern(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

// oneOf adds a problem where value is not one of those that are allowed.
func oneOf[T ~string](f *findings, field string, value T, allowed ...T) {
	if slices.Contains(allowed, value) {
		return
	}
	words := make([]string, 0, len(allowed))
	for _, a := range allowed {
		if a != "" {
			words = append(words, string(a))
		}
	}
	f.add(field, fmt.Sprintf("%q is not known", value), "use one of "+strings.Join(words, ", "))
}

// inOrder walks a map in the order of its keys, so that a spec's problems always
// come in the same order.
func inOrder[V any](m map[string]V) iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}

// toggle adds a problem where a choice is neither on, off nor left out.
func toggle(f *findings, field string, t Toggle) { oneOf(f, field, t, "", On, Off) }

// word adds a problem where a name could be something else than a name to
// QEMU. An empty one is none.
func word(f *findings, field, value string) {
	if value != "" && !validWord().MatchString(value) {
		f.add(field, fmt.Sprintf("%q is not a name", value), "use letters, digits, '.', '_' and '-'")
	}
}

// absolute adds a problem where a path cannot be one of QEMU's.
func absolute(f *findings, field, path string) {
	if !filepath.IsAbs(path) {
		f.add(field, fmt.Sprintf("%q is not an absolute path", path), "QEMU runs in the machine's folder: give the whole path")
	} else if strings.ContainsRune(path, 0) {
		f.add(field, fmt.Sprintf("%q holds a zero byte", path), "rename the file")
	}
}

// atLeastZero adds a problem for a negative number.
func atLeastZero[T ~int | ~int64](f *findings, field string, n T) {
	if n < 0 {
		f.add(field, fmt.Sprintf("%d is below zero", n), "use 0 for the default, or more")
	}
}

func (s Spec) validateMachine(f *findings) {
	if !validName().MatchString(s.Name) {
		f.add("name", fmt.Sprintf("%q is not a machine name", s.Name), "use 1 to 63 letters, digits, '.', '_' or '-', the first a letter or digit")
	}
	if !validUUID().MatchString(s.UUID) {
		f.add("uuid", fmt.Sprintf("%q is not a UUID in lower case", s.UUID), "leave it out to have one made")
	}
	if s.CPUs < 1 || s.CPUs > MaxCPUs {
		f.add("cpus", fmt.Sprintf("%d virtual CPUs", s.CPUs), fmt.Sprintf("use 1 to %d", MaxCPUs))
	}
	for field, text := range inOrder(map[string]string{"title": s.Title, "description": s.Description}) {
		if strings.ContainsRune(text, 0) {
			f.add(field, "holds a zero byte", "leave it out")
		}
	}
	if s.Memory < MinMemory || s.Memory > MaxMemory {
		f.add("memory", fmt.Sprintf("%d bytes", s.Memory), "use 1M to 4T; a Linux guest wants 256M or more")
	} else if s.Memory%MinMemory != 0 {
		f.add("memory", fmt.Sprintf("%d bytes is not a whole number of MiB", s.Memory), fmt.Sprintf("use %dM", s.Memory/MinMemory+1))
	}
	if s.Chipset() == "" || !validWord().MatchString(s.Machine) {
		f.add("machine", fmt.Sprintf("unknown machine type %q", s.Machine), "use pc or q35, or one of them with a version, such as pc-q35-7.2")
	}
	if s.Accel != AccelAuto && s.Accel != AccelKVM && s.Accel != AccelTCG {
		f.add("accel", fmt.Sprintf("unknown accelerator %q", s.Accel), "use auto, kvm or tcg")
	}
	if s.CPU != "" && !validCPU().MatchString(s.CPU) {
		f.add("cpu", fmt.Sprintf("%q is not a CPU model", s.CPU), "use a name that `qemu-system-x86_64 -cpu help` lists")
	}
	if s.CPU == "host" && s.Accel == AccelTCG {
		f.add("cpu", "the model host needs KVM", "use max, or leave it out")
	}
}
