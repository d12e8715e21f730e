package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/client"
	"github.com/lamina-vm/lamina/internal/progress"
)

// FleetFunc reads the document of a fleet from a file, or from in if that is "-".
type FleetFunc func(name string, in io.Reader) (api.Fleet, error)

func newFleet(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fleet VERB",
		Short: "Keep declared sets of machines",
		Long: `A fleet is a set of machines as a document declares it: groups of equal machines,
each of a template. Applying the document makes, replaces and removes machines until
they are what it says; applying it again does nothing. What was interrupted is gone
on with.

  name: shop
  groups:
    - name: web               # its machines are web-1, web-2, web-3; or:
      names: web-{01..20}     #   a pattern that makes as many names at least
      template: debian-web    # moved to another template, it replaces all
      count: 3
      cpus: 2
      memory: 2G
      ports: ["8080:80"]      # machine i has host port 8080 + i - 1
      userDataFile: web.yaml  # beside this file; or userData: |
      rollout: {surge: 1, maxUnavailable: 0}
      health: {check: http, port: 80, path: /up, timeout: 5m}

More keys of a group: diskSize, bus, cache, accel, machine, vnc, user, password,
sshKeys (keys, or files of them), userDataTemplate (true: userData is filled in for
each machine), noSeed, hostname, labels, warm (auto, cold, warm), ksm, balloon.
health.check is login, ready, agent, tcp, http or none. Only labels, count, health,
rollout and warm change without a replacement, and a replaced machine's disk goes
with it.`,
		Example: "  lamina fleet plan fleet.yaml\n  lamina fleet apply fleet.yaml\n  lamina fleet ls",
	}
	return verbs(cmd, newFleetPlan(a), newFleetApply(a), newFleetLs(a), newFleetInfo(a), newFleetWait(a), newFleetRm(a))
}

// completeDocuments completes the file of a fleet.
func completeDocuments(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return []string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt
}

// readFleet reads a document. Where this program cannot, it becomes laminad, which
// does it all: a verb calls this before it has done anything.
func (a *app) readFleet(name string) (api.Fleet, error) {
	if a.heavy.ReadFleet == nil {
		return api.Fleet{}, client.Exec(client.ToolVerbs, os.Args[1:]...)
	}
	f, err := a.heavy.ReadFleet(name, a.stdin)
	if err != nil {
		return f, err
	}
	return f, a.letIn(&f)
}

// letIn gives each group the keys that a machine of `lamina run` lets in: its own,
// or else the person's, and this home's. Those that the document does not name are
// apart: another person, or another key of the same, is no reason to replace machines.
func (a *app) letIn(f *api.Fleet) error {
	quiet := a.quiet
	defer func() { a.quiet = quiet }()
	a.quiet = true // which keys is not to be told for each group
	for i := range f.Groups {
		g := &f.Groups[i]
		if g.NoSeed {
			continue
		}
		all, err := (&machineFlags{sshKeys: g.SSHKeys}).keys(a, g.Password != "")
		if err != nil {
			return fmt.Errorf("group %s: %w", g.Name, err)
		}
		named := slices.Compact(slices.Sorted(slices.Values(g.SSHKeys)))
		g.SSHKeys = named
		g.OwnKeys = slices.DeleteFunc(all, func(k string) bool { return slices.Contains(named, k) })
	}
	return nil
}

func newFleetPlan(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "plan FILE [OPTIONS]",
		Short: "Show what applying a fleet's document would do",
		Long: `Show what applying a fleet's document would do: which machines are made, replaced,
removed, started or waited for, in which order, and why. Steps of one wave are done
beside each other. FILE may be - for the standard input.`,
		Example:           "  lamina fleet plan fleet.yaml\n  lamina fleet plan fleet.yaml --json",
		Args:              words("FILE"),
		ValidArgsFunction: completeDocuments,
		RunE: func(cmd *cobra.Command, args []string) error {
			_, plan, _, err := a.planFleet(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(plan)
			}
			return printPlan(a.stdout, plan, len(plan.Steps))
		},
	}
	jsonFlag(cmd, &asJSON)
	ownOnly(cmd, a, "fleets are of machines on plain QEMU")
	return cmd
}

