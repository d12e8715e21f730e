package cli

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/lamina-vm/lamina/internal/api"
)

// TestLetIn: the person's keys and the home's stand apart from those of a document.
func TestLetIn(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	t.Setenv("LAMINA_HOME", filepath.Join(dir, "lamina"))
	mine, named := "ssh-ed25519 AAAAmine me@here", "ssh-ed25519 AAAAnamed"
	if err := os.Mkdir(filepath.Join(dir, ".ssh"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".ssh", "id_ed25519.pub"), []byte(mine+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := api.Fleet{Groups: []api.FleetGroup{{Name: "a"}, {Name: "b", MachineConfig: api.MachineConfig{SSHKeys: []string{named, named}}}, {Name: "c", MachineConfig: api.MachineConfig{NoSeed: true}}}}
	if err := (&app{}).letIn(&f); err != nil {
		t.Fatal(err)
	}
	a, b, c := f.Groups[0], f.Groups[1], f.Groups[2]
	if len(a.SSHKeys) != 0 || len(a.OwnKeys) != 2 || !slices.Contains(a.OwnKeys, mine) {
		t.Errorf("a group without keys: %q, %q", a.SSHKeys, a.OwnKeys)
	}
	if !slices.Equal(b.SSHKeys, []string{named}) || len(b.OwnKeys) != 1 || slices.Contains(b.OwnKeys, mine) {
		t.Errorf("a group with one: %q, %q", b.SSHKeys, b.OwnKeys)
	}
	if len(c.OwnKeys) != 0 {
		t.Errorf("a group without a seed: %q", c.OwnKeys)
	}
}
