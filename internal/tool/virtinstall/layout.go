package virtinstall

import (
	"sync"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// order is the order of elements in virt-install's documents; what is not in
// it follows in the order in which it came to be.
var order = sync.OnceValue(func() map[string][]string {
	return map[string][]string{
		"domain": {"name", "uuid", "genid", "title", "description", "metadata", "iothreads", "iothreadids", "defaultiothread",
			"maxMemory", "memory", "currentMemory", "blkiotune", "memtune", "memoryBacking", "vcpu", "vcpus", "numatune",
			"resource", "sysinfo", "bootloader", "bootloader_args", "os", "idmap", "features", "cpu", "clock",
			"on_poweroff", "on_reboot", "on_crash", "pm", "devices", "launchSecurity", "seclabel", "keywrap"},
		"blkiotune": {"weight"},
		"cpu":       {"model", "vendor", "topology", "cache", "feature", "numa"},
		"cputune": {"shares", "period", "quota", "global_period", "global_quota", "emulator_period", "emulator_quota",
			"iothread_period", "iothread_quota", "vcpupin", "emulatorpin", "iothreadpin", "emulatorsched", "vcpusched",
			"iothreadsched", "cachetune", "memorytune"},
		"devices": {"emulator", "disk", "controller", "filesystem", "interface", "smartcard", "serial", "parallel", "console", "channel",
			"input", "tpm", "graphics", "sound", "audio", "video", "hostdev", "redirdev", "watchdog", "memballoon", "rng", "panic",
			"shmem", "memory", "vsock", "iommu"},
		"channel":          {"source", "target"},
		"console":          {"source", "target"},
		"parallel":         {"source", "target"},
		"serial":           {"source", "target"},
		"controller":       {"master", "driver"},
		"disk":             {"driver", "auth", "source", "target"},
		"interface":        {"source", "mac", "target", "model", "virtualport", "filterref", "rom", "mtu"},
		"shmem":            {"model", "size", "server", "msi"},
		"features":         {"acpi", "apic", "pae", "gic"},
		"idmap":            {"uid", "gid"},
		"launchSecurity":   {"cbitpos", "reducedPhysBits", "policy", "session", "dhCert"},
		"memoryBacking":    {"hugepages", "nosharepages", "locked"},
		"memtune":          {"hard_limit", "soft_limit", "swap_hard_limit", "min_guarantee"},
		"numatune":         {"memory", "memnode"},
		"os":               {"type", "firmware", "loader", "nvram", "init", "initarg", "initenv", "initdir", "inituser", "initgroup", "kernel", "initrd", "cmdline", "dtb", "acpi", "boot", "bootmenu", "bios", "smbios"},
		"seclabel":         {"label"},
		"sysinfo":          {"bios", "system", "baseBoard", "chassis", "oemStrings"},
		"qemu:commandline": {"qemu:arg", "qemu:env"},
	}
})

// document is a domain's document as it is printed and handed to libvirt.
func document(d *domxml.Element) string {
	d = d.Clone()
	d.Order(order())
	return d.String()
}
