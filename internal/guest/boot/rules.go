package boot

import (
	"strings"
	"time"
)

// A rule says what a line of console output means. The table below is all that
// the watcher knows of firmware, boot loaders, kernels and distributions; to
// teach it something, add a line, and a transcript to testdata.
type rule struct {
	has   []string // the line contains one of these
	also  string   // and this
	not   string   // and not this
	stage Stage    // what the guest has then reached; 0 says nothing
	mode  mode
	kind  string // of the Problem, for all modes but sign
	// after: fatal, how long to go on reading, for the lines that explain it;
	// prompt, how long nothing else may come; wait, how long it may take.
	after time.Duration
	note  string // what to tell at once: note and wait
	// at is the stage that a Problem names, where that is not the one reached.
	at Stage
	// sticky: a wait that only a later stage or a done line ends, not the next line.
	sticky bool
	// done ends a sticky wait of the same kind.
	done bool
	// menu: a prompt that is drawn in many lines, which do not answer it.
	menu bool
}

type mode int

const (
	sign   mode = iota // shows a stage, nothing else
	note               // worth telling; the boot goes on
	wait               // takes time; a Problem if it never ends
	prompt             // waits for a person, if nothing else comes
	fatal              // the boot is over
)

// The kinds of Problem.
const (
	KindNoBootable  = "no-bootable-disk"
	KindNoRoot      = "no-root-device"
	KindPanic       = "kernel-panic"
	KindMemory      = "out-of-memory"
	KindInitramfs   = "initramfs"
	KindLoader      = "boot-loader-prompt"
	KindLoaderError = "boot-loader-error"
	KindMetadata    = "metadata-wait"
	KindService     = "service-wait"
	KindEmergency   = "emergency-mode"
	KindFsck        = "fsck"
	KindCPU         = "cpu-level"
	KindRebootLoop  = "reboot-loop"
	KindEnded       = "ended"
	KindStalled     = "stalled"
	KindTimeout     = "timeout"
)

const (
	shortly = 1500 * time.Millisecond // for the lines behind a fatal one
	soon    = 5 * time.Second
)

const metadataNote = "the guest asks a metadata service that is not there, which takes minutes"

