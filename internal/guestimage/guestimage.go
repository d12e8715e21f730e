// Package guestimage builds the two guests of the demo and the tests from the
// distribution's packages, and keeps them in a cache that every clone of the
// repository on a machine shares.
//
// The small guest is a Debian kernel with busybox and dropbear that boots by
// BIOS from an MBR disk on every disk bus and reaches its login prompt within
// seconds under TCG; Lamina's agent is in it. The Debian guest is Debian 12 with systemd, cloud-init
// and OpenSSH.
//
// Log in to both as user lamina, password lamina, on the serial port or the
// screen; both have sudo. The small guest's root has no password. SSH takes
// keys only, from a NoCloud seed.
package guestimage

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/guest/agent"
)

// Kind names a guest.
type Kind string

// The guests.
const (
	KindSmall  Kind = "small"
	KindDebian Kind = "debian"
)

// The login of both guests, on their consoles.
const (
	User     = "lamina"
	Password = "lamina"
)

// SmallDefaultHostname is the small guest's host name without a seed.
const SmallDefaultHostname = "lamina-small"

//go:embed scripts
var scripts embed.FS

// Small returns the path of the small guest as a compressed qcow2 image (v3,
// zlib), building it if the cache has none. It must not be written to: make an
// overlay. A failed build fails the test.
func Small(t testing.TB) string { return get(t, KindSmall).QCOW2 }

// SmallRaw is [Small] as a sparse raw image.
func SmallRaw(t testing.TB) string { return get(t, KindSmall).Raw }

// Debian returns the path of the Debian guest as a compressed qcow2 image,
// building it if the cache has none, which takes minutes and needs root.
func Debian(t testing.TB) string { return get(t, KindDebian).QCOW2 }

func get(t testing.TB, kind Kind) Image {
	t.Helper()
	img, err := Build(context.Background(), kind, testLog{t})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Logf("%s", p)
	return len(p), nil
}

// Image is a built guest. The files are shared and read-only.
type Image struct {
	Raw   string // sparse
	QCOW2 string // v3, compressed with zlib
}

// Build returns a guest from the cache, after building it if need be. What the
// builder prints goes to log. Builds of the same guest wait for each other,
// also across processes; an interrupted one leaves nothing that is used.
func Build(ctx context.Context, kind Kind, log io.Writer) (Image, error) {
	if kind != KindSmall && kind != KindDebian {
		return Image{}, fmt.Errorf("no guest %q: the guests are %s and %s", kind, KindSmall, KindDebian)
	}
	if kind == KindDebian && os.Geteuid() != 0 {
		if img, err := cached(kind); err == nil && img.exists() {
			return img, nil
		}
		return Image{}, errors.New("the Debian guest is built by root only: run as root, or use the small guest")
	}
	img, err := cached(kind)
	if err != nil {
		return Image{}, err
	}
	if img.exists() {
		return img, nil
	}
	dir := filepath.Dir(img.Raw)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Image{}, err
	}
	unlock, err := lock(filepath.Join(dir, "lock"))
	if err != nil {
		return Image{}, err
	}
	defer unlock()
	if img.exists() { // another process was faster
		return img, nil
	}
	if err := build(ctx, kind, img, log); err != nil {
		return Image{}, fmt.Errorf("build the %s guest: %w", kind, err)
	}
	return img, nil
}

func (i Image) exists() bool {
	for _, f := range []string{i.Raw, i.QCOW2} {
		if _, err := os.Stat(f); err != nil {
			return false
		}
	}
	return true
}

// cached says where a guest lies in the cache.
func cached(kind Kind) (Image, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return Image{}, fmt.Errorf("where to keep the guest images: %w", err)
	}
	key, err := sourceKey(kind)
	if err != nil {
		return Image{}, err
	}
	dir := filepath.Join(base, "lamina-guests", key)
	return Image{
		Raw:   filepath.Join(dir, string(kind)+".raw"),
		QCOW2: filepath.Join(dir, string(kind)+".qcow2"),
	}, nil
}

// sourceKey is a hash over everything that decides what a build makes, but for
// the versions of the packages.
func sourceKey(kind Kind) (string, error) {
	h := sha256.New()
	var names []string
	err := fs.WalkDir(scripts, "scripts", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		names = append(names, name)
		return nil
	})
	if err != nil {
		return "", err
	}
	slices.Sort(names)
	own := []string{"scripts/" + string(kind) + ".sh", "scripts/" + string(kind) + "/"}
	for _, name := range names {
		if name != own[0] && !strings.HasPrefix(name, own[1]) {
			continue
		}
		data, err := scripts.ReadFile(name)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %d\n", name, len(data))
		h.Write(data)
	}
	if kind == KindSmall {
		h.Write(agent.Script)
	}
	return string(kind) + "-" + hex.EncodeToString(h.Sum(nil))[:16], nil
}

// lock takes an exclusive lock on a file, which it creates.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { _ = f.Close() }, nil
}

// build runs the builder's script in a scratch folder beside the result and
// moves the finished images into their place.
func build(ctx context.Context, kind Kind, img Image, log io.Writer) error {
	dir := filepath.Dir(img.Raw)
	work, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	// The package's own sources, for the scripts are embedded.
	src := filepath.Join(work, "scripts")
	if err := os.CopyFS(src, mustSub(scripts, "scripts")); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(src, "small/root/lib/lamina/agent"), agent.Script, 0o755); err != nil {
		return err
	}
	scratch := filepath.Join(work, "scratch")
	if err := os.Mkdir(scratch, 0o755); err != nil {
		return err
	}
	raw := filepath.Join(work, "disk.raw")
	if err := run(ctx, log, "sh", filepath.Join(src, string(kind)+".sh"), src, scratch, raw); err != nil {
		return err
	}
	qcow2 := filepath.Join(work, "disk.qcow2")
	if err := run(ctx, log, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, qcow2); err != nil {
		return err
	}
	for from, to := range map[string]string{raw: img.Raw, qcow2: img.QCOW2} {
		if err := os.Chmod(from, 0o444); err != nil {
			return err
		}
		if err := os.Rename(from, to); err != nil {
			return err
		}
	}
	return nil
}

func mustSub(f embed.FS, dir string) fs.FS {
	sub, err := fs.Sub(f, dir)
	if err != nil { // dir is a constant
		panic(err)
	}
	return sub
}

// run runs a tool of the build; its output goes to log, and its last lines
// into the error.
func run(ctx context.Context, log io.Writer, name string, args ...string) error {
	var last tail
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout = io.MultiWriter(log, &last)
	cmd.Stderr = cmd.Stdout
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(name), err, last.data)
	}
	return nil
}

// tail keeps the last 2 KiB written to it.
type tail struct{ data []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.data = append(t.data, p...)
	if over := len(t.data) - 2048; over > 0 {
		t.data = append(t.data[:0], t.data[over:]...)
	}
	return len(p), nil
}
