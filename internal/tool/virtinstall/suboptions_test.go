package virtinstall

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// compareSubOptions gives every sub-option of every option, as stock's own "=?"
// lists them, a value, and compares what both tools make of it. Several go into
// one command line, as each takes its time.
func compareSubOptions(t *testing.T, pairs []pair) {
	all, failed := map[string]bool{}, map[string]string{}
	lists := make([]result, len(listed))
	each(t, pairs, len(listed), func(p pair, i int) error {
		stock, ours, err := p.run([]string{"--" + listed[i] + "=?"})
		lists[i] = stock
		if err == nil && (stock.Status != 0 || stock.Out == "") {
			err = fmt.Errorf("--%s=?: stock says %d, %q", listed[i], stock.Status, stock.Out)
		}
		if stock.Out != ours.Out || stock.Status != ours.Status {
			lists[i].Err = fmt.Sprintf("--%s=?\nstock: %s\nours:  %s", listed[i], stock.Out, ours.Out)
		}
		return err
	})
	var cases []diffCase
	for i, flag := range listed {
		name := flag + "/list"
		all[name] = true
		if lists[i].Err != "" {
			failed[name] = lists[i].Err
		}
		var names []string
		for _, line := range strings.Split(strings.TrimSpace(lists[i].Out), "\n")[1:] {
			names = append(names, strings.TrimSpace(line))
		}
		cases = append(cases, subOptionCases(flag, names)...)
	}
	found := make([]string, len(cases))
	each(t, pairs, len(cases), func(p pair, i int) error {
		stock, ours, err := p.run(cases[i].arguments())
		if err == nil && stock.Status != 0 {
			err = fmt.Errorf("%s: stock does not take %s: %s", cases[i].name, cases[i].line, tail(stock.Err))
		}
		found[i] = cases[i].judge(stock, ours)
		return err
	})
	for i, c := range cases {
		all[c.name] = true
		if found[i] != "" {
			failed[c.name] = "virt-install " + c.line + "\n" + found[i]
		}
	}
	reportPending(t, "suboptions/", all, failed)
}

// listed are the options that list their sub-options.
var listed = strings.Fields(`memory vcpus cpu metadata xml location unattended install cloud-init boot idmap os-variant disk network
	graphics controller input serial parallel channel console hostdev filesystem sound audio watchdog video smartcard redirdev memballoon
	tpm rng panic shmem memdev vsock iommu iothreads seclabel keywrap cputune numatune memtune blkiotune memorybacking features clock
	pm events resource sysinfo qemu-commandline launchSecurity check`)

// elsewhere are options whose sub-options do not say what the XML is to have:
// cases of the table have them.
var elsewhere = strings.Fields("xml location unattended install cloud-init os-variant check")

// frames are command lines that an option's sub-options are put into, at "@".
// In one that has none, "--OPTION @" follows.
var frames = map[string]string{
	"disk":       "--disk path=disk.qcow2,@",
	"network":    "--network network=default,@",
	"graphics":   "--graphics type=vnc,@",
	"controller": "--controller type=scsi,@",
	"input":      "--input type=tablet,@",
	"serial":     "--serial type=pty,@",
	"parallel":   "--parallel type=pty,@",
	"channel":    "--channel type=unix,@",
	"console":    "--console type=pty,@",
	"hostdev":    "--hostdev type=usb,@",
	"filesystem": "--filesystem source=/tmp,target=/mnt,@",
	"sound":      "--sound model=ich9,@",
	"audio":      "--audio id=1,@",
	"video":      "--video model.type=vga,@",
	"smartcard":  "--smartcard mode=host,@",
	"redirdev":   "--redirdev bus=usb,@",
	"tpm":        "--tpm backend.type=emulator,@",
	"rng":        "--rng backend.model=random,@",
	"shmem":      "--shmem name=a,@",
	"watchdog":   "--watchdog model=i6300esb,@",
	"memdev":     "--memdev model=dimm,@",
}

