package fleet

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/lamina-vm/lamina/internal/vm"
)

// The parts of a mark, in their order.
const (
	markTemplate = iota
	markResources
	markIdentity
	markPorts
	markParts
)

// Mark stands for all that makes a machine what it is: a machine with another
// mark than its seat's is replaced. It has a part each for the template, the
// resources, what the guest is told, and the ports, so that two marks tell what
// has changed. Labels, count, health, rollout, the way of starting and keys that the
// document does not name are not in it. It must not change between versions of this
// program: each fleet would be made anew.
func Mark(s Seat) string {
	c := s.Group.MachineConfig
	resources := struct {
		CPUs                             int
		Memory, DiskSize                 int64
		Bus, Cache, Accel, Machine       string
		VNC, VNCPassword, VNCTLS         string
		InsecureGraphics, KSM, FreePages bool
	}{
		cmp.Or(c.CPUs, 1), cmp.Or(c.Memory, 1<<30), c.DiskSize,
		string(c.Bus), string(c.Cache), string(c.Accel), c.Machine,
		c.VNC, c.VNCPassword, c.VNCTLS,
		c.InsecureGraphics, c.KSM, c.Balloon,
	}
	identity := struct {
		Hostname, User, Password string
		SSHKeys                  []string
		UserData                 []byte
		NoSeed                   bool
		Index                    int // where the user-data may say it
	}{c.Hostname, c.User, c.Password, c.SSHKeys, c.UserData, c.NoSeed, 0}
	if c.UserDataTemplate {
		identity.Index = s.Index + 1
	}
	ports := "surge"
	if !s.Surge {
		ports = hash(append(forwardStrings(c.Forwards), forwardStrings(s.Ports)...))
	}
	return strings.Join([]string{s.Digest[:min(16, len(s.Digest))], hash(resources), hash(identity), ports}, ".")
}

func forwardStrings(list []vm.Forward) []string {
	out := make([]string, 0, len(list))
	for _, f := range list {
		out = append(out, f.String())
	}
	return out
}

// changed says what differs between the mark that a machine has and the one it
// is to have; ref is what its template is called.
func changed(has, want, ref string) string {
	a, b := strings.Split(has, "."), strings.Split(want, ".")
	if len(a) != markParts || len(b) != markParts {
		return "it has no mark of this version"
	}
	var what, parts []string
	if a[markTemplate] != b[markTemplate] {
		what = append(what, fmt.Sprintf("its template %s is now %.12s, was %.12s", ref, b[markTemplate], a[markTemplate]))
	}
	for i, name := range []string{"resources", "user-data, users or keys", "ports"} {
		if part := markResources + i; a[part] != b[part] {
			parts = append(parts, name)
		}
	}
	if len(parts) > 0 {
		what = append(what, "other "+strings.Join(parts, ", other ")+" than it has")
	}
	return strings.Join(what, "; ")
}
