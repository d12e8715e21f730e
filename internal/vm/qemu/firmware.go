package qemu

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

// firmware is what starts the guest; the zero value is QEMU's own BIOS.
type firmware struct {
	Code   string // image, read-only
	ROM    bool   // mapped as a ROM (-bios), else as flash
	Vars   string // the machine's own variables; "" where the image has none
	CodeRW bool
	SMM    bool // the variables are protected by SMM
	format string
}

const (
	codeNode = "pflash0-code"
	varsNode = "pflash1-vars"
)

func (f firmware) flash() bool { return f.Code != "" && !f.ROM }

func (f firmware) varsNode() string {
	if f.Vars == "" {
		return ""
	}
	return varsNode
}

// firmwareArgs are its images.
func (c config) firmwareArgs() []string {
	f := c.firmware
	switch {
	case f.Code == "":
		return nil
	case f.ROM:
		return []string{"-bios", f.Code}
	}
	node := func(name, path string, readOnly bool) string {
		return encode(map[string]any{
			"driver": f.format, "node-name": name, "read-only": readOnly,
			"file": map[string]any{"driver": "file", "filename": path, "read-only": readOnly},
		})
	}
	args := []string{"-blockdev", node(codeNode, f.Code, !f.CodeRW)}
	if f.Vars != "" {
		args = append(args, "-blockdev", node(varsNode, f.Vars, false))
	}
	return args
}

// firmwareDirs hold descriptors of the host's firmware; a file of a later
// folder is hidden by one of the same name in an earlier one (docs/interop/
// firmware.json in QEMU's sources).
var firmwareDirs = []string{"/etc/qemu/firmware", "/usr/share/qemu/firmware"}

// descriptor is such a file, as far as it matters here.
type descriptor struct {
	InterfaceTypes []string `json:"interface-types"`
	Mapping        struct {
		Device     string       `json:"device"`
		Mode       string       `json:"mode"`
		Executable firmwareFile `json:"executable"`
		Template   firmwareFile `json:"nvram-template"`
	} `json:"mapping"`
	Targets []struct {
		Architecture string   `json:"architecture"`
		Machines     []string `json:"machines"`
	} `json:"targets"`
	Features []string `json:"features"`
	path     string
}

type firmwareFile struct {
	Filename string `json:"filename"`
	Format   string `json:"format"`
}

// readDescriptors returns those of the host, in the order of their names, which
// is that of their priority.
func readDescriptors(dirs []string) []descriptor {
	seen := map[string]string{}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if _, ok := seen[e.Name()]; !ok && strings.HasSuffix(e.Name(), ".json") {
				seen[e.Name()] = filepath.Join(dir, e.Name())
			}
		}
	}
	var found []descriptor
	names := make([]string, 0, len(seen))
	for name := range seen {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		b, err := os.ReadFile(seen[name])
		d := descriptor{path: seen[name]}
		if err == nil && len(b) > 0 && json.Unmarshal(b, &d) == nil { // an empty one hides another
			found = append(found, d)
		}
	}
	return found
}

func (d descriptor) has(feature string) bool { return slices.Contains(d.Features, feature) }

// fits reports whether a firmware is one for the machine.
func (d descriptor) fits(s vm.Spec) bool {
	b := s.Boot
	if !slices.Contains(d.InterfaceTypes, "uefi") || d.Mapping.Device != "flash" || d.Mapping.Mode == "combined" {
		return false
	}
	machine := s.Machine
	switch machine { // the descriptors' patterns have versions
	case vm.MachinePC:
		machine = "pc-i440fx-0"
	case vm.MachineQ35:
		machine = "pc-q35-0"
	}
	target := false
	for _, t := range d.Targets {
		for _, m := range t.Machines {
			ok, err := filepath.Match(m, machine)
			target = target || err == nil && ok && t.Architecture == "x86_64"
		}
	}
	secure := d.has("secure-boot")
	enrolled := d.has("enrolled-keys")
	switch {
	case !target, secure && s.Chipset() == vm.MachinePC:
		return false
	case b.SecureBoot == vm.On && !secure, b.SecureBoot == vm.Off && secure:
		return false
	case b.EnrolledKeys == vm.On && !enrolled, b.EnrolledKeys == vm.Off && enrolled:
		return false
	}
	return true
}

