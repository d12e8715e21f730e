package store

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

// plainImages stands in for package image: a template is the source's bytes,
// an overlay a line that names its backing file. What is written to an overlay
// stands behind that line: it shows what the backing file does, and then that; or,
// behind a "=", that alone.
type plainImages struct{}

func (plainImages) Import(ctx context.Context, source, format, target, compress string, progress func(done, total int64)) (int64, error) {
	in, err := os.Open(source)
	if err != nil {
		return 0, err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(target, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(out, in)
	if err != nil {
		return 0, err
	}
	if progress != nil {
		progress(n, n)
	}
	return n &^ 511, out.Close()
}

func (plainImages) Overlay(ctx context.Context, path, backing string, size int64) error {
	return os.WriteFile(path, []byte(fmt.Sprintf("overlay %s %d\n", backing, size)), 0o644)
}

// shown is what an image shows.
func shown(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	head, own, _ := strings.Cut(string(b), "\n")
	var backing string
	var size int64
	if n, _ := fmt.Sscanf(head, "overlay %s %d", &backing, &size); n != 2 {
		return string(b), nil
	}
	if all, ok := strings.CutPrefix(own, "="); ok {
		return all, nil
	}
	below, err := shown(filepath.Join(filepath.Dir(path), backing))
	return below + own, err
}

func (plainImages) Describe(ctx context.Context, path string) (Disk, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return Disk{}, err
	}
	d := Disk{Size: 4096}
	if n, _ := fmt.Sscanf(string(b), "overlay %s %d", &d.Backing, &d.Size); n > 0 { // a whole image has no such line
		d.BackingFormat = "qcow2"
	}
	return d, nil
}

func (plainImages) Empty(ctx context.Context, path string) (bool, error) {
	b, err := os.ReadFile(path)
	_, own, _ := strings.Cut(string(b), "\n")
	return own == "", err
}

func (plainImages) Content(ctx context.Context, path, format string, untrusted bool) (int64, error) {
	content, err := shown(path)
	return int64(len(content)), err
}

func (plainImages) Convert(ctx context.Context, source, target string, o ConvertOptions, progress func(done, total int64)) error {
	content, err := shown(source)
	if err != nil {
		return err
	}
	if o.Backing != "" {
		below, err := shown(filepath.Join(filepath.Dir(target), o.Backing))
		if err != nil {
			return err
		}
		own, ok := strings.CutPrefix(content, below)
		if !ok {
			own = "=" + content
		}
		content = fmt.Sprintf("overlay %s %d\n%s", o.Backing, 4096, own)
	}
	return os.WriteFile(target, []byte(content), 0o600)
}

func (plainImages) Copy(ctx context.Context, source, target string) error {
	return copySparse(ctx, source, target)
}

func (p plainImages) Rebase(ctx context.Context, path, backing string, progress func(done, total int64)) error {
	content, err := shown(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(fmt.Sprintf("overlay %s %d\n=%s", backing, 4096, content)), 0o600)
}

func (plainImages) SetBacking(ctx context.Context, path, backing string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(fmt.Sprintf("overlay %s %d\n=%s", backing, 4096, b)), 0o600)
}