// planFleet reads a document and asks for its plan.
func (a *app) planFleet(ctx context.Context, file string) (api.Fleet, api.FleetPlan, *client.Client, error) {
	f, err := a.readFleet(file)
	if err != nil {
		return f, api.FleetPlan{}, nil, err
	}
	c, err := a.connect(ctx)
	if err != nil {
		return f, api.FleetPlan{}, nil, err
	}
	plan, err := c.PlanFleet(ctx, api.FleetRequest{Fleet: f})
	return f, plan, c, err
}

// printPlan writes a plan: what it comes to, and its first steps.
func printPlan(w io.Writer, p api.FleetPlan, most int) error {
	if _, err := fmt.Fprintf(w, "fleet %s: %s\n", p.Fleet, planSummary(p)); err != nil || len(p.Steps) == 0 {
		return err
	}
	t := table{}
	t.add("WAVE", "DO", "MACHINE", "GROUP", "WHY")
	for _, s := range p.Steps[:min(most, len(p.Steps))] {
		t.add(strconv.Itoa(s.Wave), s.Do, s.Machine, s.Group, progress.Clean(s.Why))
	}
	if err := t.print(w); err != nil {
		return err
	}
	if more := len(p.Steps) - most; more > 0 {
		_, err := fmt.Fprintf(w, "... and %d more steps: `lamina fleet plan` shows all\n", more)
		return err
	}
	return nil
}

// planSummary is what a plan comes to, in a line.
func planSummary(p api.FleetPlan) string {
	if len(p.Steps) == 0 {
		return fmt.Sprintf("nothing to do, %d %s as they are to be", p.Kept, plural(p.Kept, "machine", "machines"))
	}
	kinds := []string{"make", "replace", "remove", "make for the time of the rollout", "start", "start again", "wait for", "label"}
	counts := make(map[string]int)
	did := make(map[string]string) // by machine: its steps, in order
	var order []string
	for _, s := range p.Steps {
		if did[s.Machine] == "" {
			order = append(order, s.Machine)
		}
		did[s.Machine] += " " + s.Do
	}
	for _, m := range order {
		counts[planKind(did[m])]++
	}
	var out []string
	for _, k := range kinds {
		if n := counts[k]; n > 0 {
			out = append(out, fmt.Sprintf("%s %d", k, n))
		}
	}
	return fmt.Sprintf("%s; keep %d", strings.Join(out, ", "), p.Kept)
}

// planKind is what the steps of one machine come to.
func planKind(steps string) string {
	created, removed := strings.Index(steps, "create"), strings.Index(steps, "remove")
	switch {
	case created >= 0 && removed > created:
		return "make for the time of the rollout"
	case created >= 0 && removed >= 0:
		return "replace"
	case created >= 0:
		return "make"
	case removed >= 0:
		return "remove"
	case strings.Contains(steps, "stop"):
		return "start again"
	case strings.Contains(steps, "start"):
		return "start"
	case strings.Contains(steps, "await"):
		return "wait for"
	}
	return "label"
}

type fleetApplyOptions struct {
	yes, dryRun, json bool
}

func newFleetApply(a *app) *cobra.Command {
	var o fleetApplyOptions
	cmd := &cobra.Command{
		Use:   "apply FILE [OPTIONS]",
		Short: "Make the machines of a fleet what its document says",
		Long: `Show what is to be done for a fleet's document, ask, do it, and say when the
machines are as they are to be. FILE may be - for the standard input, with --yes.

Ctrl-C ends the waiting, not the apply. A rollout stops where a new machine is not
healthy in time: the machines that were not replaced yet stay. Applying a mended
document goes on from there.`,
		Example:           "  lamina fleet apply fleet.yaml\n  lamina fleet apply fleet.yaml --dry-run\n  lamina fleet apply fleet.yaml --yes --json",
		Args:              words("FILE"),
		ValidArgsFunction: completeDocuments,
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), a, args[0]) },
	}
	cmd.Flags().BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVarP(&o.dryRun, "dry-run", "n", false, "only show what would be done")
	jsonFlag(cmd, &o.json)
	quietFlag(cmd, a)
	ownOnly(cmd, a, "fleets are of machines on plain QEMU")
	return cmd
}

// planShown is how many steps of a plan are shown before it is carried out.
const planShown = 40