// errNoFirmware: the host has no firmware of the wanted kind.
var errNoFirmware = errors.New("no such UEFI firmware on this host")

// findFirmware chooses the machine's firmware. It makes nothing.
func findFirmware(s vm.Spec, dirs []string) (f firmware, template string, err error) {
	b := s.Boot
	if b.Loader != "" {
		return givenFirmware(b, dirs)
	}
	if b.Firmware != vm.FirmwareEFI {
		return firmware{}, "", nil
	}
	var best *descriptor
	for _, d := range readDescriptors(dirs) {
		if !d.fits(s) {
			continue
		}
		if best == nil || b.SecureBoot == "" && best.has("secure-boot") && !d.has("secure-boot") {
			best = &d
		}
	}
	if best == nil {
		what := "for machine type " + s.Machine
		if b.SecureBoot == vm.On {
			what += " with Secure Boot"
		}
		return firmware{}, "", fmt.Errorf("%w %s in %s: install the package ovmf (Debian, Ubuntu) or edk2-ovmf (Fedora, RHEL)", errNoFirmware, what, strings.Join(dirs, ", "))
	}
	f = firmware{Code: best.Mapping.Executable.Filename, format: best.Mapping.Executable.Format, SMM: best.has("requires-smm")}
	template = best.Mapping.Template.Filename
	if b.NVRAMTemplate != "" {
		template = b.NVRAMTemplate
	}
	return f, template, nil
}

// givenFirmware is an image that the spec names. Its variables begin as the
// template that is said, or that its descriptor names.
func givenFirmware(b vm.Boot, dirs []string) (f firmware, template string, err error) {
	f = firmware{Code: b.Loader, ROM: b.LoaderType == "rom", CodeRW: b.LoaderRW, format: "raw", SMM: b.SecureBoot == vm.On}
	if b.LoaderType == "" && b.Firmware != vm.FirmwareEFI && b.NVRAM == "" && b.NVRAMTemplate == "" {
		f.ROM = true
	}
	if _, err := os.Stat(f.Code); err != nil {
		return firmware{}, "", fmt.Errorf("firmware: %w", err)
	}
	if f.ROM {
		return f, "", nil
	}
	template = b.NVRAMTemplate
	for _, d := range readDescriptors(dirs) {
		if template == "" && d.Mapping.Executable.Filename == f.Code {
			template, f.format = d.Mapping.Template.Filename, d.Mapping.Executable.Format
			f.SMM = f.SMM || d.has("requires-smm")
		}
	}
	return f, template, nil
}

// prepareFirmware chooses the firmware and makes the machine's own variables
// where there are none yet. An existing file is kept as it is.
func prepareFirmware(s vm.Spec, dir string) (firmware, error) {
	f, template, err := findFirmware(s, firmwareDirs)
	if err != nil || !f.flash() {
		return f, err
	}
	vars := s.Boot.NVRAM
	if vars == "" && template != "" {
		vars = filepath.Join(dir, home.NVRAMFile)
	}
	if vars == "" {
		return f, nil
	}
	f.Vars = vars
	if _, err := os.Stat(vars); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	if template == "" {
		return f, fmt.Errorf("%s does not exist and firmware %s has no template for it: name one", vars, f.Code)
	}
	return f, copyNew(template, vars)
}

// copyNew copies a file to a name that is not taken, whole or not at all.
func copyNew(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("UEFI variables' template: %w", err)
	}
	defer func() { _ = in.Close() }()
	out, err := os.CreateTemp(filepath.Dir(to), ".nvram-*")
	if err != nil {
		return fmt.Errorf("UEFI variables: %w", err)
	}
	defer func() { _ = os.Remove(out.Name()) }()
	_, err = io.Copy(out, in)
	if err == nil {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err == nil {
		err = os.Link(out.Name(), to) // which never replaces another
	}
	if err != nil {
		return fmt.Errorf("UEFI variables %s: %w", to, err)
	}
	return nil
}
