// Package inspect looks into disk images, without writing and without mounting
// them, and says what they are: partitions and file systems, how they boot, which
// system they hold, and what of a machine's own is left in them.
//
// Nobody vouches for an image. The readers of file systems are ours (extfs, xfs,
// fat), as the libraries at hand would need a process of their own to be safe from:
// each works within bounds that it states, all reading goes through one budget of
// bytes and time, and what goes wrong with a part of an image is said in its Note.
package inspect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/guest/inspect/tree"
	"github.com/lamina-vm/lamina/internal/partition"
	"github.com/lamina-vm/lamina/internal/vm/osinfo"
)

// Timeout is how long a look takes at most, but for a read that the host's disk
// does not answer.
const Timeout = 5 * time.Second

// maxVolumes bounds the partitions that are looked into.
const maxVolumes = 128

// errTimeout is the cause of the end of a look that takes too long.
var errTimeout = errors.New("looking took too long")

// Result is what a look has found.
type Result struct {
	Info   api.ImageInfo
	Traces Traces
}

// Image looks into an image of size bytes, the disk as a guest would see it. What
// is damaged, unknown or too much is said in the Note of the result; the error is
// that of the image's reader, or of the context. It usually reads less than 4 MiB,
// 128 MiB at most, within [Timeout]. OS is osinfo-db's short id by its rules, also
// where this host's database does not know it: see [SpecOS].
func Image(ctx context.Context, r io.ReaderAt, size int64) (api.ImageInfo, error) {
	res, err := Look(ctx, r, size)
	return res.Info, err
}

// File is [Image] of an image file of the host and its backing chain, which must
// be trusted: it may name other files. It takes QEMU's locks as a reader.
func File(ctx context.Context, path, format string) (api.ImageInfo, error) {
	res, err := LookFile(ctx, path, format)
	return res.Info, err
}

// LookFile is [Look] of an image file, as [File].
func LookFile(ctx context.Context, path, format string) (res Result, err error) {
	im, err := image.Open(ctx, path, image.Options{Format: format})
	if err != nil {
		return Result{}, err
	}
	defer func() { err = errors.Join(err, im.Close()) }()
	res, err = Look(ctx, im.Node(), im.Node().Size())
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return res, err
}

// Look is [Image], with what the image has of a machine's own.
func Look(ctx context.Context, r io.ReaderAt, size int64) (Result, error) {
	bounded, cancel := context.WithTimeoutCause(ctx, Timeout, errTimeout)
	defer cancel()
	l := newLook(bounded, r, size)
	l.run()
	if ctx.Err() != nil {
		return Result{}, context.Cause(ctx)
	}
	if l.d.last != nil {
		return Result{}, l.d.last
	}
	if bounded.Err() != nil {
		l.note("%v: ended after %v", errTimeout, Timeout)
	}
	if l.d.left < 0 {
		l.note("%v: ended after %d MiB", errBudget, maxReading>>20)
	}
	l.info.Note = strings.Join(l.notes, "; ")
	return Result{l.info, l.traces}, nil
}

// look is one look into an image.
type look struct {
	d      *disk
	table  *partition.Table // nil without
	esp    map[int]bool     // by the index of a volume: it is an EFI system partition
	info   api.ImageInfo
	traces Traces
	notes  []string
}

func newLook(ctx context.Context, r io.ReaderAt, size int64) *look {
	return &look{d: newDisk(ctx, r, size), esp: map[int]bool{}}
}

// maxNotes bounds what there is to say of one image.
const maxNotes = 12

func (l *look) note(format string, a ...any) {
	if text := clip(fmt.Sprintf(format, a...)); len(l.notes) < maxNotes && !slices.Contains(l.notes, text) {
		l.notes = append(l.notes, text)
	}
}

// clip bounds a note; errors may quote the image.
func clip(s string) string {
	var b strings.Builder
	for part := range strings.SplitSeq(s, " ") {
		if b.Len()+len(part) > 400 {
			return b.String() + " ..."
		}
		b.WriteString(clean([]byte(part)))
		b.WriteByte(' ')
	}
	return strings.TrimSpace(b.String())
}

func (l *look) part(v api.ImagePart) part { return part{l.d, v.Offset, v.Size} }