func (o *fleetApplyOptions) run(ctx context.Context, a *app, file string) error {
	asks := !o.yes && !o.dryRun
	if asks && (o.json || file == "-" || !term.IsTerminal(int(a.stdin.Fd()))) {
		return usagef("there is nobody to ask: say --yes, or look with --dry-run")
	}
	f, plan, c, err := a.planFleet(ctx, file)
	if err != nil {
		return err
	}
	switch {
	case o.dryRun && o.json:
		return a.printJSON(plan)
	case o.dryRun:
		return printPlan(a.stdout, plan, len(plan.Steps))
	case asks || !a.quiet:
		if err := printPlan(a.stderr, plan, planShown); err != nil {
			return err
		}
	}
	if asks && len(plan.Steps) > 0 {
		if yes, err := a.confirm(ctx, "Do this"); err != nil || !yes {
			return err
		}
	}
	fo := a.follow(f.Name)
	state, err := c.ApplyFleet(ctx, api.FleetRequest{Fleet: f, Hash: plan.Hash}, fo.event)
	fo.end()
	return a.fleetDone(ctx, f.Name, state, err, o.json)
}

// fleetDone says how what was under way with a fleet has ended.
func (a *app) fleetDone(ctx context.Context, name string, state api.FleetState, err error, asJSON bool) error {
	if ctx.Err() != nil && errors.Is(err, context.Cause(ctx)) {
		a.note("lamina: fleet %s is still being applied: `lamina fleet wait %s` waits for it", name, name)
		return err
	}
	if err != nil {
		return err
	}
	if asJSON {
		return a.printJSON(state)
	}
	if state.State == api.FleetRemoved {
		return a.printf("fleet %s is removed\n", state.Name)
	}
	return a.printf("fleet %s is %s: %d of %d %s healthy\n", state.Name, state.State, state.Healthy, state.Wanted, plural(state.Wanted, "machine", "machines"))
}

func newFleetLs(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "ls [OPTIONS]",
		Aliases: []string{"list"},
		Short:   "List the fleets",
		Long:    "List the fleets. HEALTHY is how many of the wanted machines pass the checks of\ntheir groups now.",
		Example: "  lamina fleet ls\n  lamina fleet ls --json",
		Args:    words(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			list, err := c.Fleets(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(list)
			}
			t := table{}
			t.add("NAME", "STATE", "HEALTHY", "MACHINES", "GROUPS", "SINCE")
			for _, f := range list {
				t.add(f.Name, f.State, fmt.Sprintf("%d/%d", f.Healthy, f.Wanted), strconv.Itoa(len(f.Machines)), strings.Join(groupNames(f.Fleet), " "), localTime(f.At))
			}
			return t.print(a.stdout)
		},
	}
	jsonFlag(cmd, &asJSON)
	ownOnly(cmd, a, "fleets are of machines on plain QEMU")
	return cmd
}

func localTime(t time.Time) string { return t.Local().Format("2006-01-02 15:04") }

func groupNames(f api.Fleet) (out []string) {
	for _, g := range f.Groups {
		out = append(out, g.Name)
	}
	return out
}

func newFleetInfo(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "info NAME [OPTIONS]",
		Short:             "Show all that is known of a fleet",
		Long:              "Show all that is known of a fleet: its state, why it failed, its groups and its\nmachines.",
		Example:           "  lamina fleet info shop\n  lamina fleet info shop --json",
		Args:              words("NAME"),
		ValidArgsFunction: completeFleets(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			f, err := c.Fleet(cmd.Context(), args[0])
			if err != nil {
				return fleetHint(cmd.Context(), c, args[0], err)
			}
			if asJSON {
				return a.printJSON(f)
			}
			return a.printFleet(f)
		},
	}
	jsonFlag(cmd, &asJSON)
	ownOnly(cmd, a, "fleets are of machines on plain QEMU")
	return cmd
}

func (a *app) printFleet(f api.FleetState) error {
	var b strings.Builder
	fmt.Fprintf(&b, "name:     %s\nstate:    %s since %s\n", f.Name, f.State, localTime(f.At))
	if f.Problem != "" {
		fmt.Fprintf(&b, "problem:  %s\n", progress.Clean(f.Problem))
	}
	fmt.Fprintf(&b, "healthy:  %d of %d\n", f.Healthy, f.Wanted)
	for _, g := range f.Fleet.Groups {
		fmt.Fprintf(&b, "group:    %s: %d of %s (%.12s), surge %d, at most %d unavailable, healthy by %s\n",
			g.Name, g.Count, g.Template, g.Digest, g.Rollout.Surge, g.Rollout.MaxUnavailable, healthText(g.Health))
	}
	if err := a.printf("%s", b.String()); err != nil || len(f.Machines) == 0 {
		return err
	}
	t := table{}
	t.add("MACHINE", "GROUP", "STATE", "TEMPLATE", "SSH", "PORTS")
	for _, m := range f.Machines {
		ssh := ""
		if m.SSHPort != 0 {
			ssh = fmt.Sprintf("127.0.0.1:%d", m.SSHPort)
		}
		t.add(m.Name, m.Labels["group"], stateText(m), fleetTemplate(f.Fleet, m), ssh, strings.Join(extraForwards(m), ", "))
	}
	return t.print(a.stdout)
}

