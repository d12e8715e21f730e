package seed

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"gopkg.in/yaml.v3"
)

// cloudConfig is what Lamina itself asks of cloud-init.
type cloudConfig struct {
	Hostname       string      `yaml:"hostname,omitempty"`
	FQDN           string      `yaml:"fqdn,omitempty"`
	ManageEtcHosts string      `yaml:"manage_etc_hosts,omitempty"`
	Datasources    []string    `yaml:"datasource_list,flow"`
	User           *userConfig `yaml:"user,omitempty"`
	Users          []string    `yaml:"users,omitempty"`
	SSHKeys        []string    `yaml:"ssh_authorized_keys,omitempty"`
	DisableRoot    *bool       `yaml:"disable_root,omitempty"`
	Password       string      `yaml:"password,omitempty"`
	Chpasswd       *chpasswd   `yaml:"chpasswd,omitempty"`
	SSHPwauth      bool        `yaml:"ssh_pwauth,omitempty"`
}

// userConfig renames the image's default user, so that the new one keeps the
// groups and the shell that the distribution gives it.
type userConfig struct {
	Name       string `yaml:"name"`
	Sudo       string `yaml:"sudo,omitempty"`
	LockPasswd bool   `yaml:"lock_passwd"`
}

type chpasswd struct {
	Expire bool `yaml:"expire"`
}

// cloudConfig translates c.
func (c Config) cloudConfig() (cloudConfig, error) {
	cc := cloudConfig{
		// No other data source is looked for, even on later boots: the ones
		// that ask a metadata service wait minutes for it.
		Datasources: []string{"NoCloud", "None"},
		SSHKeys:     c.SSHKeys,
	}
	if c.Hostname != "" {
		cc.Hostname = c.Hostname
		if short, _, ok := strings.Cut(c.Hostname, "."); ok {
			cc.Hostname, cc.FQDN = short, c.Hostname
		}
		// sudo looks the own name up: without an entry it waits for DNS.
		cc.ManageEtcHosts = "localhost"
	}
	if c.User != "" {
		cc.User = &userConfig{Name: c.User, LockPasswd: c.Password == ""}
		if c.User == "root" {
			// Else root's keys are replaced by a line that turns away.
			cc.DisableRoot = new(bool)
		} else {
			cc.User.Sudo = "ALL=(ALL) NOPASSWD:ALL"
		}
	}
	if c.Password != "" {
		hash, err := c.PasswordHash()
		if err != nil {
			return cc, err
		}
		cc.Password = hash
		cc.Chpasswd = &chpasswd{Expire: false}
		cc.SSHPwauth = true
	}
	return cc, nil
}

// PasswordHash is the password as the seed tells it the guest, in the form of
// /etc/shadow; "" without one.
func (c Config) PasswordHash() (string, error) {
	if c.Password == "" {
		return "", nil
	}
	hash, err := sha512Crypt(c.Password, saltOf("lamina seed", c.InstanceID, c.Hostname, c.User))
	if err != nil {
		return "", fmt.Errorf("seed: password: %w", err)
	}
	return hash, nil
}

// needsDefaultUser: the keys or the password are for the image's default user,
// which a list of users without it would leave out.
func (c Config) needsDefaultUser() bool {
	return c.User == "" && (len(c.SSHKeys) > 0 || c.Password != "")
}

// node returns the YAML mapping of cc.
func (cc cloudConfig) node() (*yaml.Node, error) {
	var n yaml.Node
	if err := n.Encode(cc); err != nil {
		return nil, fmt.Errorf("seed: %w", err)
	}
	return &n, nil
}

const cloudConfigHeader = "#cloud-config"

