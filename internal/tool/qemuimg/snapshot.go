package qemuimg

import (
	"context"
	"errors"
	"strings"
	"syscall"

	"github.com/lamina-vm/lamina/block"
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/getopt"
)

const snapshotSyntax = "[--object objectdef] [--image-opts | -f fmt] [-U] [-q] [-l | -a snapshot | -c snapshot | -d snapshot] filename"

// snapshotArgs is the command line of snapshot.
type snapshotArgs struct {
	src    source
	opts   image.SnapshotOptions
	action rune // of the option, 0 if there was none
	name   string
}

func (t *tool) snapshot(args []string) int {
	a := snapshotArgs{opts: image.SnapshotOptions{Secrets: &t.secrets}}
	c, status, done := t.parse(args, ":f:la:c:d:hqU", []getopt.Long{
		longHelp, longObject, longImageOpts, longForce, longFormat, longQuiet, {Name: "list", Val: 'l'},
		{Name: "apply", Arg: getopt.RequiredArgument, Val: 'a'}, {Name: "create", Arg: getopt.RequiredArgument, Val: 'c'},
		{Name: "delete", Arg: getopt.RequiredArgument, Val: 'd'},
	}, func(o getopt.Option) bool {
		if a.action != 0 {
			t.exit("Cannot mix '-l', '-a', '-c', '-d'")
			return false
		}
		a.action, a.name = o.Val, o.Arg
		return true
	})
	if done {
		return status
	}
	var ok bool
	if a.src, ok = t.oneImage(c); !ok || !t.resolve(&a.src) {
		return exitFailed
	}
	a.opts.Format, a.opts.NoLock, a.opts.Untrusted = a.src.format, c.noLock, c.untrusted
	return t.runSnapshot(a)
}

func (t *tool) runSnapshot(a snapshotArgs) int {
	ctx := t.ctx
	if a.action == 'l' {
		return t.listSnapshots(ctx, a)
	}
	if a.opts.NoLock {
		t.errorf("Could not open '%s': force-share=on can only be used with read-only images", t.shown(a.src.name))
		return exitFailed
	}
	a.opts.Opened = func(probedRaw bool) {
		if probedRaw {
			t.warnProbed(a.src.name)
		}
	}
	var err error
	switch a.action {
	case 'c':
		_, err = image.CreateSnapshot(ctx, a.src.name, a.name[:min(len(a.name), format.MaxSnapshotName)], a.opts)
	case 'a':
		err = image.ApplySnapshot(ctx, a.src.name, image.SnapshotRef{IDOrName: a.name}, a.opts)
	case 'd':
		// By name alone: an ID does not find a snapshot to delete.
		err = image.DeleteSnapshot(ctx, a.src.name, image.SnapshotRef{Name: &a.name}, a.opts)
	default:
		err = image.OpenForSnapshots(ctx, a.src.name, a.opts)
	}
	if err != nil {
		return t.failSnapshot(a, err)
	}
	return exitOK
}

func (t *tool) listSnapshots(ctx context.Context, a snapshotArgs) int {
	list, err := image.ListSnapshots(ctx, a.src.name, a.opts)
	if err != nil {
		return t.failOpen(err)
	}
	if len(list) > 0 {
		t.printSnapshots(list)
	}
	return exitOK
}

// failSnapshot reports in the stock tool's words what could not be done.
func (t *tool) failSnapshot(a snapshotArgs, err error) int {
	var snap *image.SnapshotError
	if !errors.As(err, &snap) {
		return t.failOpen(err)
	}
	none := errors.Is(snap.Err, image.ErrSnapshotFormat)
	missing := errors.Is(snap.Err, image.ErrNoSnapshot)
	switch {
	case a.action == 'c':
		n := snapshotErrno(snap.Err)
		t.errorf("Could not create snapshot '%s': %d (%s)", a.name, -int(n), errnoText(n))
	case a.action == 'a' && none:
		a.opts.Opened(a.opts.Format == "" && snap.Format == "raw") // stock opens it a second time
		t.errorf("Could not apply snapshot '%s': Block driver does not support snapshots", a.name)
	case a.action == 'a' && errors.Is(snap.Err, format.ErrActiveBitmaps):
		t.errorf("Could not apply snapshot '%s': Device has active dirty bitmaps", a.name)
	case a.action == 'a':
		if s := ownWords(snap.Err); s != "" {
			t.errorf("%s", s)
		}
		n := snapshotErrno(snap.Err)
		if missing {
			n = syscall.ENOENT
		}
		t.errorf("Could not apply snapshot '%s': Failed to load snapshot: %s", a.name, errnoText(n))
	case missing, none:
		t.errorf("Could not delete snapshot '%s': snapshot not found", a.name)
	default:
		text := ownWords(snap.Err)
		if text == "" {
			text = "Failed to free the cluster and L1 table: " + reasonText(snap.Err)
		}
		t.errorf("Could not delete snapshot '%s': %s", a.name, text)
	}
	return exitFailed
}

// snapshotErrno is the system's number that the stock tool has for an error.
func snapshotErrno(err error) syscall.Errno {
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno):
		return errno
	case errors.Is(err, block.ErrUnsupported):
		return syscall.ENOTSUP
	case errors.Is(err, block.ErrCorrupt):
		return syscall.EIO
	}
	return syscall.EINVAL
}

// ownWords is what the stock tool says of an error beside the system's words,
// "" if nothing.
func ownWords(err error) string {
	text := err.Error()
	text = text[strings.LastIndex(text, ": ")+1:]
	text = strings.TrimPrefix(text, " ")
	var errno syscall.Errno
	if strings.HasPrefix(text, "Snapshot L1 table ") || errors.Is(err, block.ErrUnsupported) && !errors.As(err, &errno) {
		return text
	}
	return ""
}
