package virtinstall

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The password is the first line of its file, however lines end there; beside
// user-data there is none, which is said instead.
func TestCloudInitPassword(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	user := file("u.yaml", "#cloud-config\n{}\n")
	for _, c := range []struct {
		text, password string
		bad, warned    bool
	}{
		{text: "root-password-file=" + file("unix", "secret\n"), password: "secret"},
		{text: "root-password-file=" + file("dos", "secret\r\nmore\r\n"), password: "secret"},
		{text: "root-password-file=" + file("bell", "sec\x07ret\n"), bad: true},
		{text: "user-data=" + user},
		{text: "user-data=" + user + ",root-password-generate=yes", warned: true},
		{text: "user-data=" + user + ",root-password-file=" + filepath.Join(dir, "dos"), warned: true},
	} {
		var out, errs bytes.Buffer
		g := newGuest(&arguments{values: map[string][]string{"cloud-init": {c.text}}}, nil, Streams{Out: &out, Err: &errs})
		ci, err := readCloudInit(g)
		if (err != nil) != c.bad {
			t.Errorf("%s: %v", c.text, err)
		}
		if err != nil {
			continue
		}
		ci.tell(g)
		if ci.rootPassword != c.password || out.Len() > 0 || strings.Contains(errs.String(), "user-data= is taken") != c.warned {
			t.Errorf("%s: password %q, said %q and %q", c.text, ci.rootPassword, out.String(), errs.String())
		}
	}
}
