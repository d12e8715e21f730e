package virtinstall

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/lamina-vm/lamina/internal/vm/osinfo"
)

// location is --location: an ISO, a folder or a URL with an installer's kernel
// and initrd in it.
type location struct {
	name           string // as it was given
	url            string // the same, a path made absolute
	kernel, initrd string // given, or found by findKernel
	given          bool   // kernel= was given

	files    tree // once it is open
	iso      bool
	match    osinfo.Match
	known    bool // match is set
	treeinfo osinfo.Treeinfo
	hasInfo  bool
}

// tree is a set of files to read.
type tree interface {
	// open opens a file; the error wraps fs.ErrNotExist where there is none.
	open(ctx context.Context, name string) (io.ReadCloser, error)
}

// maxTreeinfo bounds what is read of a .treeinfo.
const maxTreeinfo = 1 << 20

func locationOption() option {
	return option{flag: "location", first: []string{"location"}, subs: func() []sub {
		return []sub{{name: "initrd", comma: true}, {name: "kernel", comma: true}, {name: "location", comma: true}}
	}}
}

// readLocation reads --location.
func (in *installation) readLocation(text string) error {
	given, err := locationOption().read(text)
	if err != nil {
		return err
	}
	l := &location{}
	l.url, _ = given.get("location")
	l.kernel, l.given = given.get("kernel")
	l.initrd, _ = given.get("initrd")
	l.name = l.url
	if l.url == "" {
		return errors.New("--location: it is the path of an ISO image or a folder, or a URL")
	}
	if l.given != (l.initrd != "") {
		return errors.New("location kernel/initrd must be specified as a pair") //nolint:staticcheck // in the original's manner
	}
	if isURL(l.url) {
		scheme, rest, _ := strings.Cut(l.url, "://")
		switch scheme {
		case "http", "https":
		case "file":
			l.url = rest
		default:
			return fmt.Errorf("--location %s: the kernel is fetched by http, https, from a folder or an ISO image; %s is not read", l.url, scheme)
		}
	}
	if name := l.url; !isURL(name) {
		if l.url, err = absolute(name); err != nil {
			return err
		}
		if _, err := os.Stat(l.url); err != nil {
			return fmt.Errorf("Validating install media '%s' failed: Must specify storage creation parameters for non-existent path '%s'.", name, l.url)
		}
	}
	in.where, in.bootdev = l, ""
	return nil
}

// noDistro is the error for a location in which nothing is found.
func (l *location) noDistro(why string) error {
	if why != "" {
		why = ": " + why
	}
	name := l.name
	if _, folder := l.files.(dirTree); folder {
		name = l.url
	}
	return fmt.Errorf("Error validating install location: Could not find an installable distribution at URL '%s'%s\n\nThe location must be the root directory of an install tree.\nSee virt-install man page for various distro examples.", name, why)
}

// open finds out what the location is and what it holds.
func (l *location) open(ctx context.Context) error {
	if l.files != nil {
		return nil
	}
	switch st, err := os.Stat(l.url); {
	case isURL(l.url):
		l.files = webTree{strings.TrimSuffix(l.url, "/")}
	case err != nil:
		return err
	case st.IsDir():
		l.files = dirTree(l.url)
	default:
		if err := l.openISO(); err != nil {
			return err
		}
	}
	if !l.iso {
		if err := l.readTreeinfo(ctx); err != nil {
			return err
		}
	}
	if l.kernel != "" {
		return l.check(ctx)
	}
	return l.findKernel(ctx)
}

func (l *location) openISO() error {
	f, size, err := openISO(l.url)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	disc, err := osinfo.ReadDisc(f, size)
	if errors.Is(err, osinfo.ErrNotISO) {
		return l.noDistro("")
	}
	if err != nil {
		return fmt.Errorf("%s: %w", l.url, err)
	}
	l.files, l.iso = isoTree{l.url, disc}, true
	if m, err := osDB().DetectDisc(disc); err == nil {
		l.match, l.known = m, true
	}
	return nil
}

