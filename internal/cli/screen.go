package cli

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/progress"
)

func newScreen(a *app) *cobra.Command {
	var png string
	cmd := &cobra.Command{
		Use:     "screen NAME [OPTIONS]",
		Aliases: []string{"screenshot"},
		Short:   "Show what is on the screen of a machine",
		Long: `Print the text on the machine's VGA screen, or write a picture of it. In a graphics
mode there is no text; use --png.`,
		Example:           "  lamina screen web\n  lamina screen web --png web.png",
		Args:              words("NAME"),
		ValidArgsFunction: completeMachines(a, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.screen(cmd.Context(), args[0], png)
		},
	}
	cmd.Flags().StringVar(&png, "png", "", "write a picture to `FILE`; - for stdout")
	connectFlag(cmd, a)
	return cmd
}

func (a *app) screen(ctx context.Context, name, png string) error {
	c, err := a.backend(ctx)
	if err != nil {
		return err
	}
	format := "text"
	if png != "" {
		format = "png"
	}
	b, err := c.Screen(ctx, name, format)
	if err != nil {
		return machineHint(ctx, c, name, err)
	}
	switch png {
	case "":
		lines := strings.Split(strings.TrimRight(string(b), "\n "), "\n")
		for _, l := range lines {
			if err := a.printf("%s\n", progress.Clean(l)); err != nil {
				return err
			}
		}
		return nil
	case "-":
		_, err := a.stdout.Write(b)
		return err
	}
	if err := os.WriteFile(png, b, 0o644); err != nil {
		return fmt.Errorf("the picture: %w", err)
	}
	return nil
}
