package boot

import (
	"fmt"
	"strings"
)

// advise says in one sentence why a boot stopped, and what to try.
func (a *analyser) advise(kind string, stage Stage) (cause string, remedy []string) {
	f := &a.facts
	look := a.look()
	switch kind {
	case KindNoBootable:
		return "the firmware found no disk that it can boot: the image is empty, holds no boot loader for this firmware, or was given the wrong format",
			[]string{
				"lamina img info IMAGE: look at the format and whether there is data at all",
				"if the image is raw but was taken for another format, or the other way round: lamina run --format raw IMAGE",
				"if it is an image for UEFI only, use the publisher's image for BIOS",
				"lamina screen " + a.name(),
			}
	case KindNoRoot:
		return a.adviseRoot()
	case KindInitramfs:
		return fmt.Sprintf("the kernel could not unpack its initramfs (%s): the file is cut or damaged", orUnknown(f.initramfs)),
			append([]string{"lamina img check IMAGE", "fetch the image again: lamina pull --force IMAGE"}, look...)
	case KindMemory:
		return "the guest has too little memory to start",
			append([]string{"lamina run --memory 2G IMAGE: give it more memory"}, look...)
	case KindPanic:
		return a.advisePanic(), append([]string{"lamina logs " + a.name() + ": the lines before the panic say more", "lamina img check IMAGE"}, look...)
	case KindCPU:
		return "the guest is built for a newer CPU than the machine has",
			append([]string{"lamina run --accel kvm IMAGE: with KVM the guest sees the host's CPU", "use an image for older CPUs (a release before this one)"}, look...)
	case KindLoader:
		cause := "the boot loader waits for somebody to type: it found no configuration, or its menu has no time limit"
		if f.loader != "" {
			cause = fmt.Sprintf("the boot loader did not find its own files (%s) and waits for somebody to type", f.loader)
		}
		return cause,
			append([]string{"lamina console " + a.name() + ": choose or type what to boot", "if the configuration is missing, the image is damaged: lamina img check IMAGE"}, look[1:]...)
	case KindLoaderError:
		return fmt.Sprintf("the boot loader could not load the system (%s)", orUnknown(f.loader)),
			append([]string{"lamina console " + a.name(), "lamina img check IMAGE", "make the image again: its boot loader's configuration names files that are not there"}, look[1:]...)
	case KindMetadata:
		return a.adviseMetadata()
	case KindService:
		return "the guest waits for a service that does not come up: " + orUnknown(f.job), look
	case KindEmergency:
		return "the guest's system could not mount or start something that it needs, and offers an emergency shell",
			append([]string{"lamina logs " + a.name() + ": the first line with FAILED says what", "a file system in /etc/fstab may be on a disk that this machine does not have"}, look...)
	case KindFsck:
		return "a file system of the guest is damaged, and needs a check by hand",
			append([]string{"lamina console " + a.name() + ": run fsck as it says", "lamina img check IMAGE", "make the machine again from its template: lamina rm " + a.name() + ", lamina clone"}, look...)
	case KindRebootLoop:
		return fmt.Sprintf("the guest starts again and again (%d times)", a.boots+1),
			append([]string{"lamina logs " + a.name() + ": the lines before each start say why", "with too little memory some kernels restart without a word: lamina run --memory 2G IMAGE"}, look...)
	case KindEnded:
		return a.adviseEnded()
	}
	return a.adviseSilence(kind, stage)
}

func (a *analyser) name() string {
	if a.hints.Name != "" {
		return a.hints.Name
	}
	return "NAME"
}

// look are the ways to look at the machine.
func (a *analyser) look() []string {
	return []string{
		"lamina console " + a.name() + ": the serial console",
		"lamina screen " + a.name() + ": what is on the screen",
	}
}

func orUnknown(s string) string {
	if s == "" {
		return "it does not say why"
	}
	return s
}

// adviseRoot compares the disk that the guest looks for with the one it has.
func (a *analyser) adviseRoot() (string, []string) {
	f, bus := &a.facts, a.hints.DiskBus
	dev := f.missing
	if dev == "" {
		dev = f.root
	}
	what := "its root device"
	if dev != "" {
		what = dev
	}
	wants := ""
	switch {
	case strings.HasPrefix(dev, "/dev/vd"):
		wants = "virtio"
	case strings.HasPrefix(dev, "/dev/sd"):
		wants = "sata"
	case strings.HasPrefix(dev, "/dev/hd"):
		wants = "ide"
	}
	named := "" // the kind of name that a disk on this bus gets
	switch bus {
	case "virtio":
		named = "virtio"
	case "ide", "sata", "virtio-scsi":
		named = "sata"
	}
	switch {
	case wants != "" && named != "" && wants != named:
		return fmt.Sprintf("the guest looks for %s, which is the name of a disk on the %s bus; this machine's disk is on %s", dev, wants, bus),
			a.otherBuses(wants)
	case bus != "" && !f.disks:
		return fmt.Sprintf("the guest's kernel or initramfs found no disk for %s: it has no driver for the %s bus", what, bus),
			a.otherBuses("")
	case f.disks:
		return fmt.Sprintf("the guest has a disk, but did not find %s on it: the image is not the one that its boot loader was made for, or is damaged", what),
			append([]string{"lamina img check IMAGE"}, append(a.otherBuses(""), a.look()...)...)
	}
	return "the guest did not find " + what + ": it has no driver for the disk's bus, or the image is damaged", a.otherBuses("")
}

