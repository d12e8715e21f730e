package qemu

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

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
}

// args returns QEMU's arguments. All runtime files are named relative to the
// machine's folder, QEMU's working directory, as the path of a unix socket is
// limited to 107 bytes.
func (c config) args() []string {
	return slices.Concat(
		c.machineArgs(),
		c.sandboxArgs(),
		c.processArgs(),
		monitorArgs(),
		serialArgs(),
		displayArgs(c.spec.Graphics),
		c.diskArgs(),
		c.nicArgs(),
		rngArgs(c.spec.RNG),
		lifecycleArgs(c.spec.NoReboot),
	)
}

// machineArgs are the board, its processors and its memory.
func (c config) machineArgs() []string {
	s := c.spec
	return []string{
		"-name", escape(s.Name),
		"-uuid", s.UUID,
		"-nodefaults",
		"-no-user-config",
		"-machine", s.Machine + ",vmport=off,dump-guest-core=off",
		"-accel", accelArg(c.accel),
		"-cpu", cpuArg(s.CPU, c.accel),
		"-smp", strconv.Itoa(s.CPUs),
		"-m", fmt.Sprintf("%dM", s.Memory>>20),
	}
}

// tcgBuffer is the most memory in MiB that TCG keeps translated code in. QEMU's
// own bound of 1 GiB is reached only after days, and then held by each machine;
// the small test guest fills 40 MiB by its login.
const tcgBuffer = 128

// accelArg: several virtual CPUs under TCG each get a host thread.
func accelArg(a vm.Accel) string {
	if a == vm.AccelTCG {
		return fmt.Sprintf("tcg,thread=multi,tb-size=%d", tcgBuffer)
	}
	return string(a)
}

// cpuArg: under TCG, where host does not exist, max has what every distribution
// asks of a CPU (x86-64-v3). Smaller models, and max without five-level page
// tables, AVX or SMAP, took between 90 and 101 % of its time to the login of the
// test guest, which is within the noise of the measurement.
func cpuArg(model string, a vm.Accel) string {
	switch {
	case a == vm.AccelTCG && (model == "" || model == "host"):
		return "max"
	case model == "":
		return "host"
	}
	return model
}

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

// serialArgs are the first serial port, ttyS0: a socket for one client, and a
// log of every byte whether or not one is there.
func serialArgs() []string {
	return []string{
		"-chardev", "socket,id=serial0,path=" + home.SerialSock + ",server=on,wait=off,logfile=" + home.SerialLogFile + ",logappend=off",
		"-device", "isa-serial,chardev=serial0",
	}
}

// displayArgs: the machine always has a VGA, as its text screen is read also
// where nobody can look at it.
func displayArgs(g vm.Graphics) []string {
	args := []string{"-display", "none", "-device", "VGA,id=vga0"}
	switch g.VNC {
	case vm.VNCNone:
	case vm.VNCUnix:
		args = append(args, "-vnc", "unix:"+home.VNCSocket)
	default:
		args = append(args, "-vnc", g.VNC)
	}
	return args
}

func rngArgs(on bool) []string {
	if !on {
		return nil
	}
	return []string{
		"-object", "rng-random,id=rng0,filename=/dev/urandom",
		"-device", "virtio-rng-pci,rng=rng0",
	}
}

// lifecycleArgs: firmware boots nothing but what is in the boot order. A guest's
// panic is reported and leaves the screen and the guest's own reboot as they are.
func lifecycleArgs(noReboot bool) []string {
	args := []string{"-boot", "strict=on", "-device", "pvpanic", "-action", "panic=none"}
	if noReboot {
		args = append(args, "-no-reboot")
	}
	return args
}

// escape doubles commas, which end a value in QEMU's key=value lists.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// device writes a -device value: its driver, then the properties in order;
// those with an empty value are left out.
func device(driver string, properties ...string) string {
	var b strings.Builder
	b.WriteString(driver)
	for i := 0; i+1 < len(properties); i += 2 {
		if properties[i+1] != "" {
			b.WriteString("," + properties[i] + "=" + escape(properties[i+1]))
		}
	}
	return b.String()
}

// encode writes a JSON value of the command line.
func encode(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only plain structs of this package get here
	}
	return string(b)
}