// readTreeinfo reads the tree's description of itself, if it has one.
func (l *location) readTreeinfo(ctx context.Context) error {
	for _, name := range []string{".treeinfo", "treeinfo"} {
		r, err := l.files.open(ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return l.unreachable(err)
		}
		data, err := io.ReadAll(io.LimitReader(r, maxTreeinfo))
		_ = r.Close()
		if err != nil {
			return fmt.Errorf("%s/%s: %w", l.url, name, err)
		}
		t, err := osinfo.ParseTreeinfo(data)
		if err != nil {
			continue // not the file that it is called like
		}
		l.treeinfo, l.hasInfo = t, true
		if m, err := osDB().DetectTree(t); err == nil {
			l.match, l.known = m, true
		} else {
			l.guess(familyID(t))
		}
		return nil
	}
	l.guess(codenameID(l.url))
	return nil
}

// guess takes a short id for what the tree holds, if there is such a system.
func (l *location) guess(id string) {
	if id == "" {
		return
	}
	if o, err := osDB().Lookup(id); err == nil {
		l.match, l.known = osinfo.Match{OS: o}, true
	}
}

// familyID is the short id of a tree that the database does not know, by what
// it says of itself.
func familyID(t osinfo.Treeinfo) string {
	major, _, _ := strings.Cut(t.Version, ".")
	family := strings.ToLower(t.Family)
	switch {
	case t.Version == "":
		return ""
	case family == "fedora":
		return "fedora" + t.Version
	case strings.Contains(family, "red hat enterprise linux"):
		return "rhel" + t.Version
	case strings.Contains(family, "centos stream"):
		return "centos-stream" + major
	case strings.HasPrefix(family, "centos") && (major == "8" || major == "9"):
		return "centos-stream" + major
	case strings.HasPrefix(family, "centos"):
		return "centos" + major + ".0"
	case strings.HasPrefix(family, "almalinux"):
		return "almalinux" + major
	case strings.HasPrefix(family, "rocky"):
		return "rocky" + major
	case strings.HasPrefix(family, "opensuse leap"):
		return "opensuse" + t.Version
	}
	return ""
}

// codenames are the short ids of Debian's and Ubuntu's releases by the name of
// their folder below "dists".
var codenames = map[string]string{
	"buster": "debian10", "bullseye": "debian11", "bookworm": "debian12", "trixie": "debian13", "testing": "debiantesting",
	"trusty": "ubuntu14.04", "xenial": "ubuntu16.04", "bionic": "ubuntu18.04", "focal": "ubuntu20.04", "jammy": "ubuntu22.04", "noble": "ubuntu24.04",
}

// codenameID is the short id of a Debian archive's tree by its path.
func codenameID(url string) string {
	_, rest, ok := strings.Cut(url, "/dists/")
	if !ok {
		return ""
	}
	name, _, _ := strings.Cut(rest, "/")
	name, _, _ = strings.Cut(name, "-")
	return codenames[name]
}

func (l *location) unreachable(err error) error {
	if _, ok := l.files.(webTree); ok {
		return l.noDistro("The URL could not be accessed, maybe you mistyped?")
	}
	return err
}

// layouts are where installers keep their kernel and initrd, in pairs: those of
// Debian and Ubuntu, of Fedora and RHEL, of SUSE, of Mageia, Arch and Alpine.
var layouts = [][2]string{
	{"install.amd/vmlinuz", "install.amd/initrd.gz"},
	{"current/images/netboot/debian-installer/amd64/linux", "current/images/netboot/debian-installer/amd64/initrd.gz"},
	{"current/images/netboot/ubuntu-installer/amd64/linux", "current/images/netboot/ubuntu-installer/amd64/initrd.gz"},
	{"current/legacy-images/netboot/ubuntu-installer/amd64/linux", "current/legacy-images/netboot/ubuntu-installer/amd64/initrd.gz"},
	{"netboot/debian-installer/amd64/linux", "netboot/debian-installer/amd64/initrd.gz"},
	{"debian-installer/amd64/linux", "debian-installer/amd64/initrd.gz"},
	{"install/netboot/ubuntu-installer/amd64/linux", "install/netboot/ubuntu-installer/amd64/initrd.gz"},
	{"install/vmlinuz", "install/initrd.gz"},
	{"install/hwe-vmlinuz", "install/hwe-initrd.gz"},
	{"casper/vmlinuz", "casper/initrd"},
	{"casper/vmlinuz", "casper/initrd.lz"},
	{"casper/vmlinuz", "casper/initrd.gz"},
	{"images/pxeboot/vmlinuz", "images/pxeboot/initrd.img"},
	{"isolinux/vmlinuz", "isolinux/initrd.img"},
	{"boot/x86_64/loader/linux", "boot/x86_64/loader/initrd"},
	{"boot/i386/loader/linux", "boot/i386/loader/initrd"},
	{"isolinux/alt0/vmlinuz", "isolinux/alt0/all.rdz"},
	{"isolinux/x86_64/vmlinuz", "isolinux/x86_64/all.rdz"},
	{"arch/boot/x86_64/vmlinuz-linux", "arch/boot/x86_64/initramfs-linux.img"},
	{"boot/vmlinuz-lts", "boot/initramfs-lts"},
	{"boot/vmlinuz-virt", "boot/initramfs-virt"},
}

