package document

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/fleet"
	"github.com/lamina-vm/lamina/internal/guest/seed"
	"github.com/lamina-vm/lamina/internal/vm"
)

// fleet reads the whole document.
func (r *reader) fleet(n *yaml.Node, f *api.Fleet) {
	r.group = -1
	r.lines[place{-1, ""}] = n.Line
	r.mapping(n, "", map[string]entry{
		"name":   r.text(&f.Name),
		"groups": func(n *yaml.Node, name string) { r.groups(n, name, f) },
	})
	if len(r.errs) > 0 {
		return
	}
	if f.Name == "" {
		r.fail(n, "name", "the fleet's name is missing: add a line such as `name: shop`")
	}
	if _, ok := r.lines[place{-1, "groups"}]; !ok {
		r.fail(n, "groups", "it is missing: a list of groups, each with name, template and count; [] for a fleet without machines")
	}
}

func (r *reader) groups(n *yaml.Node, name string, f *api.Fleet) {
	r.list(func(n *yaml.Node, at string) {
		if len(f.Groups) > fleet.MaxGroups {
			return // which the check tells
		}
		r.group = len(f.Groups)
		f.Groups = append(f.Groups, api.FleetGroup{})
		r.lines[place{r.group, ""}] = n.Line
		r.one(n, &f.Groups[r.group])
		r.group = -1
	})(n, name)
}

// one reads a group.
func (r *reader) one(n *yaml.Node, g *api.FleetGroup) {
	counted, file := false, ""
	keys := map[string]entry{
		"name":     r.text(&g.Name),
		"names":    r.text(&g.Names),
		"template": r.text(&g.Template),
		"count": func(n *yaml.Node, name string) {
			counted = true
			r.integer(&g.Count)(n, name)
		},
		"ports":   r.list(func(n *yaml.Node, name string) { r.port(n, name, g) }),
		"warm":    func(n *yaml.Node, name string) { r.warm(n, name, g) },
		"rollout": func(n *yaml.Node, name string) { r.rollout(n, name, &g.Rollout) },
		"health":  func(n *yaml.Node, name string) { r.health(n, name, &g.Health) },

		"userDataFile": r.text(&file),
	}
	r.config(keys, &g.MachineConfig)
	r.mapping(n, "", keys)
	for _, missing := range []struct {
		key, remedy string
		is          bool
	}{
		{"name", "name the group, which names its machines: `name: web`", g.Name == ""},
		{"template", "name the template of its machines, see `lamina template ls`", g.Template == ""},
		{"count", "say how many machines: `count: 3`", !counted},
	} {
		if _, there := r.lines[place{r.group, missing.key}]; !there && len(r.errs) == 0 && missing.is {
			r.fail(n, missing.key, "it is missing: %s", missing.remedy)
		}
	}
	if file != "" {
		r.userDataFile(n, g, file)
	}
	r.userData(n, g)
}

// config adds the keys of a machine's configuration.
func (r *reader) config(keys map[string]entry, c *api.MachineConfig) {
	var userData string
	for k, e := range map[string]entry{
		"cpus":     r.integer(&c.CPUs),
		"memory":   r.size(&c.Memory, vm.ParseMemory),
		"diskSize": r.size(&c.DiskSize, vm.ParseSize),
		"bus":      word(r, &c.Bus),
		"cache":    word(r, &c.Cache),
		"accel":    word(r, &c.Accel),
		"machine":  r.text(&c.Machine),
		"vnc":      r.text(&c.VNC),
		"hostname": r.text(&c.Hostname),
		"user":     r.text(&c.User),
		"password": r.text(&c.Password),
		"sshKeys":  r.list(func(n *yaml.Node, name string) { r.sshKey(n, name, c) }),
		"userData": func(n *yaml.Node, name string) {
			r.text(&userData)(n, name)
			c.UserData = []byte(userData)
		},
		"userDataTemplate": r.boolean(&c.UserDataTemplate),
		"noSeed":           r.boolean(&c.NoSeed),
		"labels":           func(n *yaml.Node, name string) { r.labels(n, name, c) },
		"ksm":              r.boolean(&c.KSM),
		"balloon":          r.boolean(&c.Balloon),
	} {
		keys[k] = e
	}
}

func (r *reader) port(n *yaml.Node, name string, g *api.FleetGroup) {
	var text string
	r.text(&text)(n, name)
	if text == "" {
		return
	}
	f, err := vm.ParseForward(clip(text))
	if err != nil {
		r.fail(n, name, "%v", err)
		return
	}
	g.Ports = append(g.Ports, f)
}

func (r *reader) warm(n *yaml.Node, name string, g *api.FleetGroup) {
	var text string
	r.text(&text)(n, name)
	if text != "auto" { // what it is without
		g.Warm = api.Warm(text)
	}
}

