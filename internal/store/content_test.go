package store

import (
	"path/filepath"
	"testing"

	"github.com/lamina-vm/lamina/internal/qemutest"
)

// TestSizes: what an operation is said to write at most is not less than what it writes,
// and not a disk of its full size.
func TestSizes(t *testing.T) {
	dir := t.TempDir()
	s := realStore(t, filepath.Join(dir, "h"))
	source := stockImage(t, filepath.Join(dir, "i2"), "qcow2")
	importing, err := s.SizeOfImport(t.Context(), Import{Path: source})
	if err != nil {
		t.Fatal(err)
	}
	tm, m := oneMachine(t, s, dir)
	qemutest.IO(t, "qcow2", s.Disk(m), "write -q -P 0x55 3M 2M", "write -q -z 8M 1M")
	if took := allocated(s.layerPath(tm.Digest, "")); took > importing {
		t.Errorf("an import of at most %d bytes takes %d", importing, took)
	}
	if again, err := s.SizeOfImport(t.Context(), Import{Path: filepath.Join(dir, "i")}); err != nil || again != 0 {
		t.Errorf("what is known takes %d, %v", again, err)
	}
	below, err := s.SizeOfCopy(t.Context(), m.Digest)
	if err != nil || below != importing {
		t.Errorf("the template: %d, as an import %d, %v", below, importing, err)
	}
	own, whole, err := s.DiskSizes(t.Context(), m)
	if err != nil || own != allocated(s.Disk(m)) || whole <= below || whole > below+4<<20 {
		t.Errorf("own %d, whole %d, below %d, %v", own, whole, below, err)
	}
	m, err = s.Flatten(t.Context(), m.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	if took := allocated(s.Disk(m)); took > whole {
		t.Errorf("flattened, at most %d bytes take %d", whole, took)
	}
	own, whole, err = s.DiskSizes(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	if m, err = s.Rebase(t.Context(), m.ID, "one", nil); err != nil {
		t.Fatal(err)
	}
	if took := allocated(s.Disk(m)); took > own+whole {
		t.Errorf("rebased, at most %d bytes take %d", own+whole, took)
	}
	if n, err := s.SizeOfCopy(t.Context(), ""); n != 0 || err != nil {
		t.Errorf("of nothing: %d, %v", n, err)
	}
}
