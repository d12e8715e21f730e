package seed

import (
	"bytes"
	"testing"

	"gopkg.in/yaml.v3"
)

// TestKeyComments: whatever stands in the comment of a key, a guest can read
// its seed.
func TestKeyComments(t *testing.T) {
	for _, comment := range []string{"a\x7fb", "a\u0085b\u009fc", "jos\xe9@host", "a\x1b[31mb", "\ufffe", "a: \"b\" # {c}", "\u2028", "☃"} {
		c := with(func(c *Config) { c.SSHKeys = []string{testKey + comment} })
		files, err := c.files()
		if err != nil {
			t.Errorf("%q: %v", comment, err)
			continue
		}
		for _, f := range files {
			var doc map[string]any
			if err := yaml.Unmarshal(f.data, &doc); err != nil {
				t.Errorf("%q: %s: %v", comment, f.name, err)
			}
			for _, r := range string(f.data) {
				if r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0xfffe {
					t.Errorf("%q: %s holds %U, which YAML may not", comment, f.name, r)
				}
			}
			if bytes.Contains(f.data, []byte("!!binary")) {
				t.Errorf("%q: %s: %s", comment, f.name, f.data)
			}
		}
	}
}

// TestUserDataWithoutContent: comments are no document.
func TestUserDataWithoutContent(t *testing.T) {
	for _, ud := range []string{"#cloud-config\n", "#cloud-config\n# nothing yet\n", "#cloud-config\n~\n", "#cloud-config\n---\n...\n"} {
		c := with(func(c *Config) { c.UserData = []byte(ud) })
		if _, err := c.files(); err != nil {
			t.Errorf("%q: %v", ud, err)
		}
	}
}