// findKernel finds the kernel and the initrd in the tree.
func (l *location) findKernel(ctx context.Context) error {
	var candidates [][2]string
	if l.hasInfo {
		candidates = append(candidates, [2]string{l.treeinfo.Kernel, l.treeinfo.Initrd})
	}
	if l.known {
		candidates = append(candidates, [2]string{l.match.Media.Kernel, l.match.Media.Initrd}, [2]string{l.match.Tree.Kernel, l.match.Tree.Initrd})
	}
	for _, c := range append(candidates, layouts...) {
		if c[0] == "" || c[1] == "" {
			continue
		}
		ok, err := l.has(ctx, c[0])
		if err == nil && ok {
			ok, err = l.has(ctx, c[1])
		}
		if err != nil {
			return l.unreachable(err)
		}
		if ok {
			l.kernel, l.initrd = c[0], c[1]
			return nil
		}
	}
	return l.noDistro("")
}

func (l *location) has(ctx context.Context, name string) (bool, error) {
	r, err := l.files.open(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, r.Close()
}

// check reports a kernel or an initrd that was named and is not there.
func (l *location) check(ctx context.Context) error {
	for _, name := range []string{l.kernel, l.initrd} {
		ok, err := l.has(ctx, name)
		if err != nil {
			return l.unreachable(err)
		}
		if !ok {
			return fmt.Errorf("Couldn't find kernel for install tree: %s has no %s", l.url, name)
		}
	}
	return nil
}

// detect returns the short id of the OS in the location.
func (l *location) detect(context.Context) (string, error) {
	if l.known {
		return l.match.OS.ShortID, nil
	}
	return "", nil
}

// dirTree is a folder.
type dirTree string

func (t dirTree) open(_ context.Context, name string) (io.ReadCloser, error) {
	f, err := os.Open(filepath.Join(string(t), filepath.FromSlash(path.Clean("/"+name))))
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		_ = f.Close()
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return f, nil
}

// isoTree is an ISO image.
type isoTree struct {
	path string
	disc osinfo.Disc
}

func (t isoTree) open(_ context.Context, name string) (io.ReadCloser, error) {
	f, size, err := openISO(t.path)
	if err != nil {
		return nil, err
	}
	r, err := t.disc.File(f, size, strings.TrimPrefix(path.Clean("/"+name), "/"))
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{r, f}, nil
}

// webTree is a URL, without the slash at its end.
type webTree struct{ base string }

// webClient gives up on a server that does not answer; what it answers may
// take its time.
var webClient = &http.Client{Transport: &http.Transport{
	Proxy: http.ProxyFromEnvironment, ResponseHeaderTimeout: 30 * time.Second, TLSHandshakeTimeout: 30 * time.Second,
	DisableCompression: true,
}}

func (t webTree) open(ctx context.Context, name string) (io.ReadCloser, error) {
	return get(ctx, t.base+"/"+strings.TrimPrefix(name, "/"))
}

func get(ctx context.Context, url string) (io.ReadCloser, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := webClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	_ = resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusForbidden || resp.StatusCode == http.StatusGone {
		return nil, &fs.PathError{Op: "get", Path: url, Err: fs.ErrNotExist}
	}
	return nil, fmt.Errorf("%s: the server says %s", url, resp.Status)
}
