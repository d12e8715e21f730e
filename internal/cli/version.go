package cli

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/client"
	"github.com/lamina-vm/lamina/internal/home"
)

// versions is what `lamina version --json` prints.
type versions struct {
	Version string       `json:"version"`
	API     int          `json:"api"`
	Go      string       `json:"go"`
	Daemon  *api.Version `json:"daemon"` // null while none runs
}

func newVersion(a *app) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "version [OPTIONS]",
		Short:   "Print the versions of lamina and of its daemon",
		Long:    "Print the versions of lamina and, where one runs, of its daemon. None is started.",
		Example: "  lamina version\n  lamina version --json",
		Args:    words(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versions{Version: api.BuildVersion, API: api.Level, Go: runtime.Version()}
			h, err := home.Find()
			if err != nil {
				return err
			}
			d, err := client.New(h).Version(cmd.Context())
			switch {
			case err == nil:
				v.Daemon = &d
			case !errors.Is(err, client.ErrNoDaemon):
				return err
			}
			if asJSON {
				return a.printJSON(v)
			}
			daemon := "does not run"
			if v.Daemon != nil {
				daemon = fmt.Sprintf("%s (API %d, process %d)", d.Version, d.API, d.PID)
			}
			return a.printf("lamina   %s (API %d, %s)\nlaminad  %s\n", v.Version, v.API, v.Go, daemon)
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}
