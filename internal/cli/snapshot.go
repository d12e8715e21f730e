package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
)

func newSnapshot(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot VERB",
		Short: "Take and use the snapshots of a libvirt's machines",
		Long: `Take snapshots of machines of a libvirt, list them, go back to one, delete them.
A snapshot of a running machine holds its memory too. Lamina's own machines have
none: clone them, or take a snapshot of a stopped one's disk with
` + "`lamina img snapshot`" + `.`,
		Example: "  lamina snapshot list web --connect qemu:///system\n  lamina snapshot create web before-upgrade --connect qemu:///system",
	}
	return verbs(cmd, newSnapshotList(a), newSnapshotCreate(a), newSnapshotRevert(a), newSnapshotDelete(a))
}

// snapshots returns where the snapshots of a verb are.
func (a *app) snapshots(ctx context.Context) (snapshotter, error) {
	b, err := a.backend(ctx)
	if err != nil {
		return nil, err
	}
	s, ok := b.(snapshotter)
	if !ok {
		return nil, api.Errorf(api.CodeInvalid, "Lamina's own machines have no snapshots: give the libvirt with --connect, clone the machine, or use `lamina img snapshot` on the disk of a stopped one")
	}
	return s, nil
}

func newSnapshotList(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "list NAME [OPTIONS]",
		Aliases:           []string{"ls"},
		Short:             "List the snapshots of a machine",
		Long:              "List the snapshots of a machine, each behind the one that it was taken after.",
		Example:           "  lamina snapshot list web --connect qemu:///system",
		Args:              words("NAME"),
		ValidArgsFunction: completeMachines(a, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.snapshots(cmd.Context())
			if err != nil {
				return err
			}
			list, err := s.Snapshots(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(list)
			}
			t := table{}
			t.add("NAME", "MADE", "STATE", "PARENT")
			for _, o := range list {
				t.add(o.Name, o.CreatedAt.Local().Format(time.DateTime), o.State, o.Parent)
			}
			return t.print(a.stdout)
		},
	}
	jsonFlag(cmd, &asJSON)
	connectFlag(cmd, a)
	return cmd
}

func newSnapshotCreate(a *app) *cobra.Command {
	var req api.SnapshotRequest
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "create NAME [SNAPSHOT] [OPTIONS]",
		Short: "Take a snapshot of a machine",
		Long: `Take a snapshot of a machine: its disks, and its memory if it runs. With --disk-only
the disks alone, as overlays beside the present images.`,
		Example:           "  lamina snapshot create web before-upgrade --connect qemu:///system",
		Args:              cobra.RangeArgs(1, 2),
		ValidArgsFunction: completeMachines(a, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.snapshots(cmd.Context())
			if err != nil {
				return err
			}
			if len(args) > 1 {
				req.Name = args[1]
			}
			made, err := s.CreateSnapshot(cmd.Context(), args[0], req)
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(made)
			}
			return a.printf("%s\n", made.Name)
		},
	}
	cmd.Flags().StringVar(&req.Description, "description", "", "`TEXT` that is kept with it")
	cmd.Flags().BoolVar(&req.DiskOnly, "disk-only", false, "without the memory, as overlays")
	jsonFlag(cmd, &asJSON)
	connectFlag(cmd, a)
	return cmd
}

func newSnapshotRevert(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "revert NAME SNAPSHOT [OPTIONS]",
		Short: "Put a machine back to a snapshot",
		Long: `Put a machine back to what it was when the snapshot was taken. What it has written
since then is lost.`,
		Example:           "  lamina snapshot revert web before-upgrade --connect qemu:///system",
		Args:              words("NAME", "SNAPSHOT"),
		ValidArgsFunction: completeSnapshots(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.snapshots(cmd.Context())
			if err != nil {
				return err
			}
			return s.RevertSnapshot(cmd.Context(), args[0], args[1], force)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also where QEMU has to be started anew for it")
	connectFlag(cmd, a)
	return cmd
}

func newSnapshotDelete(a *app) *cobra.Command {
	var children bool
	cmd := &cobra.Command{
		Use:               "delete NAME SNAPSHOT [OPTIONS]",
		Aliases:           []string{"rm"},
		Short:             "Delete a snapshot",
		Long:              "Delete a snapshot. The machine stays as it is.",
		Example:           "  lamina snapshot delete web before-upgrade --connect qemu:///system",
		Args:              words("NAME", "SNAPSHOT"),
		ValidArgsFunction: completeSnapshots(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.snapshots(cmd.Context())
			if err != nil {
				return err
			}
			return s.DeleteSnapshot(cmd.Context(), args[0], args[1], children)
		},
	}
	cmd.Flags().BoolVar(&children, "children", false, "also those that were taken after it")
	connectFlag(cmd, a)
	return cmd
}

// completeSnapshots completes a machine's name and then one of its snapshots.
func completeSnapshots(a *app) cobra.CompletionFunc {
	machines := completeMachines(a, false)
	return func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) != 1 {
			return machines(cmd, args, word)
		}
		var out []string
		if s, err := a.snapshots(cmd.Context()); err == nil {
			list, _ := s.Snapshots(cmd.Context(), args[0]) // nothing to complete with
			for _, o := range list {
				out = append(out, o.Name)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}