// values are those of sub-options for which 1, which is a number, a word and a
// yes, will not do. "" leaves one out, as a case of the table has it.
var values = map[string]string{
	"boot arch": "x86_64", "boot domain_type": "kvm", "boot machine": "q35", "boot os_type": "hvm", "boot uefi": "", "boot refresh-machine-type": "",
	"boot firmware": "efi", "boot bootloader": "", "boot emulator": "/usr/bin/qemu-system-x86_64",
	// What these say of a source depends on what else does.
	"source.bind_host": "", "source.bind_service": "", "source.connect_host": "", "source.connect_service": "",
	"backend.source.bind_host": "", "backend.source.bind_service": "", "backend.source.connect_host": "", "backend.source.connect_service": "",
	"host": "", "bind_host": "", "rng backend": "", "rng device": "", "server": "", "controller num_pcie_root_ports": "", "controller address": "",
	"disk source.host[0-9]*.name": "", "disk source.host[0-9]*.port": "", "disk source.host[0-9]*.socket": "", "disk source.host[0-9]*.transport": "",
	"disk path": "disk.qcow2", "disk pool": "", "disk vol": "", "disk size": "", "disk sparse": "", "disk backing_store": "", "disk backing_format": "",
	"disk type": "file", "disk source.dev": "", "disk source.dir": "", "disk source.file": "", "disk source.pool": "", "disk source.volume": "",
	"disk source.protocol": "", "disk source.name": "", "disk format": "qcow2", "disk driver.type": "qcow2", "disk device": "disk", "disk bus": "virtio",
	"disk target.bus": "virtio", "disk target.dev": "vdx",
	"network mac": "52:54:00:12:34:56", "network mac.address": "52:54:00:12:34:56",
	"graphics port": "5901", "graphics tlsPort": "5902",
	"hostdev name": "", "metadata os_name": "debian11", "metadata os_full_id": "http://debian.org/debian/11",
	"filesystem target": "/t", "filesystem target.dir": "/t", "filesystem type": "mount",
}

// perLine is how many sub-options go into one command line.
const perLine = 32

// subOptionCases are the command lines for an option.
func subOptionCases(flag string, names []string) []diffCase {
	if slices.Contains(elsewhere, flag) {
		return nil
	}
	frame := frames[flag]
	if frame == "" {
		frame = "--" + flag + " @"
	}
	var given []string
	for _, name := range names {
		if name == "clearxml" || strings.HasPrefix(name, "xpath") {
			continue // see below
		}
		v, special := values[flag+" "+name]
		if !special {
			v, special = values[name]
		}
		switch {
		case special && v == "":
			continue
		case !special:
			v = "1"
		}
		first := strings.ReplaceAll(name, "[0-9]*", "0")
		given = append(given, first+"="+v)
		if second := strings.ReplaceAll(strings.Replace(name, "[0-9]*", "1", 1), "[0-9]*", "0"); second != first {
			given = append(given, second+"="+v)
		}
	}
	var cases []diffCase
	for i := 0; i*perLine < len(given); i++ {
		part := given[i*perLine : min(len(given), (i+1)*perLine)]
		cases = append(cases, diffCase{
			name: fmt.Sprintf("%s/%d", flag, i),
			line: subOptionLine + strings.Replace(frame, "@", strings.Join(part, ","), 1),
		})
	}
	if slices.Contains(names, "xpath[0-9]*.set") && flag != "qemu-commandline" { // whose value goes on over commas
		edits := "xpath0.set=./alpha,xpath0.value=1,xpath1.create=./beta,xpath2.set=./gamma/@b,xpath2.value=2,xpath3.delete=./alpha"
		cases = append(cases, diffCase{name: flag + "/xpath", line: subOptionLine + strings.Replace(frame, "@", edits, 1)})
		if flag != "iothreads" && flag != "channel" { // stock fails, or keeps what it took away
			cases = append(cases, diffCase{name: flag + "/clearxml", line: subOptionLine + strings.Replace(frame, "@", "clearxml=yes,"+edits, 1)})
		}
	}
	return cases
}

const subOptionLine = "--name x --memory 512 --import --osinfo generic --disk none --network none --graphics none "