// mergeCloudConfig puts what c asks for into the user's cloud-config, whose
// values win: mappings are merged key by key, lists joined (ours first,
// without doubles), anything else stays the user's.
func (c Config) mergeCloudConfig(user []byte) ([]byte, error) {
	theirs, err := parseCloudConfig(user)
	if err != nil {
		return nil, err
	}
	cc, err := c.cloudConfig()
	if err != nil {
		return nil, err
	}
	if theirs != nil && c.needsDefaultUser() && leavesDefaultOut(mapValue(theirs, "users")) {
		cc.Users = []string{"default"}
	}
	n, err := cc.node()
	if err != nil {
		return nil, err
	}
	if theirs != nil {
		mergeInto(n, theirs)
	}
	b, err := marshal(n)
	if err != nil {
		return nil, err
	}
	return append([]byte(cloudConfigHeader+"\n"), b...), nil
}

// parseCloudConfig returns the one mapping of the document, nil if it is empty.
func parseCloudConfig(b []byte) (*yaml.Node, error) {
	// The header is a comment, which would travel with the first key.
	if first, rest, _ := bytes.Cut(b, []byte("\n")); bytes.HasPrefix(first, []byte(cloudConfigHeader)) {
		b = append([]byte("\n"), rest...)
	}
	dec := yaml.NewDecoder(bytes.NewReader(b))
	var doc, more yaml.Node
	switch err := dec.Decode(&doc); {
	case err == io.EOF:
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("seed: user-data is not YAML: %w", err)
	}
	if err := dec.Decode(&more); err != io.EOF {
		return nil, errors.New("seed: user-data has more than one YAML document: cloud-init takes one")
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return nil, nil
	}
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("seed: user-data line %d: a cloud-config is a mapping, \"key: value\"", root.Line)
	}
	return root, nil
}

// leavesDefaultOut: users is a list of some users, and the default one is not
// among them. An empty list says that there are to be none.
func leavesDefaultOut(users *yaml.Node) bool {
	if users == nil || users.Kind != yaml.SequenceNode || len(users.Content) == 0 {
		return false
	}
	for _, u := range users.Content {
		u = resolve(u)
		if u.Value == "default" {
			return false
		}
		if u.Kind != yaml.MappingNode {
			continue
		}
		if name := mapValue(u, "name"); name != nil && name.Value == "default" {
			return false
		}
	}
	return true
}

// mergeInto merges over into base, a mapping as well. base is ours and has no
// aliases, so changing it in place changes nothing else.
func mergeInto(base, over *yaml.Node) {
	for i := 0; i+1 < len(over.Content); i += 2 {
		key, theirs := over.Content[i], over.Content[i+1]
		at := valueIndex(base, key.Value)
		if at < 0 {
			base.Content = append(base.Content, key, theirs)
			continue
		}
		ours, t := base.Content[at], resolve(theirs)
		switch {
		case ours.Kind == yaml.MappingNode && t.Kind == yaml.MappingNode:
			mergeInto(ours, t)
		case ours.Kind == yaml.SequenceNode && t.Kind == yaml.SequenceNode && key.Value != "datasource_list":
			appendNew(ours, t)
		default:
			base.Content[at] = theirs
		}
	}
}

// appendNew adds the elements of more to list, scalars that it has left out.
func appendNew(list, more *yaml.Node) {
	has := map[string]bool{}
	for _, n := range list.Content {
		has[n.Value] = n.Kind == yaml.ScalarNode
	}
	for _, n := range more.Content {
		if r := resolve(n); r.Kind != yaml.ScalarNode || !has[r.Value] {
			list.Content = append(list.Content, n)
		}
	}
}

func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// valueIndex is where in the mapping's Content the value of key is, or -1.
func valueIndex(m *yaml.Node, key string) int {
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			return i + 1
		}
	}
	return -1
}

// mapValue is the value of key, nil if there is none.
func mapValue(m *yaml.Node, key string) *yaml.Node {
	if i := valueIndex(m, key); i >= 0 {
		return resolve(m.Content[i])
	}
	return nil
}

func marshal(n *yaml.Node) ([]byte, error) {
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(n); err != nil {
		return nil, fmt.Errorf("seed: %w", err)
	}
	if err := enc.Close(); err != nil {
		return nil, fmt.Errorf("seed: %w", err)
	}
	return b.Bytes(), nil
}
