package osinfo

import (
	"fmt"
	"strconv"
	"strings"
)

// record is what the documents of one operating system say themselves, before
// anything is inherited.
type record struct {
	id                string
	shortIDs          []string
	name, vendor      string
	version, codename string
	family, distro    string
	released, eol     string // YYYY-MM-DD
	status            string
	kernelURLArg      string
	cloudUser         string
	derives, clones   []string // ids, the last named first, as libosinfo follows them
	upgrades          []string
	devices           []deviceLink
	firmware          []firmware
	resources         resourceLists
	media             []Media
	trees             []Tree
	variants          map[string]string // name by id
	scripts           bool              // there are installer scripts
}

// deviceLink says that a device works, or does not.
type deviceLink struct {
	id          string
	unsupported bool
}

type firmware struct {
	arch, kind  string // "efi", "bios"
	unsupported bool
}

// requirement is one <minimum>, <recommended>, ... of one architecture; -1 is
// a value that is not given.
type requirement struct {
	arch               string
	inherit            bool
	cpus, ram, storage int64
}

type resourceLists struct {
	minimum, recommended, maximum, networkInstall []requirement
}

// readRecord merges the documents of an operating system: what a later one
// says of a single thing replaces, lists grow.
func readRecord(key string, f files) (*record, error) {
	r := &record{variants: map[string]string{}}
	for _, path := range f.all() {
		doc, err := readDocument(path)
		if err != nil {
			return nil, fmt.Errorf("osinfo: %w", err)
		}
		root, err := parseXML(doc)
		if err != nil {
			return nil, fmt.Errorf("osinfo: %s: %w", path, err)
		}
		if root.name != "libosinfo" {
			return nil, fmt.Errorf("osinfo: %s: the root element is <%.40s>, expected <libosinfo>", path, root.name)
		}
		for i := range root.children {
			e := &root.children[i]
			if e.name != "os" {
				continue
			}
			if got := entityKey("os", e.attr("id")); got != key {
				return nil, fmt.Errorf("osinfo: %s: holds %q, which belongs into %s.xml", path, e.attr("id"), got)
			}
			r.id = e.attr("id")
			r.merge(e)
		}
	}
	for i := range r.media {
		m := &r.media[i]
		m.InstallerScript = m.InstallerScript && (m.scripts || r.scripts)
	}
	if r.id == "" {
		return nil, fmt.Errorf("osinfo: %s: no <os> element", strings.Join(f.all(), ", "))
	}
	return r, nil
}

// merge adds one <os> element.
func (r *record) merge(e *element) {
	for _, single := range []struct {
		to   *string
		name string
	}{
		{&r.name, "name"}, {&r.vendor, "vendor"}, {&r.version, "version"}, {&r.codename, "codename"},
		{&r.family, "family"}, {&r.distro, "distro"}, {&r.released, "release-date"}, {&r.eol, "eol-date"},
		{&r.status, "release-status"}, {&r.kernelURLArg, "kernel-url-argument"}, {&r.cloudUser, "cloud-image-username"},
	} {
		if text := e.childText(single.name); text != "" {
			*single.to = text
		}
	}
	for i := range e.children {
		r.mergeChild(&e.children[i])
	}
}

func (r *record) mergeChild(c *element) {
	first := func(list []string) []string { return append([]string{c.attr("id")}, list...) }
	switch c.name {
	case "short-id":
		if c.text != "" {
			r.shortIDs = append(r.shortIDs, c.text)
		}
	case "derives-from":
		r.derives = first(r.derives)
	case "clones":
		r.clones = first(r.clones)
	case "upgrades":
		r.upgrades = first(r.upgrades)
	case "devices":
		for i := range c.children {
			if d := &c.children[i]; d.name == "device" {
				r.devices = append(r.devices, deviceLink{d.attr("id"), d.attr("supported") == "false"})
			}
		}
	case "firmware":
		supported := c.attr("supported")
		r.firmware = append(r.firmware, firmware{c.attr("arch"), c.attr("type"), supported != "" && supported != "true"})
	case "resources":
		r.resources.merge(c)
	case "media":
		r.media = append(r.media, readMedia(c))
	case "tree":
		r.trees = append(r.trees, readTree(c))
	case "installer":
		r.scripts = r.scripts || c.child("script") != nil
	case "variant":
		r.variants[c.attr("id")] = c.childText("name")
	}
}

func (l *resourceLists) merge(e *element) {
	for _, level := range []struct {
		to   *[]requirement
		name string
	}{{&l.minimum, "minimum"}, {&l.recommended, "recommended"}, {&l.maximum, "maximum"}, {&l.networkInstall, "network-install"}} {
		r := requirement{arch: e.attr("arch"), inherit: e.attr("inherit") == "true", cpus: -1, ram: -1, storage: -1}
		c := e.child(level.name)
		if (c == nil || len(c.children) == 0) && !r.inherit {
			continue
		}
		if c != nil {
			r.cpus, r.ram, r.storage = number(c.childText("n-cpus")), number(c.childText("ram")), number(c.childText("storage"))
		}
		*level.to = append(*level.to, r)
	}
}

// number reads a count or a size, -1 where there is none.
func number(s string) int64 {
	n, err := strconv.ParseInt(strings.TrimSpace(s), 10, 64)
	if err != nil || n < 0 {
		return -1
	}
	return n
}

func readMedia(e *element) Media {
	m := Media{
		Arch: e.attr("arch"), URL: e.childText("url"), Kernel: e.childText("kernel"), Initrd: e.childText("initrd"),
		Live: truth(e.attr("live"), false), Installer: truth(e.attr("installer"), true),
		InstallerReboots: 1, EjectAfterInstall: truth(e.attr("eject-after-install"), true),
		InstallerScript: truth(e.attr("installer-script"), true),
		Variants:        variantIDs(e),
	}
	if installer := e.child("installer"); installer != nil {
		m.scripts = installer.child("script") != nil
	}
	if n := number(e.attr("installer-reboots")); n >= 0 && n < 1000 {
		m.InstallerReboots = int(n)
	}
	if iso := e.child("iso"); iso != nil {
		m.VolumeID, m.SystemID = iso.childText("volume-id"), iso.childText("system-id")
		m.PublisherID, m.ApplicationID = iso.childText("publisher-id"), iso.childText("application-id")
		m.VolumeSize = max(number(iso.childText("volume-size")), 0)
	}
	return m
}

func readTree(e *element) Tree {
	t := Tree{
		Arch: e.attr("arch"), URL: e.childText("url"), Kernel: e.childText("kernel"), Initrd: e.childText("initrd"),
		BootISO: e.childText("boot-iso"), Variants: variantIDs(e),
	}
	if info := e.child("treeinfo"); info != nil {
		t.hasTreeinfo = len(info.children) > 0
		t.Treeinfo = Treeinfo{Family: info.childText("family"), Variant: info.childText("variant"),
			Version: info.childText("version"), Arch: info.childText("arch")}
	}
	return t
}

func variantIDs(e *element) []string {
	var ids []string
	for i := range e.children {
		if c := &e.children[i]; c.name == "variant" {
			ids = append(ids, c.attr("id"))
		}
	}
	return ids
}

func truth(s string, otherwise bool) bool {
	switch s {
	case "":
		return otherwise
	case "true", "yes":
		return true
	}
	return false
}
