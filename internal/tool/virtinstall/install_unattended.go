package virtinstall

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/lamina-vm/lamina/internal/guest/seed"
)

// unattended is --unattended: answers for the guest's own installer. The
// original takes them from scripts of osinfo-db, which are XSLT programs; ours
// are short and written by us (answers.go), for the same installers.
type unattended struct {
	g                         *guest
	profile                   string // "desktop" or "jeos": without a desktop
	adminPassword             string
	user, userPassword        string
	productKey, regLogin      string
	adminGiven, passwordGiven bool

	// What prepare decides.
	args       string // of the kernel
	injections []injection
}

func unattendedOption() option {
	return option{flag: "unattended", first: []string{"profile"}, subs: func() []sub {
		return []sub{{name: "admin-password-file"}, {name: "product-key"}, {name: "profile"}, {name: "reg-login"}, {name: "user-login"}, {name: "user-password-file"}}
	}}
}

// readUnattended reads --unattended, nil where it was not given.
func readUnattended(g *guest) (*unattended, error) {
	text, ok := g.args.last("unattended")
	if !ok {
		return nil, nil
	}
	given, err := unattendedOption().read(text)
	if err != nil {
		return nil, err
	}
	u := &unattended{g: g, profile: "desktop"}
	for key, into := range map[string]*string{"profile": &u.profile, "product-key": &u.productKey, "reg-login": &u.regLogin, "user-login": &u.user} {
		if v, ok := given.get(key); ok {
			*into = v
		}
	}
	if u.profile != "desktop" && u.profile != "jeos" {
		return nil, fmt.Errorf("--unattended profile=%s: it is desktop or jeos", u.profile)
	}
	read := func(key string, into *string) (bool, error) {
		name, ok := given.get(key)
		if !ok {
			return false, nil
		}
		data, err := readBounded(name, maxAnswer)
		if err != nil {
			return false, fmt.Errorf("--unattended %s: %w", key, err)
		}
		*into, _, _ = strings.Cut(string(data), "\n")
		*into = strings.TrimSuffix(*into, "\r")
		if *into == "" || strings.ContainsFunc(*into, func(r rune) bool { return r < ' ' }) {
			return false, fmt.Errorf("--unattended %s: the first line of %s is not a password", key, name)
		}
		return true, nil
	}
	if u.adminGiven, err = read("admin-password-file", &u.adminPassword); err != nil {
		return nil, err
	}
	if u.passwordGiven, err = read("user-password-file", &u.userPassword); err != nil {
		return nil, err
	}
	if u.user == "" {
		u.user = loginName()
	}
	if u.user == "root" {
		return nil, errors.New("--unattended user-login=root: it is the name of another user than root")
	}
	if strings.ContainsFunc(u.user, func(r rune) bool { return r <= ' ' || strings.ContainsRune(`:,/\"'<>&`, r) }) {
		return nil, fmt.Errorf("--unattended user-login=%s: no system takes this as a user's name", u.user)
	}
	return u, nil
}

// installer is a kind of installer that can be given answers.
type installer int

const (
	noInstaller installer = iota
	kickstart
	preseed
	autoinstall // Ubuntu's from 20.04 on
	autoyast
	windows
)

// installerOf returns what installs the guest's OS.
func (g *guest) installerOf() installer {
	switch d := g.os.Distro; {
	case g.os.IsWindows():
		return windows
	case d == "debian":
		return preseed
	case d == "ubuntu":
		if year, err := strconv.Atoi(strings.SplitN(g.os.Version, ".", 2)[0]); err == nil && year >= 20 {
			return autoinstall
		}
		return preseed
	case d == "fedora" || d == "rhel" || d == "centos" || d == "almalinux" || d == "rocky" || d == "ol" || d == "scientificlinux" || d == "centos-stream" || d == "eurolinux":
		return kickstart
	case d == "opensuse" || d == "sles" || d == "sled" || d == "sle":
		return autoyast
	}
	return noInstaller
}

// prepare decides what the installer is told and how.
func (u *unattended) prepare(_ context.Context, in *installation) error {
	g := u.g
	kind := g.installerOf()
	os := g.os.ShortID
	if kind == noInstaller {
		return fmt.Errorf("OS '%s' does not support unattended installation.", os)
	}
	if kind != windows && in.where == nil {
		return fmt.Errorf("OS '%s' does not support required injection method 'cdrom'; use --location, which has the installer's kernel", os)
	}
	if kind == windows && in.medium == "" {
		return fmt.Errorf("OS '%s' is installed from a disc: --unattended needs --cdrom", os)
	}
	needsUser := kind == preseed || kind == autoinstall
	if needsUser && u.user == "" {
		return fmt.Errorf("%s requires the user-login to be set.", os)
	}
	if needsUser && !u.passwordGiven {
		return fmt.Errorf("%s requires the user-password to be set.", os)
	}
	inject := func(name, text string) {
		u.injections = append(u.injections, injection{name, func() ([]byte, error) { return []byte(text), nil }})
	}
	switch kind {
	case kickstart:
		name, key := "rhel.ks", "inst.ks"
		if g.os.Distro == "fedora" {
			name = "fedora.ks"
		}
		if g.os.KernelURLArg() == "method" || u.oldAnaconda() {
			key = "ks"
		}
		u.args = key + "=file:/" + name
		inject(name, u.kickstart())
	case preseed:
		u.args = "auto=true priority=critical file=/preseed.cfg"
		inject("preseed.cfg", u.preseed())
	case autoyast:
		u.args = "autoyast=file:///autoinst.xml"
		inject("autoinst.xml", u.autoyast())
	case autoinstall:
		u.args = "autoinstall"
		return u.addDisc(in, "cloudinit.iso", func() ([]byte, error) {
			return seed.Build(seed.Config{InstanceID: "i-autoinstall", UserData: []byte(u.autoinstall())})
		})
	case windows:
		return u.addDisc(in, "unattended.iso", func() ([]byte, error) {
			return seed.Disc("UNATTEND", "autounattend.xml", []byte(u.autounattend()))
		})
	}
	return nil
}

// oldAnaconda reports whether the installer is older than RHEL 8, which takes
// its arguments without "inst.".
func (u *unattended) oldAnaconda() bool {
	if u.g.os.Distro == "fedora" {
		return false
	}
	major, err := strconv.Atoi(strings.SplitN(u.g.os.Version, ".", 2)[0])
	return err == nil && major < 8
}

// addDisc adds a CD drive whose disc has the answers.
func (u *unattended) addDisc(in *installation, name string, build func() ([]byte, error)) error {
	if _, err := build(); err != nil {
		return err
	}
	f, err := in.stage(name, func(_ context.Context, w io.Writer) error {
		data, err := build()
		if err == nil {
			_, err = w.Write(data)
		}
		return err
	})
	if err != nil {
		return err
	}
	// Windows looks at its installation disc first: that one is added before.
	if in.medium != "" {
		in.after = append(in.after, f.path)
		return nil
	}
	return in.addMedium(f.path, "raw")
}

// timezone is the host's, as the guest's clock should show.
func timezone() string {
	if name, err := os.Readlink("/etc/localtime"); err == nil {
		if _, zone, ok := strings.Cut(name, "/zoneinfo/"); ok {
			return zone
		}
	}
	return "UTC"
}
