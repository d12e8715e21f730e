package seed

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Build returns the seed of c: the same bytes for the same Config. Its errors
// name the field and the value that a guest could not use.
func Build(c Config) ([]byte, error) {
	files, err := c.files()
	if err != nil {
		return nil, err
	}
	return buildISO(volumeID, files)
}

// files are what the seed holds, in the order of the image's folder.
func (c Config) files() ([]file, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	c.SSHKeys = trimmed(c.SSHKeys)
	meta, err := c.metaData()
	if err != nil {
		return nil, err
	}
	user, err := c.userData()
	if err != nil {
		return nil, err
	}
	if len(c.MetaData) > 0 {
		meta = c.MetaData
	}
	files := []file{{"meta-data", meta}}
	switch {
	case len(c.NetworkConfig) > 0:
		nc, err := networkConfig(c.NetworkConfig)
		if err != nil {
			return nil, err
		}
		files = append(files, file{"network-config", nc})
	case len(c.MACs) > 1:
		files = append(files, file{"network-config", dhcpOnAll(c.MACs)})
	}
	return append(files, file{"user-data", user}), nil
}

// trimmed returns keys as the seed has them. A character that YAML may not hold
// as it is (5.1; JSON may), which can only be in a comment, would cost the guest
// all of its meta-data.
func trimmed(lines []string) []string {
	out := make([]string, len(lines))
	for i, l := range lines {
		out[i] = strings.Map(func(r rune) rune {
			if r == utf8.RuneError || r == 0xfffe || r == 0xffff || r != '\t' && unicode.IsControl(r) {
				return '?'
			}
			return r
		}, strings.TrimSpace(l))
	}
	return out
}

// metaData is JSON, which is YAML too: CirrOS reads nothing else. The keys are
// one string, a line each, since CirrOS loses keys of a mapping or a list
// (cirros issue 141, and no line end between two); cloud-init takes all
// three forms.
func (c Config) metaData() ([]byte, error) {
	md := struct {
		InstanceID string `json:"instance-id"`
		Hostname   string `json:"local-hostname,omitempty"`
		PublicKeys string `json:"public-keys,omitempty"`
	}{InstanceID: c.InstanceID, Hostname: c.Hostname}
	if len(c.SSHKeys) > 0 {
		md.PublicKeys = strings.Join(c.SSHKeys, "\n") + "\n"
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(md); err != nil {
		return nil, fmt.Errorf("seed: %w", err)
	}
	return b.Bytes(), nil
}

// dhcpOnAll matches the cards by address, not by a pattern of names such as
// "en*": only netplan knows patterns; cloud-init's other renderers (Fedora,
// AlmaLinux, Alpine) would configure a card of the entry's name instead.
func dhcpOnAll(macs []string) []byte {
	var b bytes.Buffer
	b.WriteString("version: 2\nethernets:\n")
	for i, m := range macs {
		hw, err := net.ParseMAC(m)
		if err != nil {
			continue // Validate has seen it
		}
		fmt.Fprintf(&b, "  card%d:\n    match:\n      macaddress: %q\n    dhcp4: true\n", i, hw)
		if i > 0 {
			// Only the first must be up for the boot to go on.
			b.WriteString("    optional: true\n")
		}
	}
	return b.Bytes()
}

// writeFile puts b at path by way of a temporary file in the same folder. The
// mode is 0600, as the seed may hold a password's hash.
func writeFile(path string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("seed %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = f.Close() // a second time does no harm
			_ = os.Remove(f.Name())
			err = fmt.Errorf("seed %s: %w", path, err)
		}
	}()
	if err := writeSparse(f, b); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// writeSparse leaves blocks of zeros out: two thirds of a seed.
func writeSparse(f *os.File, b []byte) error {
	const block = 4096
	if err := f.Truncate(int64(len(b))); err != nil {
		return err
	}
	zero := make([]byte, block)
	for off := 0; off < len(b); off += block {
		chunk := b[off:min(off+block, len(b))]
		if bytes.Equal(chunk, zero[:len(chunk)]) {
			continue
		}
		if _, err := f.WriteAt(chunk, int64(off)); err != nil {
			return err
		}
	}
	return nil
}
