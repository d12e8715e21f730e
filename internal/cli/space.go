package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/progress"
	"github.com/lamina-vm/lamina/internal/vm"
)

type spaceOptions struct {
	minFree string
	quota   string
	json    bool
}

func newSpace(a *app) *cobra.Command {
	var o spaceOptions
	cmd := &cobra.Command{
		Use:   "space [OPTIONS]",
		Short: "Show and bound what Lamina takes on the host",
		Long: `Show what this home takes and has, and set its bounds.

Machines whose disks lie on a file system with less than --min-free bytes are
paused before their guests see an error, and go on when there is half as much
again. Beyond --quota nothing new is made and machines are paused too. Without
options nothing changes.`,
		Example: "  lamina space\n  lamina space --min-free 2G --quota 200G\n  lamina space --quota none",
		Args:    words(),
		RunE:    func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), a) },
	}
	cmd.Flags().StringVar(&o.minFree, "min-free", "", "pause machines below this `SIZE`; default sets 512M again")
	cmd.Flags().StringVar(&o.quota, "quota", "", "bound what the home takes to this `SIZE`; none takes the bound away")
	jsonFlag(cmd, &o.json)
	return cmd
}

func (o *spaceOptions) run(ctx context.Context, a *app) error {
	minFree, err := spaceSize("min-free", o.minFree, "default")
	if err != nil {
		return err
	}
	quota, err := spaceSize("quota", o.quota, "none")
	if err != nil {
		return err
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	var s api.Space
	if minFree != nil || quota != nil {
		s, err = c.SetSpace(ctx, api.SpaceChange{MinFree: minFree, Quota: quota})
	} else {
		s, err = c.Space(ctx)
	}
	if err != nil {
		return err
	}
	if o.json {
		return a.printJSON(s)
	}
	return a.printf("%s", spaceText(s))
}

// spaceSize reads a bound: nil where none was given, 0 for the word.
func spaceSize(name, value, word string) (*int64, error) {
	if value == "" {
		return nil, nil
	}
	var n int64
	if value != word {
		var err error
		if n, err = vm.ParseSize(value); err != nil {
			return nil, usagef("--%s: %w", name, err)
		}
		if n == 0 {
			return nil, usagef("--%s %s: say %s", name, value, word)
		}
	}
	return &n, nil
}

func spaceText(s api.Space) string {
	var b strings.Builder
	put := func(key, format string, args ...any) {
		fmt.Fprintf(&b, "%-11s %s\n", key+":", fmt.Sprintf(format, args...))
	}
	put("free", "%s of %s", progress.Bytes(s.Free), progress.Bytes(s.Total))
	used := progress.Bytes(s.Used)
	if s.Limits.Quota > 0 {
		used += " of " + progress.Bytes(s.Limits.Quota)
	}
	put("used", "%s", used)
	put("templates", "%s", progress.Bytes(s.Templates))
	put("warm", "%s", progress.Bytes(s.Warm))
	put("machines", "%s", progress.Bytes(s.Machines))
	put("downloads", "%s", progress.Bytes(s.Downloads))
	put("min free", "%s", progress.Bytes(s.MinFree))
	if len(s.Paused) > 0 {
		put("paused", "%s", progress.Clean(strings.Join(s.Paused, " ")))
	}
	return b.String()
}
