package boot

import "strings"

// facts are what the output says that a diagnosis may need later.
type facts struct {
	root      string // the kernel's root= parameter
	missing   string // the device that an initramfs or the kernel did not find
	disks     bool   // the kernel has found a disk
	initramfs string // why the initramfs could not be unpacked
	panicked  string // what the kernel said when it panicked
	job       string // the systemd job that runs
	asked     string // the metadata service's address
	graphical bool   // the screen is in a graphics mode
	ended     string // the guest's own words on its end
	oom       bool
	loader    string // the boot loader's first error
	rescue    bool   // GRUB could not load its own parts
}

func (f *facts) learn(line string) {
	f.learnKernel(line)
	if _, rest, ok := strings.Cut(line, "start job is running for "); ok {
		f.job, _, _ = strings.Cut(rest, " (")
	}
	if u := askedURL(line); u != "" {
		f.asked = u
	}
	for _, w := range []string{"reboot: Power down", "reboot: Restarting system", "reboot: System halted", "Powering off", "System halted", "Rebooting."} {
		if strings.Contains(line, w) {
			f.ended = line
		}
	}
	for _, w := range []string{"error: ", "Could not find kernel image", "No DEFAULT or UI", "No configuration file", "Failed to load "} {
		if f.loader == "" && strings.HasPrefix(line, w) {
			f.loader = line
		}
	}
	if f.loader == "" && strings.HasPrefix(line, "Loading ") && strings.Contains(line, "... failed: ") {
		f.loader = line
	}
	f.rescue = f.rescue || strings.Contains(line, "Entering rescue mode")
}

// askedURL is the address of the metadata service that a line speaks of. The
// screen cuts lines at its width: half an address is none.
func askedURL(line string) string {
	if _, rest, ok := strings.Cut(line, "Calling 'http"); ok {
		u, _, whole := strings.Cut(rest, "'")
		if !whole {
			return ""
		}
		return "http" + u
	}
	i := strings.Index(line, "http://169.254.169.254")
	if i < 0 {
		return ""
	}
	end := strings.IndexAny(line[i:], " '\",;)")
	if end < 0 {
		return line[i:]
	}
	return line[i : i+end]
}

func (f *facts) learnKernel(line string) {
	if strings.Contains(line, "ommand line:") {
		for w := range strings.FieldsSeq(line) {
			if v, ok := strings.CutPrefix(w, "root="); ok {
				f.root = v
			}
		}
	}
	if _, rest, ok := strings.Cut(line, "Initramfs unpacking failed:"); ok {
		f.initramfs = strings.TrimSpace(rest)
	}
	if _, rest, ok := strings.Cut(line, "Kernel panic - not syncing:"); ok {
		f.panicked = strings.TrimSpace(rest)
	}
	if strings.Contains(line, "invoked oom-killer") || strings.Contains(line, "Out of memory") {
		f.oom = true
	}
	for _, d := range []string{"Attached SCSI disk", "Attached SCSI removable disk", "virtio_blk virtio", ": QEMU HARDDISK", "logical blocks"} {
		f.disks = f.disks || strings.Contains(line, d)
	}
	if m := missingDevice(line); m != "" {
		f.missing = m
	}
}

// missingDevice is the device that a line says is not there.
func missingDevice(line string) string {
	if !strings.Contains(line, "does not exist") && !strings.Contains(line, "Cannot open root device") && !strings.Contains(line, "not found") {
		return ""
	}
	for w := range strings.FieldsSeq(line) {
		w = strings.Trim(w, `"'.,:`)
		for _, p := range []string{"/dev/", "UUID=", "LABEL=", "PARTUUID=", "PARTLABEL="} {
			if strings.HasPrefix(w, p) {
				return w
			}
		}
	}
	if _, rest, ok := strings.Cut(line, `Cannot open root device "`); ok {
		dev, _, _ := strings.Cut(rest, `"`)
		if !strings.ContainsAny(dev, "/=") {
			dev = "/dev/" + dev // the kernel leaves the folder out
		}
		return dev
	}
	return ""
}
