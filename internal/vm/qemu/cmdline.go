package qemu

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

// config is everything that a command line depends on.
type config struct {
	spec    vm.Spec // complete and valid, its host ports chosen
	accel   vm.Accel
	sandbox bool
	// isBlockDevice tells a host's block device from a file.
	isBlockDevice func(path string) bool

	firmware firmware
	// taps are the descriptors of the cards' tap devices, as QEMU has them, by
	// card; those of others are empty.
	taps    [][]int
	vhost   map[int]bool // cards whose packets the host's kernel moves
	vsockFD int          // of /dev/vhost-vsock
	thaw    *thaw        // nil for a start from nothing
	now     time.Time    // of the start
}

// args returns QEMU's arguments. All runtime files are named relative to the
// machine's folder, QEMU's working directory, as the path of a unix socket is
// limited to 107 bytes.
func (c config) args() []string {
	if c.thaw != nil {
		c.spec = c.thaw.layout.apply(c.spec)
	}
	args := slices.Concat(
		c.machineArgs(),
		c.firmwareArgs(),
		c.featureArgs(),
		c.clockArgs(),
		c.sysinfoArgs(),
		c.sandboxArgs(),
		c.processArgs(),
		monitorArgs(),
		c.controllerArgs(),
		c.serialArgs(),
		c.charArgs(),
		c.displayArgs(),
		c.diskArgs(),
		c.nicArgs(),
		c.rngArgs(),
		c.inputArgs(),
		c.soundArgs(),
		c.watchArgs(),
		c.vsockArgs(),
		c.filesystemArgs(),
		c.hostArgs(),
		c.bootArgs(),
		c.lifecycleArgs(),
		c.incomingArgs(),
		c.spec.QEMU.Args,
	)
	if c.thaw != nil {
		c.thaw.layout.place(args)
	}
	return args
}

// diskID and nicID are what QEMU calls the drives and cards: those of a machine
// that goes on are called as they were.
func (c config) diskID(index int) string {
	if c.thaw != nil && index < len(c.thaw.layout.Disks) {
		return c.thaw.layout.Disks[index]
	}
	return driveID(index)
}

func (c config) nicID(index int) string {
	if c.thaw != nil && index < len(c.thaw.layout.NICs) {
		return c.thaw.layout.NICs[index]
	}
	return nicID(index)
}

// tcgBuffer is the most memory in MiB that TCG keeps translated code in. QEMU's
// own bound of 1 GiB is reached only after days, and then held by each machine;
// the small test guest fills 40 MiB by its login.
const tcgBuffer = 128

// sandboxArgs are the seccomp filter: QEMU needs no other program, user or
// scheduling class once it runs.
func (c config) sandboxArgs() []string {
	if !c.sandbox {
		return nil
	}
	return []string{"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"}
}

// processArgs: the guest does not execute before the monitor says so, so that
// no event is missed and the process is on record by then.
func (c config) processArgs() []string {
	return []string{"-pidfile", home.PIDFile, "-S"}
}

func monitorArgs() []string {
	return []string{
		"-chardev", "socket,id=qmp,path=" + home.QMPSocket + ",server=on,wait=off",
		"-mon", "chardev=qmp,mode=control",
	}
}

// escape doubles commas, which end a value in QEMU's key=value lists.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// device writes a -device value: its driver, then the properties in order;
// those with an empty value are left out.
func device(driver string, properties ...string) string {
	var b strings.Builder
	b.WriteString(driver)
	for i := 0; i+1 < len(properties); i += 2 {
		switch v := properties[i+1]; v {
		case "":
		case noValue:
			b.WriteString("," + properties[i] + "=")
		default:
			b.WriteString("," + properties[i] + "=" + escape(v))
		}
	}
	return b.String()
}

// noValue is the value of a property that is said to be empty.
const noValue = "\x00"

// object writes an option whose first property (driver, type, qom-type) goes
// without its name.
func object(properties []string) string { return device(properties[1], properties[2:]...) }

// encode writes a JSON value of the command line.
func encode(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only plain structs of this package get here
	}
	return string(b)
}
