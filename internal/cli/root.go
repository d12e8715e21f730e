package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/nearest"
)

const rootLong = `Lamina takes a disk image to machines at their login prompt, each on a thin
overlay of the image.

Everything that Lamina keeps (templates, machines, downloads, sockets) lies in
LAMINA_HOME if that is set, else in /var/lib/lamina, /var/cache/lamina and
/run/lamina for root and in the XDG folders for a user. Two homes never meet.
The daemon laminad owns the running machines; it is started when a verb needs
it and ends by itself when it has nothing to do.`

const rootExample = `  lamina pull debian:12
  lamina run debian:12 --name web --cpus 2 --memory 1G -p 8080:80
  lamina ssh web
  lamina template import debian.qcow2 --name web-template
  lamina clone web-template 'w-{01..10}' --start
  lamina rm -f 'w-*'`

// The groups of the help.
const (
	groupMachines = "machines"
	groupImages   = "images"
	groupOther    = "other"
)

// newRoot builds the command tree.
func newRoot(a *app) *cobra.Command {
	cobra.EnableCommandSorting = false
	root := &cobra.Command{
		Use:     "lamina",
		Short:   "From a disk image to machines at their login prompt",
		Long:    rootLong,
		Example: rootExample,
		Version: api.BuildVersion,
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownVerb(cmd, args[0])
			}
			cmd.SetOut(a.stderr)
			if err := cmd.Help(); err != nil {
				return err
			}
			return usagef("no verb given")
		},
		SilenceErrors:              true,
		SilenceUsage:               true,
		SuggestionsMinimumDistance: 2,
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetIn(a.stdin)
	root.SetUsageFunc(func(c *cobra.Command) error {
		_, err := io.WriteString(c.OutOrStdout(), usageText(c))
		return err
	})
	root.SetVersionTemplate("lamina {{.Version}}\n")
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetHelpCommand(newHelp())
	root.AddGroup(
		&cobra.Group{ID: groupMachines, Title: "Machines:"},
		&cobra.Group{ID: groupImages, Title: "Images:"},
		&cobra.Group{ID: groupOther, Title: "Other:"})
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(groupMachines, newRun(a), newClone(a), newLs(a), newInfo(a), newSSH(a), newConsole(a),
		newScreen(a), newLogs(a), newStart(a), newStop(a), newKill(a), newAutostart(a), newAttach(a), newDetach(a), newResize(a), newMedia(a), newCheck(a), newSnapshot(a), newFork(a), newCommit(a), newFlatten(a), newRebase(a), newEvents(a), newFleet(a), newInstall(), newRm(a))
	add(groupImages, newPull(a), newTemplate(a), newPrune(a), newSpace(a), newImg())
	add(groupOther, newExplain(a), newDaemon(a), newVersion(a), newCompletion())
	root.AddCommand(newMan())
	finish(a, root)
	return root
}

// finish makes every error before a verb's own work a usage error: unknown
// options, missing words, options that exclude each other.
func finish(a *app, cmd *cobra.Command) {
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(c *cobra.Command, args []string) error {
			a.entered = true
			return run(c, args)
		}
	}
	cmd.DisableFlagsInUseLine = true
	for _, c := range cmd.Commands() {
		finish(a, c)
	}
}

// words requires one word for each of what, which name them in the messages;
// a last one that ends in "..." stands for any number of them.
func words(what ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		many := len(what) > 0 && strings.HasSuffix(what[len(what)-1], "...")
		switch {
		case len(args) < len(what):
			return fmt.Errorf("%s: %s is missing", cmd.Name(), strings.TrimSuffix(what[len(args)], "..."))
		case len(args) > len(what) && !many:
			return fmt.Errorf("%s: one word too many: %q", cmd.Name(), args[len(what)])
		}
		return nil
	}
}

// exclusive refuses two options together.
func exclusive(cmd *cobra.Command, one, other string) {
	before := cmd.PreRunE
	cmd.PreRunE = func(c *cobra.Command, args []string) error {
		if c.Flags().Changed(one) && c.Flags().Changed(other) {
			return fmt.Errorf("--%s and --%s exclude each other", one, other)
		}
		if before != nil {
			return before(c, args)
		}
		return nil
	}
}

// unknownVerb says which verb may have been meant.
func unknownVerb(cmd *cobra.Command, name string) error {
	var known []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			known = append(known, c.Name())
		}
	}
	hint := ""
	if near := nearest.Word(name, known); near != "" {
		hint = "; did you mean " + near + "?"
	}
	return usagef("unknown verb %q%s", name, hint)
}

// verbs makes a command that only holds others.
func verbs(cmd *cobra.Command, under ...*cobra.Command) *cobra.Command {
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return unknownVerb(c, args[0])
		}
		return usagef("%s: no verb given; one of %s", c.Name(), strings.Join(verbNames(c), ", "))
	}
	cmd.AddCommand(under...)
	return cmd
}

func verbNames(cmd *cobra.Command) []string {
	var list []string
	for _, c := range cmd.Commands() {
		list = append(list, c.Name())
	}
	return list
}