// rules are asked in order; the first with a kind decides what a line means,
// every one that fits may raise the stage.
var rules = []rule{
	// Firmware: SeaBIOS, iPXE, OVMF.
	{has: []string{"No bootable device", "No bootable option or device was found"}, stage: StageFirmware, mode: fatal, kind: KindNoBootable, after: shortly},
	{has: []string{"UEFI Interactive Shell", "No mapping found"}, stage: StageFirmware, mode: prompt, kind: KindNoBootable, after: soon},
	{has: []string{"Boot failed: not a bootable disk", "Boot failed: could not read the boot disk"}, stage: StageFirmware, mode: prompt, kind: KindNoBootable, after: 20 * time.Second},
	{has: []string{"Missing operating system", "Operating System not found", "Error loading operating system", "Invalid partition table", "MISSING OPERATING SYSTEM", "No active partition", "Missing OS"}, stage: StageFirmware, mode: prompt, kind: KindNoBootable, after: soon},
	{has: []string{"Nothing to boot", "No more network devices"}, also: "ipxe.org", stage: StageFirmware, mode: prompt, kind: KindNoBootable, after: 20 * time.Second},
	{has: []string{"SeaBIOS (version", "iPXE ", "Booting from ", "BdsDxe:", "TianoCore", "Machine UUID", "Press ESC for boot menu", "UEFI firmware (version"}, stage: StageFirmware},

	// Boot loaders.
	{has: []string{"Entering rescue mode"}, stage: StageBootLoader, mode: prompt, kind: KindLoader, after: soon},
	{has: []string{"Minimal BASH-like line editing is supported"}, stage: StageBootLoader, mode: prompt, kind: KindLoader, after: soon},
	{has: []string{"to select which entry is highlighted"}, stage: StageBootLoader, mode: prompt, kind: KindLoader, after: 12 * time.Second, menu: true},
	{has: []string{"error: out of memory"}, stage: StageBootLoader, mode: prompt, kind: KindMemory, after: soon},
	{has: []string{"you need to load the kernel first", "error: no such device", "error: no such partition", "error: unknown filesystem", "error: disk `", "error: file `", "error: invalid arch"}, stage: StageBootLoader, mode: prompt, kind: KindLoaderError, after: 12 * time.Second},
	{has: []string{"... failed: "}, also: "Loading ", stage: StageBootLoader, mode: prompt, kind: KindLoaderError, after: soon},
	{has: []string{"Could not find kernel image", "No DEFAULT or UI configuration directive found", "No configuration file found", "Failed to load ldlinux", "Failed to load COM32", "Load error -", "Boot error", "Invalid or corrupt kernel image"}, stage: StageBootLoader, mode: prompt, kind: KindLoaderError, after: soon},
	{has: []string{"GNU GRUB", "Welcome to GRUB", "GRUB loading", "SYSLINUX ", "ISOLINUX ", "EXTLINUX ", "PXELINUX ", "Booting a command list", "Booting `", "Loading Linux ", "Loading initial ramdisk", "systemd-boot", "Loading vmlinuz", "Loading /"}, stage: StageBootLoader},

	// The kernel.
	{has: []string{"Initramfs unpacking failed", "initramfs unpacking failed"}, stage: StageKernel, mode: note, kind: KindInitramfs, note: "the kernel could not unpack the initramfs"},
	{has: []string{"System is deadlocked on memory", "no killable process", "Out of memory and no killable"}, stage: StageKernel, mode: fatal, kind: KindMemory, after: shortly, at: StageKernel},
	{has: []string{"Out of memory: Kill", "invoked oom-killer"}, mode: note, kind: KindMemory, note: "the guest is out of memory and kills processes: give it more with --memory"},
	{has: []string{"VFS: Unable to mount root fs", "VFS: Cannot open root device"}, stage: StageKernel, mode: fatal, kind: KindNoRoot, after: shortly, at: StageKernel},
	{has: []string{"Kernel panic - not syncing"}, stage: StageKernel, mode: fatal, kind: KindPanic, after: shortly},
	{has: []string{"CPU does not support x86-64-v", "This kernel requires an x86-64 CPU", "This kernel requires the following features"}, mode: fatal, kind: KindCPU, after: shortly},
	{has: []string{"-- System halted"}, stage: StageKernel, mode: fatal, kind: KindPanic, after: shortly},
	{has: []string{"Linux version ", "EFI stub:", "Decompressing Linux", "Booting the kernel", "early console in", "Probing EDD"}, stage: StageKernel},

	// The initramfs: initramfs-tools, dracut, mkinitfs, mkinitcpio.
	{has: []string{"ALERT!"}, also: "does not exist", stage: StageKernel, mode: fatal, kind: KindNoRoot, after: shortly, at: StageKernel},
	{has: []string{"Gave up waiting for root", "Gave up waiting for suspend/resume"}, also: "root", stage: StageKernel, mode: fatal, kind: KindNoRoot, after: shortly, at: StageKernel},
	{has: []string{"Unable to find a medium containing a live file system", "Mounting root failed", "No root device specified"}, mode: fatal, kind: KindNoRoot, after: shortly, at: StageKernel},
	// The root itself, not a disk that a running guest mounts below /root.
	{has: []string{" on /root failed", " on /sysroot failed"}, also: "mount: mounting /dev/", mode: fatal, kind: KindNoRoot, after: shortly, at: StageKernel},
	{has: []string{"Warning: /dev/"}, also: "does not exist", mode: fatal, kind: KindNoRoot, after: 2 * shortly, at: StageKernel},
	{has: []string{"dracut-initqueue"}, also: "timeout", mode: wait, kind: KindNoRoot, after: 4 * time.Minute, at: StageKernel, note: "the initramfs waits for the root device", sticky: true},
	{has: []string{"A start job is running for /dev/disk/", "A start job is running for dev-disk-", "A start job is running for /dev/mapper"}, mode: wait, kind: KindNoRoot, after: 3 * time.Minute, at: StageKernel, note: "the guest waits for a disk that is not there"},
	{has: []string{"Waiting for root device", "Waiting for root file system", "Begin: Waiting for root"}, mode: wait, kind: KindNoRoot, after: 3 * time.Minute, at: StageKernel, note: "the initramfs waits for the root device"},
	{has: []string{"ERROR: device '"}, also: "not found", mode: fatal, kind: KindNoRoot, after: 2 * shortly, at: StageKernel},
	{has: []string{"initramfs emergency recovery shell", "You are now being dropped into an emergency shell", "Entering emergency mode. Exit the shell to continue"}, mode: fatal, kind: KindEmergency, after: shortly},

	// File systems.
	{has: []string{"RUN fsck MANUALLY", "requires a manual fsck", "fsck exited with status code 4", "fsck failed with exit status 4", "Failed to start File System Check", "Failed to start systemd-fsck"}, mode: fatal, kind: KindFsck, after: 2 * shortly},

	// Metadata services.
	{has: []string{"no results found for mode=net", "Giving up on md from", "No instance datasource found"}, stage: StageCloudInit, mode: note, kind: KindMetadata, note: "the guest gave up on the metadata service", done: true},
	{has: []string{"url_helper.py[WARNING]: Calling '", "url_helper.py[WARNING]: Timed out waiting", "169.254.169.254", "fd00:ec2::254", "metadata.google.internal"}, not: "ci-info:", stage: StageCloudInit, mode: wait, kind: KindMetadata, after: 6 * time.Minute, note: metadataNote, sticky: true},
	{has: []string{"request failed"}, also: ": up ", stage: StageCloudInit, mode: wait, kind: KindMetadata, after: 6 * time.Minute, note: metadataNote, sticky: true},

	// Init: systemd, busybox, OpenRC, sysvinit.
	{has: []string{"You are in emergency mode", "You are in rescue mode", "Give root password for maintenance", "Press Enter for maintenance", "Cannot open access to console, the root account is locked"}, stage: StageInit, mode: fatal, kind: KindEmergency, after: shortly},
	{has: []string{"A start job is running for ", "A stop job is running for "}, stage: StageInit, mode: wait, kind: KindService, after: 4 * time.Minute, note: "a service takes its time"},
	{has: []string{"systemd[1]:", "[  OK  ]", "INIT: version", "OpenRC ", "init started: BusyBox", "Starting syslogd"}, stage: StageInit},
	{has: []string{"Welcome to "}, also: "!", not: "GRUB", stage: StageInit},

	// cloud-init and its work-alikes.
	{has: []string{"Cloud-init v. ", "cloud-init[", "ci-info:", "cirros-ds '", "=== datasource:", "tiny-cloud", "cloud-init-local"}, stage: StageCloudInit},
}

