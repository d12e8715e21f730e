package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/internal/vm"
)

// bare describes machines without seeds.
func bare(names ...string) []NewMachine {
	var list []NewMachine
	for _, n := range names {
		list = append(list, NewMachine{Name: n, Spec: vm.Spec{Name: n, Disks: []vm.Disk{{Format: "qcow2"}}}})
	}
	return list
}

// oneMachine makes a template of stock content and a machine that has written
// 0x33 to its second MiB.
func oneMachine(t *testing.T, s *Store, dir string) (api.Template, Machine) {
	t.Helper()
	tm := importImage(t, s, stockImage(t, filepath.Join(dir, "i"), "qcow2"), "one")
	made, err := s.CreateMachines(t.Context(), tm, bare("m"), nil)
	if err != nil {
		t.Fatal(err)
	}
	qemutest.IO(t, "qcow2", s.Disk(made[0]), "write -q -P 0x33 1M 1M")
	return tm, made[0]
}

// requireContent checks what a disk shows: the template's, and a machine's 0x33.
func requireContent(t *testing.T, path string) {
	t.Helper()
	qemutest.RequireClean(t, path)
	qemutest.IO(t, "qcow2", path, "read -q -P 0x11 0 1M", "read -q -P 0x33 1M 1M", "read -q -P 0 2M 1M", "read -q -P 0x22 40M 300k")
}

