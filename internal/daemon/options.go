package daemon

import (
	"crypto/rand"
	"fmt"
	"os"
	"strings"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/guest/seed"
	"github.com/lamina-vm/lamina/internal/vm"
)

// withIdentity gives the spec of a new machine what its guest learns by that it is
// another one than it was, and who inside of it is told more: the generation id, and
// the channels of both agents, whichever of them the guest has.
func withIdentity(s *vm.Spec) {
	s.GenerationID = newUUID()
	for _, target := range []string{vm.ChannelLamina, vm.ChannelAgent} {
		// A unix socket in the machine's folder.
		s.Channels = append(s.Channels, vm.Channel{Char: vm.Char{Type: vm.CharUnix, Listen: true}, Target: target})
	}
}

// newUUID makes a random UUID (RFC 9562, version 4).
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// withMemory are the choices of how memory is shared with the host. Pages are merged
// only where that was asked for, as a guest can find out by its timing what another
// one has in its memory.
func withMemory(s *vm.Spec, c api.MachineConfig) {
	s.MemoryConfig.NoMerge = !c.KSM
	if c.Balloon {
		s.Balloon = &vm.Balloon{FreePageReporting: vm.On, Autodeflate: vm.On}
	}
}

// ksmRun says whether the kernel merges equal pages.
const ksmRun = "/sys/kernel/mm/ksm/run"

// ksmNote is what to tell a person who wants pages to be merged; "" where they
// are.
func ksmNote(c api.MachineConfig, file string) string {
	if !c.KSM {
		return ""
	}
	b, err := os.ReadFile(file)
	switch {
	case err != nil:
		return "KSM: this host's kernel cannot merge equal pages: " + err.Error()
	case strings.TrimSpace(string(b)) != "1":
		return "KSM: this host's kernel does not merge equal pages now: `echo 1 > " + ksmRun + "` as root begins it"
	}
	return ""
}

// checkLabels refuses labels that could not be listed.
func checkLabels(labels map[string]string) error {
	const most, longest = 64, 256
	if len(labels) > most {
		return api.Errorf(api.CodeInvalid, "%d labels, at most %d are allowed", len(labels), most)
	}
	for k, v := range labels {
		if k == "" || len(k) > longest || len(v) > longest || strings.ContainsFunc(k, func(r rune) bool { return r <= ' ' || r == '=' || r == 0x7f }) {
			return api.Errorf(api.CodeInvalid, "label %.60q=%.60q: a key is 1 to %d characters without spaces and =, a value at most %d", k, v, longest, longest)
		}
	}
	return nil
}

// userData makes the user-data of each of count machines of a template: a function of
// the machine's place, name and host name.
type userData func(index int, name, hostname string) ([]byte, error)

func newUserData(c api.MachineConfig, template string, count int) (userData, error) {
	if !c.UserDataTemplate {
		return func(int, string, string) ([]byte, error) { return c.UserData, nil }, nil
	}
	t, err := seed.ParseTemplate(c.UserData)
	if err != nil {
		return nil, api.Errorf(api.CodeInvalid, "%v", err)
	}
	return func(index int, name, hostname string) ([]byte, error) {
		b, err := t.Render(seed.TemplateData{Name: name, Hostname: hostname, Index: index, Count: count, Template: template})
		if err != nil {
			return nil, api.Errorf(api.CodeInvalid, "%v", err)
		}
		return b, nil
	}, nil
}
