package agent

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/lamina-vm/lamina/internal/names"
)

// Bounds of a report: more than any guest has.
const (
	maxItems = 256
	maxValue = 4096
)

// said is what the script printed: lines "=KEY VALUE" by key, and the rest.
type said struct {
	values map[string][]string
	noise  []string // the last lines that are not of the script
	whole  bool     // the script ran to the end of its report
}

func parseSaid(out []byte) said {
	s := said{values: map[string][]string{}}
	for line := range strings.SplitSeq(string(out), "\n") {
		rest, ok := strings.CutPrefix(line, "=")
		if !ok {
			if line = strings.TrimSpace(line); line != "" {
				s.noise = append(s.noise, line)
				s.noise = s.noise[max(0, len(s.noise)-5):]
			}
			continue
		}
		key, value, _ := strings.Cut(rest, " ")
		if key == "end" {
			s.whole = true
			continue
		}
		if len(value) <= maxValue && len(s.values[key]) < maxItems && len(s.values) < maxItems {
			s.values[key] = append(s.values[key], value)
		}
	}
	return s
}

// one is the one value of a key.
func (s said) one(key string) string {
	if v := s.values[key]; len(v) == 1 {
		return v[0]
	}
	return ""
}

// noiseText is what programs said, for the end of an error.
func (s said) noiseText() string {
	if len(s.noise) == 0 {
		return ""
	}
	return fmt.Sprintf("; last it said %q", clip(strings.Join(s.noise, "; ")))
}

// report is what the guest says, as it is.
func (s said) report(at time.Time) Report {
	r := Report{Hostname: printable(s.one("hostname")), MachineID: printable(s.one("machine-id")), At: at}
	r.ServerUnknown = len(s.values["server"]) > 0 || len(s.values["nossh"]) > 0
	if user := s.one("user"); names.IsUser(user) {
		r.User = user
	}
	for _, k := range s.values["key"] {
		r.HostKeys = append(r.HostKeys, printable(k))
	}
	return r
}

// printable keeps a guest from writing to a person's terminal.
func printable(v string) string {
	if !utf8.ValidString(v) || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return strconv.Quote(v)
	}
	return v
}

// check holds what the guest says against what it was to become.
func (s said) check(id Identity) (Report, error) {
	r := s.report(time.Now())
	var errs []error
	differ := func(what, got, want string) {
		if got == "" {
			errs = append(errs, fmt.Errorf("%s: %w", what, errNotSaid))
		} else {
			errs = append(errs, fmt.Errorf("%s is %q, not %q", what, clip(got), want))
		}
	}
	short, _, _ := strings.Cut(id.Seed.Hostname, ".")
	if r.Hostname != short && r.Hostname != id.Seed.Hostname {
		differ("the host name", r.Hostname, short)
	}
	if r.MachineID != id.MachineID {
		differ("the machine-id", r.MachineID, id.MachineID)
	}
	if _, none := s.values["nossh"]; none {
		r.HostKeys = nil // nobody serves them
	} else {
		errs = append(errs, s.checkKeys(id, r.HostKeys))
	}
	for _, p := range s.values["problem"] {
		errs = append(errs, errors.New(printable(clip(p))))
	}
	if err := errors.Join(errs...); err != nil {
		return Report{}, fmt.Errorf("%w: %s%s", ErrMismatch, strings.ReplaceAll(err.Error(), "\n", "; "), s.noiseText())
	}
	return r, nil
}

// checkKeys: the guest's SSH server has the keys that it was given, and none
// beside.
func (s said) checkKeys(id Identity, got []string) error {
	want, err := id.HostKeys.Public()
	if err != nil {
		return err
	}
	var errs []error
	for _, k := range want {
		if !slices.Contains(got, k) {
			kind, _, _ := strings.Cut(k, " ")
			errs = append(errs, fmt.Errorf("its %s host key is not the one that it was given", kind))
		}
	}
	for _, k := range got {
		if !slices.Contains(want, k) {
			errs = append(errs, fmt.Errorf("it has the host key %q beside", clip(k)))
		}
	}
	return errors.Join(errs...)
}

// afterCloudInit is the report after cloud-init ran, which may have given the guest
// another name and other keys: the user-data's word counts. before is the
// report that was checked.
func (s said) afterCloudInit(before Report) (Report, error) {
	r := s.report(time.Now())
	r.Addresses, r.User, r.ServerUnknown = before.Addresses, before.User, before.ServerUnknown
	if r.MachineID != before.MachineID {
		return before, fmt.Errorf("%w: the machine-id is %q after its cloud-init ran, not %q", ErrUserData, clip(r.MachineID), before.MachineID)
	}
	var problems []string
	for _, p := range s.values["problem"] {
		problems = append(problems, printable(clip(p)))
	}
	problems = append(problems, resultErrors(s.values["result"])...)
	if len(problems) > 0 {
		return r, fmt.Errorf("%w: %s%s", ErrUserData, strings.Join(problems, "; "), s.noiseText())
	}
	return r, nil
}
