package store

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/lamina-vm/lamina/internal/home"
)

// A folder that others can read is closed to them, but not the one that a
// person named.
func TestPrivateFolders(t *testing.T) {
	for _, own := range []bool{true, false} {
		dir := t.TempDir()
		h := home.At(dir)
		if own {
			h = home.Home{Data: filepath.Join(dir, "data"), Cache: filepath.Join(dir, "c"), Run: filepath.Join(dir, "r")}
		}
		if err := os.MkdirAll(h.Machines(), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, d := range []string{h.Data, h.Machines()} {
			if err := os.Chmod(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		newStore(t, h)
		for d, want := range map[string]os.FileMode{h.Data: map[bool]os.FileMode{true: 0o700, false: 0o755}[own], h.Machines(): 0o700, h.Templates(): 0o700} {
			if st, err := os.Stat(d); err != nil || st.Mode().Perm() != want {
				t.Errorf("own folder %v: %s: %v, want %v (%v)", own, d, st.Mode(), want, err)
			}
		}
	}
}