func (r *reader) rollout(n *yaml.Node, name string, to *api.Rollout) {
	r.mapping(n, name+".", map[string]entry{"surge": r.integer(&to.Surge), "maxUnavailable": r.integer(&to.MaxUnavailable)})
	_, surge := r.lines[place{r.group, name + ".surge"}]
	_, unavailable := r.lines[place{r.group, name + ".maxUnavailable"}]
	if (surge || unavailable) && *to == (api.Rollout{}) && len(r.errs) == 0 {
		r.fail(n, name, "surge and maxUnavailable are both 0, so nothing could ever be replaced: make one of them 1")
	}
}

func (r *reader) health(n *yaml.Node, name string, to *api.Health) {
	r.mapping(n, name+".", map[string]entry{
		"check":    r.text(&to.Check),
		"port":     r.integer(&to.Port),
		"path":     r.text(&to.Path),
		"timeout":  r.duration(&to.Timeout),
		"interval": r.duration(&to.Interval),
	})
}

func (r *reader) labels(n *yaml.Node, name string, c *api.MachineConfig) {
	at := name
	if n = r.resolve(n, at); n == nil {
		return
	}
	if n.Kind != yaml.MappingNode {
		r.fail(n, at, "%s is not a mapping of labels to values", describe(n))
		return
	}
	c.Labels = make(map[string]string)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], ""
		if key.Kind != yaml.ScalarNode || key.Tag == "!!merge" {
			r.fail(key, at, "a label is a word, not %s", describe(key))
			return
		}
		if _, twice := c.Labels[key.Value]; twice {
			r.fail(key, at, "the label %q is there twice: remove one", clip(key.Value))
			return
		}
		r.text(&value)(n.Content[i+1], at)
		c.Labels[key.Value] = value
		if len(r.errs) > maxErrors {
			return
		}
	}
}

// maxKeyFile bounds a file of SSH keys, in bytes.
const maxKeyFile = 1 << 20

// sshKey reads a public key, or the file that holds some.
func (r *reader) sshKey(n *yaml.Node, name string, c *api.MachineConfig) {
	var text string
	r.text(&text)(n, name)
	if text == "" {
		return
	}
	add := func(line string) {
		if err := seed.CheckKey(line); err != nil {
			r.fail(n, name, "%s", strings.TrimPrefix(err.Error(), "seed: "))
		}
		c.SSHKeys = append(c.SSHKeys, line)
	}
	if strings.Contains(text, " ") {
		add(strings.TrimSpace(text))
		return
	}
	b, err := r.readFile(text, maxKeyFile)
	if err != nil {
		r.fail(n, name, "%v: write a public key, or the name of a file with some", err)
		return
	}
	if bytes.Contains(b, []byte("PRIVATE KEY-----")) {
		r.fail(n, name, "%s is a private key, which must never leave this host: give the public one, %s.pub", text, text)
		return
	}
	had := len(c.SSHKeys)
	for line := range strings.SplitSeq(string(b), "\n") {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			add(line)
		}
	}
	if len(c.SSHKeys) == had {
		r.fail(n, name, "%s holds no key", text)
	}
}

func (r *reader) userDataFile(n *yaml.Node, g *api.FleetGroup, file string) {
	at := &yaml.Node{Line: r.lines[place{r.group, "userDataFile"}]}
	if len(g.UserData) > 0 {
		r.fail(at, "userDataFile", "there is userData too: leave one of them out")
		return
	}
	b, err := r.readFile(file, fleet.MaxUserData)
	if err != nil {
		r.fail(at, "userDataFile", "%v", err)
		return
	}
	g.UserData = b
	r.lines[place{r.group, "userData"}] = at.Line
}

// userData looks at the user-data of a group, wherever it came from.
func (r *reader) userData(n *yaml.Node, g *api.FleetGroup) {
	at := &yaml.Node{Line: r.lineOf(place{r.group, "userData"})}
	if r.total += len(g.UserData); r.total > maxTotal {
		r.fail(at, "userData", "the user-data of all groups is more than %d MiB: let the guests fetch what is large", maxTotal>>20)
	}
	if g.UserDataTemplate && len(g.UserData) == 0 {
		r.fail(&yaml.Node{Line: r.lineOf(place{r.group, "userDataTemplate"})}, "userDataTemplate", "there is no userData that could be one: add it, or leave this out")
	}
}

// readFile reads a file that the document names.
func (r *reader) readFile(name string, most int) ([]byte, error) {
	if home, err := os.UserHomeDir(); err == nil && strings.HasPrefix(name, "~/") {
		name = filepath.Join(home, name[2:])
	}
	if !filepath.IsAbs(name) {
		name = filepath.Join(r.dir, name)
	}
	// A pipe or a device may never come to an end, or not even be opened.
	st, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	return readBounded(f, most)
}