func machine(t *testing.T, s *Store, name string) Machine {
	t.Helper()
	m, err := s.Machine(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func fileDigest(t *testing.T, path string) string {
	t.Helper()
	d, err := hashFile(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestTemplateFromMachine(t *testing.T) {
	dir := t.TempDir()
	s := realStore(t, filepath.Join(dir, "h"))
	tm, m := oneMachine(t, s, dir)
	before := fileDigest(t, s.Disk(m))
	digests := map[string]bool{}
	for _, flat := range []bool{false, true} {
		for _, compress := range []string{"", "zlib", "zstd"} {
			name := fmt.Sprintf("t-%v-%sx", flat, compress)
			var ended int64
			made, err := s.TemplateFromMachine(t.Context(), FromMachine{Machine: m.ID, Name: name, Flatten: flat, Compress: compress},
				func(done, total int64) { ended = total - done })
			if err != nil || made.Name != name || made.Kind != api.LayerTemplate || made.VirtualSize != 64<<20 || ended != 0 {
				t.Fatalf("%s: %+v, %v, %d", name, made, err, ended)
			}
			if want := map[bool]string{false: tm.Digest, true: ""}[flat]; made.Parent != want || digests[made.Digest] {
				t.Errorf("%s lies over %q, is %s", name, made.Parent, made.Digest)
			}
			digests[made.Digest] = true
			path := s.layerPath(made.Digest, made.Parent)
			if fileDigest(t, path) != made.Digest {
				t.Errorf("%s is not named by its digest", name)
			}
			requireContent(t, path)
			// The same again is the same template.
			again, err := s.TemplateFromMachine(t.Context(), FromMachine{Machine: m.ID, Flatten: flat, Compress: compress}, nil)
			if err != nil || again.Digest != made.Digest || len(again.Names) != 2 {
				t.Errorf("%s again: %+v, %v", name, again, err)
			}
			clones, err := s.CreateMachines(t.Context(), made, bare("c-"+name), nil)
			if err != nil {
				t.Fatal(err)
			}
			requireContent(t, s.Disk(clones[0]))
			if err := s.Verify(t.Context(), made.Digest, nil); err != nil {
				t.Error(err)
			}
		}
	}
	if fileDigest(t, s.Disk(m)) != before {
		t.Error("the machine has changed")
	}
	// An image over the machine's own, made elsewhere.
	scratch, disk, err := s.Scratch(t.Context(), m.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Scratch(t.Context(), m.ID); !errors.Is(err, ErrInUse) {
		t.Errorf("a second copy: %v", err)
	}
	qemutest.IO(t, "qcow2", disk, "write -q -P 0x44 3M 64k")
	for _, flat := range []bool{false, true} {
		made, err := s.TemplateFromMachine(t.Context(), FromMachine{Machine: m.ID, Flatten: flat, Disk: disk, User: "u", Info: &api.ImageInfo{OS: "x"}}, nil)
		if err != nil || made.User != "u" || made.Info.OS != "x" || made.Parent == "" != flat {
			t.Fatalf("%+v, %v", made, err)
		}
		path := s.layerPath(made.Digest, made.Parent)
		requireContent(t, path)
		qemutest.IO(t, "qcow2", path, "read -q -P 0x44 3M 64k")
	}
	if err := s.RemoveScratch(t.Context(), m.ID); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(scratch); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
	if fileDigest(t, s.Disk(m)) != before {
		t.Error("the machine has changed")
	}
	for _, bad := range []FromMachine{{Machine: "none"}, {Machine: m.ID, Name: "a/b"}, {Machine: m.ID, Compress: "lz4"}, {Machine: m.ID, Name: "one"}} {
		if _, err := s.TemplateFromMachine(t.Context(), bad, nil); err == nil {
			t.Errorf("%+v succeeded", bad)
		}
	}
}

func TestCommitAndClone(t *testing.T) {
	dir := t.TempDir()
	s := realStore(t, filepath.Join(dir, "h"))
	tm, m := oneMachine(t, s, dir)
	committed, after, err := s.CommitMachine(t.Context(), m.ID, "two", false)
	if err != nil {
		t.Fatal(err)
	}
	if committed.Name != "two" || committed.Parent != tm.Digest || after.Digest != committed.Digest || after.Template != "two" ||
		after.Spec.Disks[0].Path != s.Disk(after) || s.Disk(after) == s.Disk(m) || !slices.Equal(committed.Machines, []string{"m"}) {
		t.Fatalf("%+v, %+v", committed, after)
	}
	requireContent(t, s.Disk(after))
	if _, err := os.Stat(s.Disk(m)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old image: %v", err)
	}
	qemutest.IO(t, "qcow2", s.Disk(after), "write -q -P 0x55 50M 64k")
	now, clones, err := s.CloneMachine(t.Context(), m.ID, bare("c-1", "c-2"), nil)
	if err != nil || len(clones) != 2 || clones[0].Digest != now.Digest || clones[0].Template != "two" {
		t.Fatalf("%+v, %+v, %v", now, clones, err)
	}
	frozen, err := s.Template(t.Context(), now.Digest)
	if err != nil || frozen.Kind != api.LayerFrozen || frozen.Parent != committed.Digest || !slices.Equal(frozen.Machines, []string{"c-1", "c-2", "m"}) {
		t.Errorf("%+v, %v", frozen, err)
	}
	for _, c := range append(clones, now) {
		requireContent(t, s.Disk(c))
		qemutest.IO(t, "qcow2", s.Disk(c), "read -q -P 0x55 50M 64k", "write -q -P 0x66 50M 64k")
	}
	if list, err := s.Templates(t.Context()); err != nil || len(list) != 2 {
		t.Errorf("%d templates, %v", len(list), err)
	}
	if err := s.RemoveTemplate(t.Context(), "one"); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "c-1, c-2, m") {
		t.Errorf("one: %v", err)
	}
	// The frozen layer goes with its last user, the templates do not.
	path := s.home.LayerDisk(frozen.Digest)
	for _, name := range []string{"c-1", "m", "c-2"} {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("before %s: %v", name, err)
		}
		if err := s.RemoveMachine(t.Context(), machine(t, s, name).ID); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the frozen layer: %v", err)
	}
	if err := s.RemoveTemplate(t.Context(), "one"); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "over it are two") {
		t.Errorf("one: %v", err)
	}
	for _, name := range []string{"two", "one"} {
		if err := s.RemoveTemplate(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
}

func TestFlattenAndRebase(t *testing.T) {
	dir := t.TempDir()
	s := realStore(t, filepath.Join(dir, "h"))
	tm, m := oneMachine(t, s, dir)
	other := importImage(t, s, func() string {
		path := filepath.Join(dir, "other")
		qemutest.Img(t, "create", "-q", "-f", "qcow2", path, "80M")
		qemutest.IO(t, "qcow2", path, "write -q -P 0x77 0 70M")
		return path
	}(), "other")
	now, err := s.Rebase(t.Context(), m.ID, "other", nil)
	if err != nil || now.Digest != other.Digest || now.Template != "other" {
		t.Fatalf("%+v, %v", now, err)
	}
	requireContent(t, s.Disk(now))
	if now, err = s.Rebase(t.Context(), m.ID, "one", nil); err != nil || now.Digest != tm.Digest {
		t.Fatalf("%+v, %v", now, err)
	}
	requireContent(t, s.Disk(now))
	if now, _, err = s.CloneMachine(t.Context(), m.ID, nil, nil); err != nil {
		t.Fatal(err)
	}
	frozen := s.home.LayerDisk(now.Digest)
	qemutest.Img(t, "snapshot", "-c", "kept", s.Disk(now))
	if _, err := s.Flatten(t.Context(), m.ID, nil); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "1 internal snapshots") {
		t.Errorf("a disk with a snapshot: %v", err)
	}
	qemutest.Img(t, "snapshot", "-d", "kept", s.Disk(now))
	if now, err = s.Flatten(t.Context(), m.ID, nil); err != nil || now.Digest != "" {
		t.Fatalf("%+v, %v", now, err)
	}
	requireContent(t, s.Disk(now))
	if d, err := s.images.Describe(t.Context(), s.Disk(now)); err != nil || d.Backing != "" || d.Size != 64<<20 {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := os.Stat(frozen); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the frozen layer: %v", err)
	}
	if err := errors.Join(s.RemoveTemplate(t.Context(), "one"), s.RemoveTemplate(t.Context(), "other")); err != nil {
		t.Error(err)
	}
	// A flat disk can be cloned, and put over a template again.
	now, clones, err := s.CloneMachine(t.Context(), m.ID, bare("c"), nil)
	if err != nil {
		t.Fatal(err)
	}
	requireContent(t, s.Disk(now))
	requireContent(t, s.Disk(clones[0]))
	tm = importImage(t, s, filepath.Join(dir, "i"), "again")
	if now, err = s.Rebase(t.Context(), m.ID, "again", nil); err != nil || now.Digest != tm.Digest {
		t.Fatalf("%+v, %v", now, err)
	}
	requireContent(t, s.Disk(now))
}

func TestDepth(t *testing.T) {
	dir := t.TempDir()
	s := realStore(t, filepath.Join(dir, "h"))
	_, m := oneMachine(t, s, dir)
	for depth := 1; depth < api.MaxDepth; depth++ {
		if _, _, err := s.CommitMachine(t.Context(), m.ID, fmt.Sprintf("t-%d", depth), false); err != nil {
			t.Fatalf("depth %d: %v", depth, err)
		}
	}
	for what, err := range map[string]error{
		"commit": func() error { _, _, err := s.CommitMachine(t.Context(), m.ID, "", false); return err }(),
		"clone":  func() error { _, _, err := s.CloneMachine(t.Context(), m.ID, bare("c"), nil); return err }(),
		"freeze": func() error { _, err := s.BeginFreeze(t.Context(), m.ID, nil, nil); return err }(),
		"template": func() error {
			_, err := s.TemplateFromMachine(t.Context(), FromMachine{Machine: m.ID}, nil)
			return err
		}(),
	} {
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "flatten") {
			t.Errorf("%s: %v", what, err)
		}
	}
	list, err := s.Lineage(t.Context())
	if err != nil || len(list) != api.MaxDepth+1 {
		t.Fatalf("%d nodes, %v", len(list), err)
	}
	last := list[len(list)-1]
	if last.Depth != api.MaxDepth || !last.Machine || !strings.Contains(last.Advice, "lamina flatten m") || list[1].Advice != "" || list[10].Advice == "" {
		t.Errorf("%+v", last)
	}
	requireContent(t, s.Disk(machine(t, s, "m")))
	if _, err := s.Flatten(t.Context(), m.ID, nil); err != nil {
		t.Error(err)
	}
	requireContent(t, s.Disk(machine(t, s, "m")))
}

func TestExport(t *testing.T) {
	dir := t.TempDir()
	s := realStore(t, filepath.Join(dir, "h"))
	_, m := oneMachine(t, s, dir)
	if _, _, err := s.CommitMachine(t.Context(), m.ID, "two", false); err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, "out", name) }
	if err := os.Mkdir(at(""), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, r := range []api.ExportRequest{{}, {Format: "qcow2", Compress: "zlib"}, {Compress: "zstd"}, {Format: "raw"}} {
		r.Path = at("x" + r.Format + r.Compress)
		if err := s.Export(t.Context(), "two", r, nil); err != nil {
			t.Fatal(err)
		}
		format := map[bool]string{true: "raw", false: "qcow2"}[r.Format == "raw"]
		qemutest.RequireSame(t, format, r.Path, "qcow2", s.Disk(machine(t, s, "m")))
		if err := s.Export(t.Context(), "two", r, nil); !errors.Is(err, ErrExists) {
			t.Errorf("%s: a second time: %v", r.Path, err)
		}
		r.Force = true
		if err := s.Export(t.Context(), "two", r, nil); err != nil {
			t.Error(err)
		}
	}
	if err := os.Symlink(at("xraw"), at("link")); err != nil {
		t.Fatal(err)
	}
	for _, r := range []api.ExportRequest{{Path: "relative"}, {Path: at("no/folder")}, {Path: at("link"), Force: true}, {Path: at("y"), Format: "vmdk"},
		{Path: at("y"), Format: "raw", Compress: "zstd"}, {Path: at("y"), Compress: "lz4"}, {Path: s.home.TemplateDisk("x")},
		{Path: filepath.Join(s.Dir(m.ID), "x")}, {Path: at(""), Force: true}} {
		if err := s.Export(t.Context(), "two", r, nil); err == nil {
			t.Errorf("%+v succeeded", r)
		}
	}
	entries, err := os.ReadDir(at(""))
	if err != nil || len(entries) != 5 {
		t.Errorf("%v, %v", entries, err)
	}
	if rows, err := all(t.Context(), s.db, scanText, `SELECT path FROM exports`); err != nil || len(rows) > 0 {
		t.Errorf("%q, %v", rows, err)
	}
}
