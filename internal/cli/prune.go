package cli

import (
	"bufio"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/progress"
)

type pruneOptions struct {
	api.PruneRequest
	olderThan string
	yes       bool
	json      bool
}

func newPrune(a *app) *cobra.Command {
	var o pruneOptions
	cmd := &cobra.Command{
		Use:   "prune [OPTIONS]",
		Short: "Remove what nothing needs any more",
		Long: `Show what nothing needs any more, with its size and the reason, ask, and remove
it: frozen layers without machines, warm units that do not fit this host any more,
unfinished downloads and other leftovers. --templates adds templates without
machines, --all downloads and warm units that could be used again.

What the store does not know is never removed; it is listed.`,
		Example: "  lamina prune\n  lamina prune --dry-run --templates --older-than 30d\n  lamina prune --all --yes",
		Args:    words(),
		RunE:    func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), a) },
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.DryRun, "dry-run", "n", false, "only show what would go")
	fs.BoolVar(&o.Templates, "templates", false, "also templates that no machine needs")
	fs.BoolVar(&o.All, "all", false, "also downloads and warm units that could be used again")
	fs.StringVar(&o.olderThan, "older-than", "", "spare what was made or used within `TIME`, such as 12h or 30d")
	fs.BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	jsonFlag(cmd, &o.json)
	return cmd
}

func (o *pruneOptions) run(ctx context.Context, a *app) error {
	var err error
	if o.OlderThan, err = parseAge(o.olderThan); err != nil {
		return usagef("--older-than: %w", err)
	}
	asks := !o.DryRun && !o.yes
	if asks && (o.json || !term.IsTerminal(int(a.stdin.Fd()))) {
		return usagef("there is nobody to ask: say --yes, or look with --dry-run")
	}
	c, err := a.connect(ctx)
	if err != nil {
		return err
	}
	req := o.PruneRequest
	req.DryRun = o.DryRun || asks
	res, err := c.Prune(ctx, req)
	if err != nil {
		return err
	}
	if asks {
		if err := a.printPrune(res, true); err != nil || wouldGo(res) == 0 {
			return err
		}
		if yes, err := a.confirm(ctx, "Remove this"); err != nil || !yes {
			return err
		}
		if res, err = c.Prune(ctx, o.PruneRequest); err != nil {
			return err
		}
		return a.pruned(res)
	}
	switch {
	case o.json:
		if err := a.printJSON(res); err != nil {
			return err
		}
	default:
		if err := a.printPrune(res, o.DryRun); err != nil {
			return err
		}
	}
	if o.DryRun {
		return nil
	}
	if o.json {
		return pruneFailed(res)
	}
	return a.pruned(res)
}

// wouldGo counts what is to be removed.
func wouldGo(res api.PruneResult) int {
	n := 0
	for _, it := range res.Items {
		if it.Note == "" {
			n++
		}
	}
	return n
}

// printPrune lists what goes, or would.
func (a *app) printPrune(res api.PruneResult, would bool) error {
	if len(res.Items) > 0 {
		t := table{}
		t.add("KIND", "NAME", "SIZE", "WHY")
		for _, it := range res.Items {
			why := it.Why
			if it.Note != "" {
				why += "; kept: " + it.Note
			}
			t.add(it.Kind, progress.Clean(shortDigest(it.Name)), progress.Bytes(it.Size), progress.Clean(why))
		}
		if err := t.print(a.stdout); err != nil {
			return err
		}
	}
	for _, k := range res.Kept {
		if err := a.printf("left alone, as nothing is known of it: %s\n", progress.Clean(k)); err != nil {
			return err
		}
	}
	if !would {
		return nil
	}
	if n := wouldGo(res); n > 0 {
		return a.printf("%d %s, %s\n", n, plural(n, "thing", "things"), progress.Bytes(res.Freed))
	}
	return a.printf("there is nothing to remove\n")
}

// pruned says what was freed, and what stayed although it was to go.
func (a *app) pruned(res api.PruneResult) error {
	for _, it := range res.Items {
		if !it.Gone && it.Note != "" {
			a.say("lamina: %s %s: %s", it.Kind, progress.Clean(it.Name), progress.Clean(it.Note))
		}
	}
	if err := a.printf("%s freed\n", progress.Bytes(res.Freed)); err != nil {
		return err
	}
	return pruneFailed(res)
}

func pruneFailed(res api.PruneResult) error {
	for _, it := range res.Items {
		if !it.Gone {
			return silentError{}
		}
	}
	return nil
}

// confirm asks a person on the terminal; only y and yes are that.
func (a *app) confirm(ctx context.Context, question string) (bool, error) {
	_, _ = fmt.Fprintf(a.stderr, "%s? [y/N] ", question)
	line := make(chan string, 1)
	go func() { // the read cannot be ended; the program ends soon
		text, _ := bufio.NewReader(a.stdin).ReadString('\n') // nothing is no
		line <- text
	}()
	select {
	case text := <-line:
		text = strings.ToLower(strings.TrimSpace(text))
		return text == "y" || text == "yes", nil
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}

// parseAge reads a time as time.ParseDuration does, and days: "30d".
func parseAge(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	var d time.Duration
	var err error
	if days, ok := strings.CutSuffix(s, "d"); ok {
		var n int
		if n, err = strconv.Atoi(days); err == nil && (n < 0 || n > 36500) {
			err = fmt.Errorf("%q is out of range", s)
		}
		d = time.Duration(n) * 24 * time.Hour
	} else {
		d, err = time.ParseDuration(s)
	}
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is no time such as 90m, 12h or 30d", s)
	}
	return d, nil
}