// fleetTemplate is what a machine is made of, and whether that is what its group's
// template stands for.
func fleetTemplate(f api.Fleet, m api.Machine) string {
	for _, g := range f.Groups {
		if g.Name == m.Labels["group"] && len(g.Digest) >= 16 && !strings.HasPrefix(m.Labels["fleet-mark"], g.Digest[:16]) {
			return fmt.Sprintf("%s (%.12s)", shortDigest(m.Template), m.Labels["fleet-mark"])
		}
	}
	return shortDigest(m.Template)
}

// healthText is a check in words.
func healthText(h api.Health) string {
	switch h.Check {
	case "tcp", "http":
		return fmt.Sprintf("%s on port %d%s within %s", h.Check, h.Port, h.Path, h.Timeout)
	}
	return fmt.Sprintf("%s within %s", h.Check, h.Timeout)
}

func newFleetWait(a *app) *cobra.Command {
	var asJSON bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:               "wait NAME [OPTIONS]",
		Short:             "Wait until nothing is under way with a fleet",
		Long:              "Wait until the apply of a fleet that is under way is over, or return at once where\nnone is. The exit status is 1 if it failed.",
		Example:           "  lamina fleet wait shop\n  lamina fleet wait shop --timeout 10m",
		Args:              words("NAME"),
		ValidArgsFunction: completeFleets(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			if timeout < 0 {
				return usagef("--timeout %s: it cannot be negative", timeout)
			}
			ctx := cmd.Context()
			c, err := a.connect(ctx)
			if err != nil {
				return err
			}
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("fleet %s is still not done after %s", args[0], timeout))
				defer cancel()
			}
			fo := a.follow(args[0])
			state, err := c.WaitFleet(ctx, args[0], fo.event)
			fo.end()
			return a.fleetDone(ctx, args[0], state, fleetHint(ctx, c, args[0], err), asJSON)
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "give up after `TIME`, such as 90s or 5m (default never)")
	jsonFlag(cmd, &asJSON)
	quietFlag(cmd, a)
	ownOnly(cmd, a, "fleets are of machines on plain QEMU")
	return cmd
}

func newFleetRm(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "rm NAME [OPTIONS]",
		Aliases:           []string{"remove", "delete"},
		Short:             "Remove a fleet with its machines",
		Long:              "Remove a fleet with its machines and their disks. Running machines are only removed\nwith --force, which switches them off, and breaks off an apply that is under way.",
		Example:           "  lamina fleet rm shop --force",
		Args:              words("NAME"),
		ValidArgsFunction: completeFleets(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect(cmd.Context())
			if err != nil {
				return err
			}
			fo := a.follow(args[0])
			err = c.RemoveFleet(cmd.Context(), args[0], force, fo.event)
			fo.end()
			return fleetHint(cmd.Context(), c, args[0], err)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also running machines")
	quietFlag(cmd, a)
	ownOnly(cmd, a, "fleets are of machines on plain QEMU")
	return cmd
}

// fleetHint replaces the daemon's "not found" by one that says what may have been
// meant.
func fleetHint(ctx context.Context, c *client.Client, name string, err error) error {
	var refused *api.Error
	if !errors.As(err, &refused) || refused.Code != api.CodeNotFound {
		return err
	}
	list, lerr := c.Fleets(ctx)
	if lerr != nil {
		return err
	}
	var known []string
	for _, f := range list {
		known = append(known, f.Name)
	}
	return noSuch("fleet", name, known)
}

// completeFleets completes the name of a fleet.
func completeFleets(a *app) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		c, err := a.connect(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		list, err := c.Fleets(cmd.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []string
		for _, f := range list {
			out = append(out, cobra.CompletionWithDesc(f.Name, f.State))
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}
