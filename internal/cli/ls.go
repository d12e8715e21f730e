package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/progress"
)

type lsOptions struct {
	json  bool
	names bool
}

func newLs(a *app) *cobra.Command {
	var o lsOptions
	cmd := &cobra.Command{
		Use:     "ls [NAME...] [OPTIONS]",
		Aliases: []string{"list", "ps"},
		Short:   "List the machines",
		Long: `List the machines, or those that the names mean.

DISK is what a machine's own layer takes on the host, USED the part of the
host's memory that is its own (proportional set size).

` + patternHelp,
		Example:           "  lamina ls\n  lamina ls 'w-*' --json\n  lamina ls --names",
		ValidArgsFunction: completeMachines(a, true),
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), a, args) },
	}
	jsonFlag(cmd, &o.json)
	cmd.Flags().BoolVar(&o.names, "names", false, "print the names only, one a line")
	exclusive(cmd, "json", "names")
	connectFlag(cmd, a)
	return cmd
}

func (o *lsOptions) run(ctx context.Context, a *app, patterns []string) error {
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
	t := table{}
	t.add("NAME", "STATE", "TEMPLATE", "CPUS", "MEMORY", "USED", "DISK", "SSH", "PORTS")
	for _, m := range list {
		ssh := ""
		if m.SSHPort != 0 {
			ssh = fmt.Sprintf("127.0.0.1:%d", m.SSHPort)
		}
		t.add(progress.Clean(m.Name), stateText(m), shortDigest(m.Template), strconv.Itoa(m.Spec.CPUs), progress.Bytes(m.Spec.Memory),
			bytesOrNone(m.Memory), progress.Bytes(m.DiskSize), ssh, strings.Join(extraForwards(m), ", "))
	}
	return t.print(a.stdout)
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