// volumeName is what notes call a partition.
func volumeName(v api.ImagePart) string {
	if v.Number == 0 {
		return "the disk"
	}
	return fmt.Sprintf("partition %d", v.Number)
}

func (l *look) run() {
	l.volumes()
	loaderArch := l.bootMode()
	root, rel := l.findSystem()
	if root == nil {
		l.info.Arch = loaderArch
		l.traces.Why = "no system that can be read was found"
		l.disc()
		return
	}
	if err := l.system(*root, rel); err != nil {
		l.note("the system cannot be read whole: %v", err)
		if l.traces.Read {
			l.traces.Read, l.traces.Why = false, err.Error()
		}
	}
	if l.info.Arch == "" {
		l.info.Arch = loaderArch
	}
}

// volumes reads the partition table and what each partition holds.
func (l *look) volumes() {
	l.info.Table = "none"
	t, err := partition.Read(l.d, l.d.size)
	if err != nil {
		if !errors.Is(err, partition.ErrNone) {
			l.note("the partition table cannot be read: %v", err)
		}
		whole := part{l.d, 0, l.d.size}
		c := identify(whole)
		l.info.Volumes = []api.ImagePart{{Size: l.d.size, Type: c.kind, Label: c.label}}
		return
	}
	l.table, l.info.Table = t, string(t.Scheme)
	if t.Backup {
		l.note("the first copy of the partition table is damaged")
	}
	for _, p := range t.Partitions {
		if len(l.info.Volumes) == maxVolumes {
			l.note("there are %d partitions: only the first %d were looked at", len(t.Partitions), maxVolumes)
			break
		}
		v := api.ImagePart{Number: p.Number, Offset: p.Start, Size: p.Length}
		if p.Start >= l.d.size || p.Length > l.d.size-p.Start {
			l.note("partition %d reaches past the end of the disk", p.Number)
			p.Length = max(0, l.d.size-p.Start)
		}
		if v.Type = volumeType(p); v.Type != "extended" && p.Length > 0 {
			if c := identify(part{l.d, p.Start, p.Length}); c.kind != "" {
				v.Type, v.Label = c.kind, c.label
			}
		}
		l.esp[len(l.info.Volumes)] = p.Type == typeESP || p.Type == typeESPMBR
		l.info.Volumes = append(l.info.Volumes, v)
	}
}

// system describes the system whose files t are.
func (l *look) system(t tree.Tree, rel release) error {
	l.info.Name = rel.name()
	db := osinfo.Open(osinfo.Dirs()...)
	known := func(id string) bool {
		_, err := db.Lookup(id)
		return err == nil
	}
	l.info.OS = rel.id(known)
	var failed error
	arch, err := architecture(t)
	failed = errors.Join(failed, err)
	l.info.Arch = arch
	l.info.CloudInit, err = anyFile(t, "usr/bin/cloud-init", "usr/local/bin/cloud-init", "usr/sbin/cloud-init")
	failed = errors.Join(failed, err)
	l.info.Agent, err = anyFile(t, "usr/sbin/qemu-ga", "usr/bin/qemu-ga", "usr/libexec/qemu-ga", "usr/local/bin/qemu-ga")
	failed = errors.Join(failed, err)
	if l.info.CloudInit {
		if off, err := t.IsFile("etc/cloud/cloud-init.disabled"); err == nil && off {
			l.note("cloud-init is installed and switched off (/etc/cloud/cloud-init.disabled)")
		}
	}
	l.traces, err = readTraces(t)
	failed = errors.Join(failed, err)
	if shared := l.traces.Shared(); len(shared) > 0 {
		l.note("it has the identity of the machine that it was: %s: machines made of it share what they do not renew", strings.Join(shared, " and "))
	}
	return failed
}

// disc recognises installation media.
func (l *look) disc() {
	if !slices.ContainsFunc(l.info.Volumes, func(v api.ImagePart) bool { return v.Type == "iso9660" && v.Offset == 0 }) {
		return
	}
	m, _, err := osinfo.Open(osinfo.Dirs()...).Detect(l.d, l.d.size)
	if err != nil {
		return // an unknown disc is just that
	}
	l.info.OS, l.info.Name = m.OS.ShortID, m.OS.Name
	if m.Media.Arch != "" && m.Media.Arch != "all" {
		l.info.Arch = m.Media.Arch
	}
	l.note("it is an installation or live disc")
}
