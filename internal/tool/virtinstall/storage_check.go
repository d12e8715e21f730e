package virtinstall

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
	"github.com/lamina-vm/lamina/internal/vm/libvirt"
)

// exists reports whether there is a file, of any kind.
func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// checked reports whether a check of --check is on.
func (g *guest) checked(name string) (bool, error) {
	on := true
	for _, text := range g.args.all("check") {
		list, err := split(text)
		if err != nil {
			return false, err
		}
		for _, o := range list {
			if o.key != name && o.key != "all" || !o.given {
				continue
			}
			if on, err = yes(o.key, o.text); err != nil {
				return false, err
			}
		}
	}
	return on, nil
}

// checkError is what a check found; its words stand alone.
type checkError struct{ text string }

func (e *checkError) Error() string { return e.text }

// object refuses what a check found, or only warns where it is off.
func (g *guest) object(check, text string) error {
	on, err := g.checked(check)
	if err != nil {
		return err
	}
	if !on {
		g.warn("%s", text)
		return nil
	}
	return &checkError{fmt.Sprintf("%s (Use --check %s=off or --check all=off to override)", text, check)}
}

// checkSpace compares a new disk with the space where it is to be.
func (g *guest) checkSpace(ctx context.Context, d *disk) error {
	free, err := g.freeSpace(ctx, d)
	if err != nil || free < 0 || d.size <= free {
		return err
	}
	if d.full {
		return fmt.Errorf("There is not enough free space on the storage pool to create the volume. (%d M requested allocation > %d M available)", d.size>>20, free>>20)
	}
	if d.backing != "" {
		return nil // most of it is in the backing file
	}
	text := fmt.Sprintf("The requested volume capacity will exceed the available pool space when the volume is fully allocated. (%d M requested capacity > %d M available)", d.size>>20, free>>20)
	return g.object("disk_size", text)
}

// freeSpace returns the bytes that are free where a new disk is to be, -1
// where it cannot be known.
func (g *guest) freeSpace(ctx context.Context, d *disk) (int64, error) {
	if conn := g.host.libvirtConn(); conn != nil && d.inPool != "" {
		pool, err := conn.LookupPool(ctx, d.inPool)
		if errors.Is(err, libvirt.ErrNotFound) {
			return -1, nil
		}
		if err != nil {
			return 0, err
		}
		active, err := pool.Active(ctx)
		if err != nil || !active {
			return -1, err
		}
		info, err := pool.Info(ctx)
		return info.Available, err
	}
	if g.remote() {
		return -1, nil
	}
	var st unix.Statfs_t
	for dir := filepath.Dir(d.file); ; dir = filepath.Dir(dir) {
		err := unix.Statfs(dir, &st)
		if errors.Is(err, fs.ErrNotExist) && dir != "/" {
			continue // imageDir, which is made with the disk
		}
		if err != nil {
			return 0, fmt.Errorf("free space of %s: %w", dir, err)
		}
		free := st.Bavail
		if os.Geteuid() == 0 {
			free = st.Bfree // the reserve is root's, and libvirt counts it too
		}
		return int64(free) * st.Frsize, nil
	}
}

// checkDisks is what must hold of the disks together and towards others: none
// is used twice, none is in use.
func (g *guest) checkDisks(ctx context.Context) error {
	seen := map[string]bool{}
	for _, d := range g.disks {
		if d.file == "" || d.removable() || d.el.Child("shareable") != nil || d.el.Child("readonly") != nil {
			continue
		}
		if seen[d.file] {
			return d.wrap(fmt.Errorf("Disk %s is given twice: two drives on one image destroy its content (add shareable=on to both where the guest knows how)", d.file)) //nolint:staticcheck // as the original's words
		}
		seen[d.file] = true
	}
	var users map[string][]string
	for _, d := range g.disks {
		if d.file == "" || d.new || d.device() != "disk" {
			continue
		}
		if users == nil {
			var err error
			if users, err = g.diskUsers(ctx); err != nil {
				return err
			}
		}
		if names := users[d.file]; len(names) > 0 {
			text := fmt.Sprintf("Disk %s is already in use by other guests [%s].", d.file, quoteAll(names))
			if err := g.object("path_in_use", text); err != nil {
				return err
			}
		}
	}
	return g.warnSearch(ctx)
}

