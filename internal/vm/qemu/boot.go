package qemu

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lamina-vm/lamina/internal/vm"
)

// bootArgs: firmware boots nothing but what is in the boot order.
func (c config) bootArgs() []string {
	b := c.spec.Boot
	p := []string{"strict", "on", "menu", string(b.Menu)}
	if b.MenuTimeout > 0 {
		p = append(p, "splash-time", strconv.Itoa(b.MenuTimeout))
	}
	if b.RebootTimeout != nil {
		p = append(p, "reboot-timeout", strconv.Itoa(*b.RebootTimeout))
	}
	args := []string{"-boot", list(p...)}
	for _, x := range []struct{ option, value string }{{"-kernel", b.Kernel}, {"-initrd", b.Initrd}, {"-append", b.Cmdline}} {
		if x.value != "" {
			args = append(args, x.option, x.value)
		}
	}
	return args
}

// clockArgs are the guest's clock; nothing where all is QEMU's default. now is
// the time of the start.
func (c config) clockArgs() []string {
	k := c.spec.Clock
	var base, track, drift string
	switch k.Offset {
	case "localtime", "timezone": // the time zone is in QEMU's environment
		base = "localtime"
	case "utc":
		base = "utc"
	case "variable":
		t := c.now.UTC()
		if k.Basis == "localtime" {
			t = c.now.Local()
		}
		base = t.Add(time.Duration(k.Adjustment) * time.Second).Format("2006-01-02T15:04:05")
	}
	var args []string
	for _, t := range k.Timers {
		switch {
		case t.Name == "rtc":
			track = map[string]string{"guest": "vm", "wall": "host"}[t.Track]
			drift = map[string]string{"catchup": "slew", "delay": "none"}[t.TickPolicy]
		case t.Name == "pit" && t.TickPolicy != "" && c.accel == vm.AccelKVM: // QEMU's own PIT has no choice
			args = append(args, "-global", "kvm-pit.lost_tick_policy="+t.TickPolicy)
		}
	}
	if rtc := list("base", base, "clock", track, "driftfix", drift); rtc != "" {
		args = append([]string{"-rtc", rtc}, args...)
	}
	return args
}

// sysinfoArgs are what the firmware tells of the machine.
func (c config) sysinfoArgs() []string {
	var args []string
	table := func(kind int, entries map[string]string) {
		if len(entries) == 0 {
			return
		}
		p := []string{"type", strconv.Itoa(kind)}
		for _, k := range slices.Sorted(maps.Keys(entries)) {
			p = append(p, k, entries[k])
		}
		args = append(args, "-smbios", list(p...))
	}
	i := c.spec.SysInfo
	table(0, i.BIOS)
	table(1, i.System)
	for _, b := range i.BaseBoard {
		table(2, b)
	}
	table(3, i.Chassis)
	if len(i.OEM) > 0 {
		p := []string{"type", "11"}
		for _, v := range i.OEM {
			p = append(p, "value", v)
		}
		args = append(args, "-smbios", list(p...))
	}
	for _, w := range i.FWCfg {
		args = append(args, "-fw_cfg", list("name", w.Name, "string", w.Value, "file", w.File))
	}
	return args
}

// lifecycleArgs: a guest's panic is reported and leaves the screen and the guest's
// own reboot as they are, unless told otherwise.
func (c config) lifecycleArgs() []string {
	s := c.spec
	var args []string
	switch p := s.Panic; {
	case p == nil || p.Model == "" || p.Model == "isa":
		args = append(args, "-device", "pvpanic")
	}
	action := "panic=none"
	if s.OnCrash == vm.ActionDestroy {
		action = "panic=shutdown"
	}
	if s.OnPoweroff == vm.ActionPreserve {
		action += ",shutdown=pause"
	}
	if len(s.Watchdogs) > 0 && s.Watchdogs[0].Action != "" {
		action += ",watchdog=" + s.Watchdogs[0].Action
	}
	args = append(args, "-action", action)
	if s.NoReboot || s.OnReboot == vm.ActionDestroy || s.OnReboot == vm.ActionPreserve {
		args = append(args, "-no-reboot")
	}
	return args
}

// environment is QEMU's, beside the daemon's own.
func (c config) environment() []string {
	var env []string
	if c.spec.Clock.Offset == "timezone" {
		env = append(env, "TZ="+c.spec.Clock.Timezone)
	}
	for _, k := range slices.Sorted(maps.Keys(c.spec.QEMU.Env)) {
		env = append(env, fmt.Sprintf("%s=%s", k, c.spec.QEMU.Env[k]))
	}
	return env
}

func splitComma(s string) []string { return strings.Split(s, ",") }