// otherBuses advises the buses that the machine does not use, first the best.
func (a *analyser) otherBuses(first string) []string {
	var out []string
	add := func(bus, why string) {
		if bus != a.hints.DiskBus {
			out = append(out, "lamina run --bus "+bus+" IMAGE"+why)
		}
	}
	if first != "" {
		add(first, "")
		return append(out, a.look()...)
	}
	add("virtio", "")
	add("sata", ": most kernels have its driver")
	add("ide", ": the oldest kernels have its driver")
	return append(out, a.look()[0])
}

func (a *analyser) advisePanic() string {
	p := a.facts.panicked
	switch {
	case strings.Contains(p, "Attempted to kill init"):
		return "the guest's first process ended (" + p + "): its root file system is damaged or lacks a file that init needs"
	case strings.Contains(p, "No working init found"), strings.Contains(p, "Requested init"):
		return "the guest's root file system has no program to start as init"
	case p == "":
		return "the guest's kernel stopped while it was being unpacked or started"
	}
	return "the guest's kernel panicked: " + p
}

func (a *analyser) adviseMetadata() (string, []string) {
	from := "a metadata service"
	if a.facts.asked != "" {
		from += " (" + a.facts.asked + ")"
	}
	if a.hints.HasSeed {
		return "the guest waits for " + from + " although a seed is attached: it does not look for one, or cannot read it",
			append([]string{"use an image whose cloud-init knows the NoCloud data source", "wait: most guests give up after some minutes"}, a.look()...)
	}
	return "the guest waits for " + from + ", as it was given no seed",
		append([]string{"lamina run IMAGE without --no-seed: the seed tells the guest all that it asks for", "wait: most guests give up after some minutes"}, a.look()...)
}

func (a *analyser) adviseEnded() (string, []string) {
	f := &a.facts
	rm := "lamina logs " + a.name() + ": the whole output"
	switch {
	case strings.Contains(f.ended, "Restarting") || strings.Contains(f.ended, "Rebooting"):
		return "the guest restarted, which ends this machine", []string{rm, "lamina start " + a.name()}
	case f.ended != "":
		return "the guest shut itself down before a login prompt came", []string{rm, "lamina start " + a.name()}
	case a.stage == StageNone:
		return "the machine ended before it wrote anything", []string{"lamina info " + a.name() + ": how it ended", rm}
	}
	return "the machine ended before a login prompt came: it was stopped, or QEMU ended on an error", []string{"lamina info " + a.name() + ": how it ended", rm}
}

// adviseSilence is for a boot that shows no reason.
func (a *analyser) adviseSilence(kind string, stage Stage) (string, []string) {
	look := a.look()
	screenFirst := []string{look[1], look[0]}
	if kind == KindTimeout {
		slow := ""
		if a.hints.TCG {
			slow = " (without KVM everything takes some ten times longer)"
		}
		if a.now-a.news < a.stall/2 {
			return fmt.Sprintf("the guest still works, but no login prompt came in %s%s", short(a.timeout), slow),
				append([]string{"lamina run --timeout with more time"}, look...)
		}
	}
	silent := "nothing new came for " + short(a.now-a.news)
	switch stage {
	case StageNone:
		if a.facts.graphical {
			return "the guest wrote nothing to its serial port, and its screen is in a graphics mode: it may well be up", append(screenFirst, "give the guest's kernel console=ttyS0")
		}
		return "the guest wrote nothing to its serial port: it may run without a serial console", append(screenFirst, "give the guest's kernel console=ttyS0")
	case StageFirmware:
		return "the firmware started something that does not say a word: " + silent, append(screenFirst, "lamina img check IMAGE")
	case StageBootLoader:
		return "the boot loader started a kernel that does not write to the serial port: " + silent, append(screenFirst, "give the guest's kernel console=ttyS0")
	case StageKernel:
		return "the kernel stopped on its way: " + silent, append(look, "lamina run --bus sata IMAGE: if the last lines are about a disk", "lamina run --accel tcg IMAGE: if KVM does not run this kernel")
	case StageInit, StageCloudInit:
		return "the guest's services started, but no login prompt came: " + silent + "; it may have no getty on this console", append(look, "lamina ssh "+a.name()+": the network may be up")
	}
	return silent, look
}