func quoteAll(names []string) string {
	var out []string
	for _, n := range names {
		out = append(out, "'"+n+"'")
	}
	return strings.Join(out, ", ")
}

// diskUsers returns for each path the machines that have it as a disk.
func (g *guest) diskUsers(ctx context.Context) (map[string][]string, error) {
	users := map[string][]string{}
	conn := g.host.libvirtConn()
	if conn == nil {
		return users, g.host.diskUsers(ctx, users)
	}
	domains, err := conn.Domains(ctx)
	if err != nil {
		return nil, err
	}
	for _, dom := range domains {
		doc, err := dom.XML(ctx, libvirt.XMLOptions{})
		if errors.Is(err, libvirt.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		el, err := domxml.Parse([]byte(doc))
		if err != nil {
			return nil, fmt.Errorf("machine %s: %w", dom.Name(), err)
		}
		for _, disk := range el.Child("devices").All("disk") {
			for _, attr := range []string{"file", "dev"} {
				if p := disk.Get("source/@" + attr); p != "" && !slices.Contains(users[p], dom.Name()) {
					users[p] = append(users[p], dom.Name())
				}
			}
		}
	}
	return users, nil
}

// warnSearch warns of folders that the user whom libvirt's QEMU runs as cannot
// pass on the way to a disk.
func (g *guest) warnSearch(ctx context.Context) error {
	conn := g.host.libvirtConn()
	if conn == nil || conn.Remote() || conn.Session() {
		return nil
	}
	const nobody = -2 // neither owner nor group of anything
	for _, d := range g.disks {
		if d.file == "" || d.inPool != "" || blocked(filepath.Dir(d.file), nobody, nobody) == "" {
			continue
		}
		name, uid, gid, err := g.qemuUser(ctx)
		if err != nil || uid == 0 {
			return err
		}
		if dir := blocked(filepath.Dir(d.file), uid, gid); dir != "" {
			g.warn("%s may not be accessible by the hypervisor. You will need to grant the '%s' user search permissions for the following directories: ['%s']", d.file, name, dir)
		}
	}
	return nil
}

// qemuUser returns whom libvirt's QEMU runs as, as its capabilities say; it is
// root where they say nothing.
func (g *guest) qemuUser(ctx context.Context) (name string, uid, gid int, err error) {
	caps, err := g.host.capabilities(ctx)
	if err != nil {
		return "", 0, 0, err
	}
	for _, model := range caps.Child("host").All("secmodel") {
		if model.Get("model") != "dac" {
			continue
		}
		label := model.Get("baselabel[@type='kvm']")
		if label == "" {
			label = model.Get("baselabel[@type='qemu']")
		}
		u, gr, _ := strings.Cut(label, ":")
		if uid, err = strconv.Atoi(strings.TrimPrefix(u, "+")); err != nil {
			return "", 0, 0, nil // a name, or nothing: libvirt's labels are numbers
		}
		if gid, err = strconv.Atoi(strings.TrimPrefix(gr, "+")); err != nil {
			gid = uid
		}
		name = strconv.Itoa(uid)
		if who, err := user.LookupId(name); err == nil {
			name = who.Username
		}
		return name, uid, gid, nil
	}
	return "", 0, 0, nil
}

// blocked returns the first folder on the way to dir that a user cannot search.
func blocked(dir string, uid, gid int) string {
	if dir != "/" && dir != "." {
		if up := blocked(filepath.Dir(dir), uid, gid); up != "" {
			return up
		}
	}
	st, err := os.Stat(dir)
	if err != nil {
		return ""
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	bit := fs.FileMode(0o001)
	switch {
	case int(sys.Uid) == uid:
		bit = 0o100
	case int(sys.Gid) == gid:
		bit = 0o010
	}
	if st.Mode().Perm()&bit == 0 {
		return dir
	}
	return ""
}
