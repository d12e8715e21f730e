package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/progress"
	"github.com/lamina-vm/lamina/internal/vm"
)

func newInfo(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "info NAME... [OPTIONS]",
		Aliases:           []string{"inspect", "show"},
		Short:             "Show all that is known of machines",
		Long:              "Show all that is known of machines. With --json it is a list, as of `lamina ls`.\n\n" + patternHelp,
		Example:           "  lamina info web\n  lamina info 'w-{01..03}' --json",
		Args:              words("NAME..."),
		ValidArgsFunction: completeMachines(a, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.info(cmd.Context(), args, asJSON)
		},
	}
	jsonFlag(cmd, &asJSON)
	connectFlag(cmd, a)
	return cmd
}

func (a *app) info(ctx context.Context, patterns []string, asJSON bool) error {
	_, list, err := a.selected(ctx, patterns)
	if err != nil {
		return err
	}
	if asJSON {
		return a.printJSON(list)
	}
	for i, m := range list {
		if i > 0 {
			if err := a.printf("\n"); err != nil {
				return err
			}
		}
		if err := a.printf("%s", infoText(m)); err != nil {
			return err
		}
		if m.Problem != nil {
			a.explain(m.Problem)
		}
	}
	return nil
}

// infoText is what a person reads of a machine.
// layerText is how a layer is referred to: by its digest, or by its id.
func layerText(key string) string {
	if len(key) == 64 {
		return "sha256 " + shortID(key)
	}
	return key
}

func infoText(m api.Machine) string {
	var b strings.Builder
	put := func(key, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s %s\n", key+":", progress.Clean(fmt.Sprintf(format, args...)))
	}
	put("name", "%s", m.Name)
	put("state", "%s", stateText(m))
	if m.PauseReason != "" {
		put("paused", "%s", m.PauseReason)
	}
	if m.LoginIn > 0 {
		put("login", "%s after its start", progress.Duration(m.LoginIn))
	}
	if w := m.Warmth; w != nil {
		from := "a fork"
		if w.Unit != "" {
			from = "warm unit " + w.Unit
		}
		put("warm", "from %s: prompt after %s, ready after %s", from, progress.Duration(w.Prompt), progress.Duration(w.Ready))
		if w.Problem != "" {
			put("problem", "%s", w.Problem)
		}
	}
	if i := m.Identity; i != nil {
		put("identity", "host name %s, machine-id %s, addresses %s", i.Hostname, i.MachineID, strings.Join(i.Addresses, " "))
		for _, k := range i.HostKeys {
			put("host key", "%s", k)
		}
	}
	if m.Digest != "" {
		put("template", "%s", shortDigest(m.Template))
	}
	if m.Base != "" {
		put("over", "%s", layerText(m.Base))
	}
	if len(m.Labels) > 0 {
		put("labels", "%s", labelText(m.Labels))
	}
	if d := m.Definition; d != nil && d.Phase != api.Installed {
		put("install", "%s", d.Phase)
	}
	if m.Autostart {
		put("autostart", "with the host")
	}
	if !m.CreatedAt.IsZero() {
		put("made", "%s", m.CreatedAt.Local().Format(time.DateTime))
	}
	put("cpus", "%d", m.Spec.CPUs)
	if m.Memory > 0 {
		put("memory", "%s, %s of the host's are its own", progress.Bytes(m.Spec.Memory), progress.Bytes(m.Memory))
	} else {
		put("memory", "%s", progress.Bytes(m.Spec.Memory))
	}
	put("machine", "%s", m.Spec.Machine)
	for i, d := range m.Spec.Disks {
		what := string(d.Device)
		if d.Device == vm.DeviceDisk && home.IsDisk(filepath.Base(d.Path)) {
			what += fmt.Sprintf(" of %s", progress.Bytes(m.DiskSize))
		}
		put("disk", "%s %s, %s, %s, cache %s: %s", m.Spec.DiskNames()[i], what, d.Bus, d.Format, d.Cache, d.Path)
	}
	for _, n := range m.Spec.NICs {
		put("network", "%s %s", n.Model, n.MAC)
	}
	if m.Dir != "" {
		put("folder", "%s", m.Dir)
	}
	if r := m.Run; r != nil {
		if r.PID != 0 { // libvirt does not tell
			put("process", "%d, since %s", r.PID, r.StartedAt.Local().Format(time.DateTime))
		}
		accel := string(r.Accel)
		if r.AccelNote != "" {
			accel += " (" + r.AccelNote + ")"
		}
		put("runs by", "%s", strings.TrimSuffix(strings.TrimSpace("QEMU "+r.QEMU)+", "+accel, ", "))
		if r.VNC != "" {
			put("vnc", "%s", r.VNC)
		}
	}
	if m.SSHPort != 0 {
		put("ssh", "127.0.0.1:%d, user %s: lamina ssh %s", m.SSHPort, orNone(m.User), m.Name)
	}
	for _, f := range extraForwards(m) {
		put("port", "%s", f)
	}
	if m.Exit != nil && m.Run == nil {
		if m.State == api.Defined {
			put("not started", "%s", m.Exit.Reason)
		} else {
			put("ended", "%s: %s", m.Exit.State, m.Exit.Reason)
		}
	}
	return b.String()
}

func orNone(s string) string {
	if s == "" {
		return "of the image"
	}
	return s
}
