package seed

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"

	"gopkg.in/yaml.v3"
)

// Bounds of what a seed carries. cloud-init sets none for NoCloud; these keep
// a wrong file (an image given as user-data) from becoming a seed.
const (
	maxUserData      = 1 << 20
	maxNetworkConfig = 256 << 10
	maxKeys          = 1000
)

// Validate says whether a seed can be made of c. Its error names the field
// and the value that a guest could not use.
func (c Config) Validate() error {
	if err := checkInstanceID(c.InstanceID); err != nil {
		return err
	}
	if c.Hostname != "" {
		if err := checkHostname(c.Hostname); err != nil {
			return err
		}
	}
	if c.User != "" {
		if err := checkUser(c.User); err != nil {
			return err
		}
	}
	if len(c.SSHKeys) > maxKeys {
		return fmt.Errorf("seed: %d ssh keys, more than %d", len(c.SSHKeys), maxKeys)
	}
	for _, k := range c.SSHKeys {
		if err := CheckKey(k); err != nil {
			return err
		}
	}
	if strings.ContainsAny(c.Password, "\x00\r\n") {
		return errors.New("seed: the password has a line end or a zero byte, which no login prompt takes")
	}
	if len(c.Password) > maxPassword {
		return fmt.Errorf("seed: the password is %w", errLongPassword)
	}
	for _, m := range c.MACs {
		if hw, err := net.ParseMAC(m); err != nil || len(hw) != 6 {
			return fmt.Errorf("seed: %q is not a MAC address such as 52:54:00:12:34:56", m)
		}
	}
	if len(c.UserData) > maxUserData {
		return fmt.Errorf("seed: user-data of %d bytes, more than %d", len(c.UserData), maxUserData)
	}
	if len(c.MetaData) > maxNetworkConfig {
		return fmt.Errorf("seed: meta-data of %d bytes, more than %d", len(c.MetaData), maxNetworkConfig)
	}
	if len(c.NetworkConfig) > maxNetworkConfig {
		return fmt.Errorf("seed: network-config of %d bytes, more than %d", len(c.NetworkConfig), maxNetworkConfig)
	}
	return nil
}

func checkInstanceID(id string) error {
	if id == "" {
		return errors.New("seed: the instance id is empty")
	}
	if len(id) > 128 {
		return fmt.Errorf("seed: instance id of %d characters, more than 128", len(id))
	}
	// It becomes a folder's name in the guest.
	for _, r := range id {
		if !isAlnum(r) && !strings.ContainsRune("-_.", r) {
			return fmt.Errorf("seed: instance id %q: %q is none of letters, digits, '-', '_', '.'", id, r)
		}
	}
	if id[0] == '.' {
		return fmt.Errorf("seed: instance id %q begins with a dot", id)
	}
	return nil
}

func isAlnum(r rune) bool {
	return 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
}

// checkHostname takes what RFC 1123 2.1 calls a host name, with or without a
// domain.
func checkHostname(h string) error {
	if len(h) > 253 {
		return fmt.Errorf("seed: host name of %d characters, more than 253", len(h))
	}
	for label := range strings.SplitSeq(h, ".") {
		switch {
		case label == "":
			return fmt.Errorf("seed: host name %q has an empty part", h)
		case len(label) > 63:
			return fmt.Errorf("seed: host name %q: %q is longer than 63 characters", h, label)
		case label[0] == '-' || label[len(label)-1] == '-':
			return fmt.Errorf("seed: host name %q: %q begins or ends with a dash", h, label)
		}
		for _, r := range label {
			if !isAlnum(r) && r != '-' {
				return fmt.Errorf("seed: host name %q: %q is none of letters, digits and '-'", h, r)
			}
		}
	}
	return nil
}

// checkUser takes what useradd takes on every distribution.
func checkUser(u string) error {
	if len(u) > 32 {
		return fmt.Errorf("seed: user name %q is longer than 32 characters", u)
	}
	for i, r := range u {
		lower := 'a' <= r && r <= 'z' || r == '_'
		if lower || i > 0 && ('0' <= r && r <= '9' || r == '-') {
			continue
		}
		return fmt.Errorf("seed: user name %q: it takes lower case letters, digits, '_' and '-', and begins with a letter or '_'", u)
	}
	return nil
}

// CheckKey says whether line is a line of authorized_keys: a public key, with
// options before it and a comment behind it or without.
func CheckKey(line string) error {
	line = strings.TrimSpace(line)
	switch {
	case line == "":
		return errors.New("seed: an ssh key is empty")
	case strings.Contains(line, "-----BEGIN"):
		return errors.New("seed: this is a private ssh key: give the public one, the file that ends in .pub")
	case strings.ContainsAny(line, "\r\n\x00"):
		return fmt.Errorf("seed: ssh key %q has more than one line: give each key on its own", clip(line))
	}
	f := keyFields(line)
	for i := 0; i+1 < len(f) && i < 2; i++ { // the type is first, or second after options
		blob, err := base64.StdEncoding.DecodeString(f[i+1])
		if err == nil && isKeyBlob(blob, f[i]) {
			return nil
		}
	}
	return fmt.Errorf("seed: %q is not an ssh public key: expected a type, the key and a comment, as in a .pub file", clip(line))
}

// isKeyBlob says whether blob is a whole key of the given type: length-prefixed
// fields to its end (RFC 4253 6.6), the first of which is the type. In a
// certificate there are other fields too, so only its type is looked at.
func isKeyBlob(blob []byte, kind string) bool {
	for i := 0; ; i++ {
		if len(blob) == 0 {
			return i > 1
		}
		if len(blob) < 4 {
			return false
		}
		n := uint64(binary.BigEndian.Uint32(blob))
		blob = blob[4:]
		if n > uint64(len(blob)) {
			return false
		}
		if i == 0 {
			if string(blob[:n]) != kind {
				return false
			}
			if strings.Contains(kind, "-cert-v") {
				return true
			}
		}
		blob = blob[n:]
	}
}

// keyFields splits at blanks that are not inside double quotes.
func keyFields(s string) []string {
	quoted := false
	return strings.FieldsFunc(s, func(r rune) bool {
		if r == '"' {
			quoted = !quoted
		}
		return !quoted && (r == ' ' || r == '\t')
	})
}

func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "..."
	}
	return s
}

// networkConfig returns the user's network-config as the seed's file must be:
// what stands below the top-level key "network", if there is one (the form of
// /etc/netplan and of cloud.cfg), since the cloud-init of Debian 12 (22.4)
// looks for the version at the top of a seed's file and nowhere else.
func networkConfig(b []byte) ([]byte, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return nil, fmt.Errorf("seed: network-config is not YAML: %w", err)
	}
	if len(doc.Content) == 0 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, errors.New("seed: network-config is not a YAML mapping")
	}
	root := doc.Content[0]
	if in := mapValue(root, "network"); in != nil && len(root.Content) == 2 && in.Kind == yaml.MappingNode {
		root = in
	}
	v := mapValue(root, "version")
	if v == nil || v.Value != "1" && v.Value != "2" {
		return nil, errors.New("seed: network-config has no \"version: 2\" (or 1): cloud-init would not use it")
	}
	if root == doc.Content[0] {
		return b, nil
	}
	return marshal(root)
}
