package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/progress"
)

type lsOptions struct {
	json   bool
	names  bool
	long   bool
	labels []string
}

func newLs(a *app) *cobra.Command {
	var o lsOptions
	cmd := &cobra.Command{
		Use:     "ls [NAME...] [OPTIONS]",
		Aliases: []string{"list", "ps"},
		Short:   "List the machines",
		Long: `List the machines, or those that the names mean.

DISK is what a machine's own layer takes on the host, USED the part of the
host's memory that is its own (proportional set size). --long adds the layer that
it lies over (BASE) and its labels.

` + patternHelp,
		Example:           "  lamina ls\n  lamina ls 'w-*' --json\n  lamina ls --names\n  lamina ls --long --label fleet=web",
		ValidArgsFunction: completeMachines(a, true),
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), a, args) },
	}
	jsonFlag(cmd, &o.json)
	cmd.Flags().BoolVar(&o.names, "names", false, "print the names only, one a line")
	cmd.Flags().BoolVar(&o.long, "long", false, "also what each lies over, and its labels")
	cmd.Flags().StringArrayVarP(&o.labels, "label", "l", nil, "only those with the label `KEY=VALUE`; may be repeated")
	exclusive(cmd, "json", "names")
	connectFlag(cmd, a)
	return cmd
}

func (o *lsOptions) run(ctx context.Context, a *app, patterns []string) error {
	labels, err := parseLabels(o.labels)
	if err != nil {
		return err
	}
	c, err := a.backend(ctx)
	if err != nil {
		return err
	}
	var list []api.Machine
	if len(patterns) == 0 {
		list, err = c.Machines(ctx)
	} else {
		list, err = selectMachines(ctx, c, patterns)
	}
	if err != nil {
		return err
	}
	if len(labels) > 0 {
		list = slices.DeleteFunc(list, func(m api.Machine) bool { return !hasLabels(m.Labels, labels) })
	}
	switch {
	case o.json:
		if list == nil {
			list = []api.Machine{}
		}
		return a.printJSON(list)
	case o.names:
		for _, m := range list {
			if err := a.printf("%s\n", m.Name); err != nil {
				return err
			}
		}
		return nil
	}
	if err := machineTable(list, o.long).print(a.stdout); err != nil {
		return err
	}
	for _, line := range pausedText(list) {
		a.say("%s", line)
	}
	return nil
}

// pausedText says why machines are paused: a line for each reason.
func pausedText(list []api.Machine) (out []string) {
	var reasons []string
	of := map[string][]string{}
	for _, m := range list {
		if m.PauseReason == "" {
			continue
		}
		if of[m.PauseReason] == nil {
			reasons = append(reasons, m.PauseReason)
		}
		of[m.PauseReason] = append(of[m.PauseReason], m.Name)
	}
	for _, r := range reasons {
		n := len(of[r])
		names := of[r][:min(n, 4)]
		more := ""
		if n > len(names) {
			more = fmt.Sprintf(" and %d more", n-len(names))
		}
		out = append(out, fmt.Sprintf("%s%s %s paused: %s", strings.Join(names, ", "), more, plural(n, "is", "are"), r))
	}
	return out
}

func machineTable(list []api.Machine, long bool) *table {
	t := &table{}
	heading := []string{"NAME", "STATE", "TEMPLATE", "CPUS", "MEMORY", "USED", "DISK", "SSH", "PORTS"}
	if long {
		heading = append(heading, "BASE", "LABELS")
	}
	t.add(heading...)
	for _, m := range list {
		ssh := ""
		if m.SSHPort != 0 {
			ssh = fmt.Sprintf("127.0.0.1:%d", m.SSHPort)
		}
		row := []string{progress.Clean(m.Name), stateText(m), shortDigest(m.Template), strconv.Itoa(m.Spec.CPUs), progress.Bytes(m.Spec.Memory),
			bytesOrNone(m.Memory), progress.Bytes(m.DiskSize), ssh, strings.Join(extraForwards(m), ", ")}
		if long {
			row = append(row, shortID(m.Base), progress.Clean(labelText(m.Labels)))
		}
		t.add(row...)
	}
	return t
}

// stateText is a machine's state, with what is known beyond it.
func stateText(m api.Machine) string {
	if m.State == api.Starting || m.State == api.Stuck {
		return fmt.Sprintf("%s (%s)", m.State, m.Stage)
	}
	return string(m.State)
}

// shortDigest shortens the digest of a template without a name.
func shortDigest(ref string) string {
	if len(ref) == 64 && strings.Trim(ref, "0123456789abcdef") == "" {
		return ref[:12]
	}
	return ref
}

func bytesOrNone(n int64) string {
	if n == 0 {
		return ""
	}
	return progress.Bytes(n)
}
