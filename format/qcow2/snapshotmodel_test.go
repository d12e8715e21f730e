package qcow2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/protocol/memory"
)

// modelSnapshot is a snapshot and what it must read as.
type modelSnapshot struct {
	id, name string
	data     []byte
}

// modelSnapshots is how many snapshots the random tests keep at most.
const modelSnapshots = 5

// snapshotStep creates, applies or deletes a snapshot.
func (m *model) snapshotStep() {
	m.t.Helper()
	ctx := context.Background()
	if m.img.g.external {
		if _, err := m.img.CreateSnapshot(ctx, "", time.Time{}); !errors.Is(err, syscall.ENOTSUP) {
			m.t.Fatalf("a snapshot of an image with an external data file: %v", err)
		}
		return
	}
	i := 0
	k := m.r.IntN(5)
	if len(m.snaps) > 0 {
		i = m.r.IntN(len(m.snaps))
	} else {
		k = 0
	}
	if len(m.snaps) == modelSnapshots && k < 2 {
		k = 4
	}
	switch {
	case k < 2:
		name := []string{"", "one", "ü", strings.Repeat("n", 200)}[m.r.IntN(4)]
		s, err := m.img.CreateSnapshot(ctx, name, time.Time{})
		if errors.Is(err, errRefcountFull) && m.img.g.refcountOrder < 3 {
			return
		}
		if err != nil {
			m.t.Fatalf("operation %d, create a snapshot: %v", m.ops, err)
		}
		m.changes++
		m.snaps = append(m.snaps, modelSnapshot{s.ID, name, bytes.Clone(m.want)})
	case k < 3:
		err := m.img.ApplySnapshot(ctx, i)
		if errors.Is(err, errRefcountFull) && m.img.g.refcountOrder < 3 {
			return
		}
		if errors.Is(err, format.ErrActiveBitmaps) && len(m.img.Bitmaps()) > 0 || m.img.version < 3 && errors.Is(err, block.ErrUnsupported) {
			return
		}
		if err != nil {
			m.t.Fatalf("operation %d, apply snapshot %d: %v", m.ops, i, err)
		}
		m.changes++
		m.want = bytes.Clone(m.snaps[i].data)
	default:
		if err := m.img.DeleteSnapshot(ctx, i); err != nil {
			m.t.Fatalf("operation %d, delete snapshot %d: %v", m.ops, i, err)
		}
		m.changes++
		m.snaps = append(m.snaps[:i:i], m.snaps[i+1:]...)
	}
}

// snapshotContents opens each snapshot of an image's bytes and hands its
// content to f.
func snapshotContents(disk *memory.Disk, opener format.Opener, f func(s format.Snapshot, data []byte) error) error {
	n, err := Driver{}.Open(context.Background(), disk.ReadOnly(), format.OpenOptions{Opener: opener, Secrets: testKeys, Values: testKeyValues(disk)})
	if err != nil {
		return err
	}
	info, err := n.(*Image).ImageInfo()
	if err != nil {
		return err
	}
	for i, s := range info.Snapshots {
		snap, err := n.(*Image).OpenSnapshot(context.Background(), i)
		if err != nil {
			return err
		}
		data := make([]byte, snap.Size())
		if _, err := snap.ReadAt(data, 0); err != nil && len(data) > 0 {
			return fmt.Errorf("snapshot %d: %w", i, err)
		}
		if err := f(s, data); err != nil {
			return fmt.Errorf("snapshot %d: %w", i, err)
		}
	}
	return nil
}

func (m *model) opener() format.Opener {
	if m.c.backing > 0 {
		return modelOpener{m.back}
	}
	return nil
}

// verifySnapshots compares every snapshot, by ours and one by the stock tool.
func (m *model) verifySnapshots(path string) {
	m.t.Helper()
	i := 0
	err := snapshotContents(m.file, m.opener(), func(s format.Snapshot, data []byte) error {
		if i >= len(m.snaps) {
			return fmt.Errorf("there are only %d", len(m.snaps))
		}
		want := m.snaps[i]
		i++
		if s.ID != want.id || s.Name != want.name || !bytes.Equal(data, want.data) {
			return fmt.Errorf("%q (%q) with %d bytes is not %q (%q) with %d bytes, or not its content", s.ID, s.Name, len(data), want.id, want.name, len(want.data))
		}
		return nil
	})
	if err != nil || i != len(m.snaps) {
		m.t.Fatalf("after %d operations: %d of %d snapshots: %v", m.ops, i, len(m.snaps), err)
	}
	if len(m.snaps) == 0 {
		return
	}
	one := m.snaps[m.r.IntN(len(m.snaps))]
	if len(one.data) != len(m.want) {
		return // the stock tool takes the present size
	}
	raw, copied := filepath.Join(m.dir, "snapshot.raw"), filepath.Join(m.dir, "copied.raw")
	if err := os.WriteFile(raw, one.data, 0o600); err != nil {
		m.t.Fatal(err)
	}
	source := []string{"-f", "qcow2", path}
	if m.img.crypt != nil {
		source = stockCryptArgs(path)
	}
	qemutest.Img(m.t, append(append([]string{"convert", "-O", "raw", "-l", "snapshot.id=" + one.id}, source...), copied)...)
	qemutest.RequireSame(m.t, "raw", copied, "raw", raw)
}

// wantSnapshots requires that the snapshots in an image's bytes are those of a
// version of a recorded run.
func requireSnapshots(disk *memory.Disk, opener format.Opener, versions [][]modelSnapshot) error {
	var got []modelSnapshot
	err := snapshotContents(disk, opener, func(s format.Snapshot, data []byte) error {
		got = append(got, modelSnapshot{s.ID, s.Name, data})
		return nil
	})
	if err != nil {
		return err
	}
next:
	for _, v := range versions {
		if len(v) != len(got) {
			continue
		}
		for i := range v {
			if v[i].id != got[i].id || v[i].name != got[i].name || !bytes.Equal(v[i].data, got[i].data) {
				continue next
			}
		}
		return nil
	}
	return fmt.Errorf("%d snapshots that are those of no time since the last flush", len(got))
}
