package qemu

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/lamina-vm/lamina/internal/vm/vmtest"
)

// TestHundredCycles: machines that come and go leave nothing.
func TestHundredCycles(t *testing.T) {
	d, root := New(Options{}), t.TempDir()
	spec := vmtest.Spec(t)
	spec.Disks[0].ReadOnly = true // it is that of all
	counts := map[string]func() int{"files": func() int { return vmtest.Files(t, root) }}
	vmtest.NoLeaks(t, counts, func(worker int) {
		m, err := d.Start(t.Context(), spec, filepath.Join(root, fmt.Sprint(worker)))
		if err != nil {
			t.Error(err)
			return
		}
		if err := m.Kill(t.Context()); err != nil {
			t.Error(err)
		}
		if err := m.Release(); err != nil {
			t.Error(err)
		}
	})
}
