package virtctl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/vm/domxml"
	"github.com/lamina-vm/lamina/internal/vm/libvirt"
)

// errGone: a domain is not there any more.
var errGone = errors.New("the domain is gone")

// maxChain is how many images may lie over each other; libvirt itself takes 200.
const maxChain = 200

// filesOf lists the files that a domain needs: those of its disks, now and
// at its next start, with all that lie below them. It is an error where that
// cannot be found out; a file that is not there has nothing below it.
func (v *Machines) filesOf(ctx context.Context, d *libvirt.Domain) ([]string, error) {
	var files []string
	done := map[string]bool{} // whose chain is known
	for _, inactive := range []bool{false, true} {
		root, err := document(ctx, d, inactive)
		if errors.Is(err, libvirt.ErrNotFound) {
			return nil, errGone
		}
		if err != nil {
			return nil, err
		}
		for _, e := range root.Child("devices").All("disk") {
			list, complete := shownChain(e)
			files = append(files, list...)
			path := diskSource(e)
			if path == "" {
				if path, err = v.volumePath(ctx, e); err != nil {
					return nil, err
				}
			}
			if complete {
				done[path] = true
			}
			if path == "" || done[path] {
				continue
			}
			list, err := v.chainFiles(ctx, path, e.Get("./driver/@type"))
			if err != nil {
				return nil, err
			}
			files = append(files, list...)
			done[path] = true
		}
	}
	return files, nil
}

// shownChain lists the files of a disk with those of the backing chain that
// its document shows, and says whether that is the whole one: libvirt ends it
// with an empty element. It shows it of a running domain only.
func shownChain(e *domxml.Element) (files []string, complete bool) {
	for ; e != nil; e = e.Child("backingStore") {
		if path := diskSource(e); path != "" {
			files = append(files, path)
		}
		complete = e.Name == "backingStore" && e.Child("source") == nil
	}
	return files, complete
}

// volumePath is where a disk lies that names a pool and a volume of it, "" for
// one that is something else, or not there.
func (v *Machines) volumePath(ctx context.Context, e *domxml.Element) (string, error) {
	pool, name := e.Get("./source/@pool"), e.Get("./source/@volume")
	if pool == "" || name == "" {
		return "", nil
	}
	p, err := v.conn.LookupPool(ctx, pool)
	var vol *libvirt.Volume
	if err == nil {
		vol, err = p.LookupVolume(ctx, name)
	}
	var path string
	if err == nil {
		path, err = vol.Path(ctx)
	}
	if errors.Is(err, libvirt.ErrNotFound) {
		return "", nil
	}
	return path, err
}

// chainFiles lists an image's file and those below it: read from them where
// that is possible, else what libvirt knows of them as volumes.
func (v *Machines) chainFiles(ctx context.Context, path, format string) ([]string, error) {
	if format == "raw" || format == "luks" {
		return []string{path}, nil // nothing is below it
	}
	if v.conn.Remote() {
		return v.volumeFiles(ctx, path, format)
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return []string{path}, nil
	}
	files, err := image.Files(ctx, path, format)
	if err == nil {
		return append(files, path), nil
	}
	files, e := v.volumeFiles(ctx, path, format)
	if e != nil {
		return nil, fmt.Errorf("%w; %w", err, e)
	}
	return files, nil
}

// volumeFiles is chainFiles by what libvirt knows of volumes.
func (v *Machines) volumeFiles(ctx context.Context, path, format string) ([]string, error) {
	var files []string
	for range maxChain {
		if slices.Contains(files, path) {
			return files, nil // a circle, of which all are known
		}
		files = append(files, path)
		if format == "raw" || format == "luks" {
			return files, nil
		}
		if _, err := os.Stat(path); !v.conn.Remote() && errors.Is(err, fs.ErrNotExist) {
			return files, nil
		}
		vol, err := v.conn.LookupVolume(ctx, path)
		if err != nil {
			return nil, fmt.Errorf("the images below %s: %w", path, err)
		}
		root, err := volumeDocument(ctx, vol)
		if err != nil {
			return nil, err
		}
		path, format = root.Get("./backingStore/path"), root.Get("./backingStore/format/@type")
		switch {
		case path == "" || strings.Contains(path, "://"):
			return files, nil // the lowest file
		case !filepath.IsAbs(path):
			return nil, fmt.Errorf("the image below %s is %q, which is not followed", files[len(files)-1], path)
		}
	}
	return nil, fmt.Errorf("more than %d images lie over each other below %s", maxChain, files[0])
}

func volumeDocument(ctx context.Context, vol *libvirt.Volume) (*domxml.Element, error) {
	text, err := vol.XML(ctx)
	if err != nil {
		return nil, err
	}
	root, err := domxml.Parse([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("document of volume %q: %w", vol.Name(), err)
	}
	return root, nil
}

// sameFile reports whether two paths are the same, or lead to the same file of
// this host.
func sameFile(a, b string) bool {
	if clean(a) == clean(b) {
		return true
	}
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}