// match finds the rules of a line: the stage that it shows, and the rule that
// says what it means, nil for a line that says nothing more.
func match(line string) (Stage, *rule) {
	stage := StageNone
	var found *rule
	for i := range rules {
		r := &rules[i]
		if !r.fits(line) {
			continue
		}
		stage = max(stage, r.stage)
		if found == nil && r.mode != sign {
			found = r
		}
	}
	if found != nil && found.stage != StageNone {
		// What a problem says of the stage is worth more than a word that
		// another rule knows ("Loading /" in a message of the kernel).
		stage = found.stage
	}
	if isKernelLine(line) {
		stage = max(stage, StageKernel)
	}
	return stage, found
}

func (r *rule) fits(line string) bool {
	if r.also != "" && !strings.Contains(line, r.also) || r.not != "" && strings.Contains(line, r.not) {
		return false
	}
	for _, h := range r.has {
		if strings.Contains(line, h) {
			return true
		}
	}
	return false
}

// isKernelLine knows a line of the kernel's log by its time stamp, "[    1.234567]".
func isKernelLine(line string) bool {
	if len(line) < 14 || line[0] != '[' {
		return false
	}
	s := strings.TrimLeft(line[1:], " ")
	n := 0
	for n < len(s) && isDigit(s[n]) {
		n++
	}
	if n == 0 || n+8 > len(s) || s[n] != '.' || s[n+7] != ']' {
		return false
	}
	for _, c := range []byte(s[n+1 : n+7]) {
		if !isDigit(c) {
			return false
		}
	}
	return true
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// leavesMenu says whether a line shows that a boot loader's menu has been left,
// or will be by itself.
func leavesMenu(line string) bool {
	for _, s := range []string{"executed automatically", "Booting ", "Loading "} {
		if strings.Contains(line, s) {
			return true
		}
	}
	return false
}

// The prompts that stand at the end of the output, without a line end.
var prompts = []struct {
	is   func(line string) bool
	rule rule
}{
	{equals("grub>", "grub rescue>"), rule{stage: StageBootLoader, mode: prompt, kind: KindLoader, after: soon}},
	{equals("boot:"), rule{stage: StageBootLoader, mode: prompt, kind: KindLoader, after: 15 * time.Second}},
	{equals("Shell>"), rule{stage: StageFirmware, mode: prompt, kind: KindNoBootable, after: soon}},
	{equals("(initramfs)", "dracut:/#", "initramfs-shell>"), rule{stage: StageKernel, mode: prompt, kind: KindNoRoot, after: soon, at: StageKernel}},
}

// matchPrompt is the rule of a prompt, nil for a line that is none.
func matchPrompt(line string) *rule {
	for i := range prompts {
		if prompts[i].is(line) {
			return &prompts[i].rule
		}
	}
	return nil
}

func equals(names ...string) func(string) bool {
	return func(line string) bool {
		for _, n := range names {
			if line == n {
				return true
			}
		}
		return false
	}
}

// isLogin says whether an unfinished line is the prompt of getty.
func isLogin(line string) bool {
	host, ok := strings.CutSuffix(line, "login:")
	return ok && isLoginHost(host)
}

// isLoginSwamped says whether a line began as a login prompt and went on with
// what a service or the kernel wrote to the same console.
func isLoginSwamped(line string) bool {
	host, rest, ok := strings.Cut(line, " login: ")
	return ok && rest != "" && isLoginHost(host+" ") && (rest[0] == '[' || strings.HasPrefix(rest, "ci-info") || strings.HasPrefix(rest, "Cloud-init"))
}

func isLoginHost(s string) bool {
	s, ok := strings.CutSuffix(s, " ")
	if s == "" {
		return !ok // "login:" alone
	}
	if !ok || s == "Last" || len(s) > 253 {
		return false
	}
	for _, c := range []byte(s) {
		if !isDigit(c) && !('a' <= c && c <= 'z') && !('A' <= c && c <= 'Z') && !strings.ContainsRune("-._()", rune(c)) {
			return false
		}
	}
	return true
}

// isShell says whether an unfinished line is the prompt of a shell that
// somebody was logged in to without being asked: "root@web:~#".
func isShell(line string) bool {
	if line == "" || strings.ContainsAny(line, " \t") || !strings.ContainsAny(line[len(line)-1:], "#$") {
		return false
	}
	user, rest, ok := strings.Cut(line, "@")
	return ok && user != "" && strings.Contains(rest, ":")
}
