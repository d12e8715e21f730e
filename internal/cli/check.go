package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/progress"
	"github.com/lamina-vm/lamina/internal/vm/advice"
)

// elsewhere is a [Backend] whose machines' files may be another host's.
type elsewhere interface {
	// Here says why they are not this host's, nil where they are.
	Here() error
}

// verdict is what `lamina check` says of one machine.
type verdict struct {
	Machine  string           `json:"machine"`
	Findings []advice.Finding `json:"findings"`
}

func newCheck(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check NAME... [OPTIONS]",
		Short: "Say what machines' choices mean on this host",
		Long: `Look at machines and at the file systems that their disks lie on, and say what
holds: what cannot work, what may cost data, and what is as it should be. The exit
status is 1 where something cannot work. ` + "`lamina explain`" + ` says what the choices
mean; ` + "`lamina img check`" + ` checks an image.

` + patternHelp,
		Example:           "  lamina check web\n  lamina check '*' --json",
		Args:              words("NAME..."),
		ValidArgsFunction: completeMachines(a, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.check(cmd.Context(), args, asJSON)
		},
	}
	jsonFlag(cmd, &asJSON)
	connectFlag(cmd, a)
	return cmd
}

func (a *app) check(ctx context.Context, patterns []string, asJSON bool) error {
	b, list, err := a.selected(ctx, patterns)
	if err != nil {
		return err
	}
	if e, ok := b.(elsewhere); ok {
		if err := e.Here(); err != nil {
			return err
		}
	}
	all := make([]verdict, 0, len(list))
	bad := false
	for _, m := range list {
		v := verdict{Machine: m.Name, Findings: advice.Check(m.Spec, advice.Inspect(m.Spec))}
		if v.Findings == nil {
			v.Findings = []advice.Finding{}
		}
		for _, f := range v.Findings {
			bad = bad || f.Level == advice.Problem
		}
		all = append(all, v)
	}
	if asJSON {
		err = a.printJSON(all)
	} else {
		err = a.printVerdicts(all)
	}
	if err == nil && bad {
		return silentError{}
	}
	return err
}

func (a *app) printVerdicts(all []verdict) error {
	var b strings.Builder
	for i, v := range all {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(progress.Clean(v.Machine) + "\n")
		subject := ""
		for _, f := range v.Findings {
			if f.Subject != subject {
				subject = f.Subject
				b.WriteString("  " + progress.Clean(subject) + "\n")
			}
			fmt.Fprintf(&b, "    %-8s %s\n", f.Level, strings.TrimLeft(wrap(progress.Clean(f.Text), "             "), " "))
			if f.Remedy != "" {
				b.WriteString(wrap("try: "+progress.Clean(f.Remedy), "             ") + "\n")
			}
		}
	}
	return a.printf("%s", b.String())
}