// newStore opens the store of h with plain images.
func newStore(t testing.TB, h home.Home) *Store {
	t.Helper()
	s, err := Open(t.Context(), h, Options{Images: plainImages{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// writeImage makes a file that is imported as a template of 4 KiB.
func writeImage(t testing.TB, path, content string) string {
	t.Helper()
	b := make([]byte, 4096)
	copy(b, content)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func importImage(t testing.TB, s *Store, path, name string) api.Template {
	t.Helper()
	tmpl, _, err := s.Import(t.Context(), Import{Path: path, Name: name}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return tmpl
}

// newMachines describes machines with a seed each.
func newMachines(names ...string) []NewMachine {
	var list []NewMachine
	for _, n := range names {
		list = append(list, NewMachine{
			Name: n, User: "root", Config: api.MachineConfig{CPUs: 2, Password: "secret-password", UserData: []byte("secret-data")},
			Spec: vm.Spec{Name: n, Disks: []vm.Disk{{Format: "qcow2"}, {Format: "raw"}}},
			Seed: func() ([]byte, error) { return []byte("seed of " + n), nil },
		})
	}
	return list
}

// requireWhole fails the test unless database and folders agree: what is
// there is whole, and nothing else is there.
func requireWhole(t testing.TB, s *Store) {
	t.Helper()
	ctx, h := t.Context(), s.Home()
	for _, q := range []string{
		`SELECT name FROM machines WHERE state <> 'ready'`, `SELECT digest FROM templates WHERE state <> 'ready'`,
		`SELECT id FROM units WHERE state <> 'ready'`, `SELECT machine FROM disk_changes`, `SELECT path FROM exports`,
		`SELECT digest FROM templates t WHERE ` + unneeded,
		`SELECT name FROM template_names WHERE digest NOT IN (SELECT digest FROM templates)`,
		`SELECT path FROM sources WHERE digest NOT IN (SELECT digest FROM templates)`,
		`SELECT "table" FROM pragma_foreign_key_check`,
		`SELECT integrity_check FROM pragma_integrity_check WHERE integrity_check <> 'ok'`,
	} {
		if left, err := all(ctx, s.db, scanText, q); err != nil || len(left) > 0 {
			t.Errorf("%s: %q, %v", q, left, err)
		}
	}
	want := map[string]bool{}
	layers, err := s.Layers(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, tm := range layers {
		path := s.layerPath(tm.Digest, tm.Parent)
		want[path] = true
		if st, err := os.Stat(path); err != nil || st.Mode() != 0o444 {
			t.Errorf("template %s: %v, %v", tm.Name, st, err)
		}
		if err := s.Intact(ctx, tm.Digest); err != nil {
			t.Error(err)
		}
		if err := s.Verify(ctx, tm.Digest, nil); err != nil {
			t.Error(err)
		}
	}
	units, err := s.Units(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range units {
		want[u.Dir] = true
		if err := s.IntactUnit(ctx, u.ID); err != nil {
			t.Error(err)
		}
		requireFiles(t, u.Dir, home.RAMFile, home.StateFile)
	}
	machines, err := s.Machines(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range machines {
		want[s.Dir(m.ID)] = true
		requireMachine(t, s, m)
	}
	for _, dir := range []string{h.Templates(), h.Layers(), h.Machines(), h.Warm()} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if path := filepath.Join(dir, e.Name()); !want[path] {
				t.Errorf("left behind: %s", path)
			}
		}
	}
}

// requireMachine checks the files of a machine.
func requireMachine(t testing.TB, s *Store, m Machine) {
	t.Helper()
	if m.Definition != nil {
		if _, err := os.Stat(s.Dir(m.ID)); err != nil {
			t.Error(err)
		}
		return
	}
	disk, err := os.ReadFile(m.Spec.Disks[0].Path)
	if err != nil || m.Spec.Disks[0].Path != s.Disk(m) {
		t.Errorf("machine %s: its disk %s, in %s: %v", m.Name, m.Spec.Disks[0].Path, s.Disk(m), err)
	}
	if m.Digest != "" {
		tm, err := s.Template(t.Context(), m.Digest)
		if head := "overlay " + backingName(m.Digest, tm.Parent) + " 4096\n"; err != nil || !strings.HasPrefix(string(disk), head) {
			t.Errorf("machine %s: %.200q, %v; want %q", m.Name, disk, err, head)
		}
	} else if strings.HasPrefix(string(disk), "overlay") {
		t.Errorf("machine %s: %.200q", m.Name, disk)
	}
	files := []string{filepath.Base(s.Disk(m))}
	if len(m.Spec.Disks) > 1 {
		files = append(files, home.SeedFile)
		if got, err := os.ReadFile(m.Spec.Disks[1].Path); err != nil || string(got) != "seed of "+m.Name {
			t.Errorf("machine %s: %s: %q, %v", m.Name, m.Spec.Disks[1].Path, got, err)
		}
	}
	for _, d := range m.Spec.Disks {
		if st, err := os.Stat(d.Path); err != nil || st.Mode() != 0o600 {
			t.Errorf("machine %s: %v, %v", m.Name, st, err)
		}
	}
	requireFiles(t, s.Dir(m.ID), files...)
}

// requireFiles fails the test unless the folder holds these files of the store, and of
// those no others.
func requireFiles(t testing.TB, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		if e.Type() != os.ModeSymlink || !home.IsDisk(e.Name()) { // see leaveLink
			got = append(got, e.Name())
		}
	}
	slices.Sort(names)
	if !slices.Equal(got, names) {
		t.Errorf("%s holds %q, want %q", dir, got, names)
	}
}

func machineNames(t testing.TB, s *Store) []string {
	t.Helper()
	list, err := s.Machines(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out := make([]string, 0, len(list))
	for _, m := range list {
		out = append(out, m.Name)
	}
	return out
}

// later makes a file's times differ from what they were.
func later(t testing.TB, path string) {
	t.Helper()
	now := time.Now().Add(time.Second)
	if err := os.Chtimes(path, now, now); err != nil {
		t.Fatal(err)
	}
}
