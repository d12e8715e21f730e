package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/lamina-vm/lamina/internal/client"
	"github.com/lamina-vm/lamina/internal/fleet/document"
	"github.com/lamina-vm/lamina/internal/scripttest"
)

func TestMain(m *testing.M) {
	// lamina becomes laminad by this program's path, and a name of the tool.
	if base := filepath.Base(os.Args[0]); os.Getenv("LAMINA_HOME") != "" && !strings.HasSuffix(os.Args[0], "/"+base) {
		if base == client.ToolVerbs && slices.Contains(os.Args, "fleet") {
			os.Exit(Over(os.Args[1:], Heavy{ReadFleet: document.Read}))
		}
		switch base {
		case client.ToolInstall, client.ToolVirtInstall, client.ToolVerbs:
			_, _ = os.Stdout.WriteString(base + ": " + strings.Join(os.Args[1:], " ") + "\n  -n, --name NAME\n  --os-variant, --osinfo OS\n")
			os.Exit(0)
		}
	}
	testscript.Main(m, map[string]func(){
		"lamina":       main,
		"qemu-img":     main,
		"virt-install": main,
		"laminad":      runFakeDaemon,
		"ssh":          fakeSSH,
	})
}

func main() { os.Exit(Main(os.Args)) }

// fakeSSH prints its command line and ends with the status that the command
// "exit N" asks for.
func fakeSSH() {
	_, _ = os.Stdout.WriteString(strings.Join(os.Args[1:], "\n") + "\n")
	if last := os.Args[len(os.Args)-1]; last == "exit 7" {
		os.Exit(7)
	}
}

// TestScripts runs the command lines of testdata/script against a daemon that
// keeps the contract of the API without guests.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			// A socket's path is short; the script's own folder may not be.
			dir, err := os.MkdirTemp("", "lamina-cli-")
			if err != nil {
				return err
			}
			env.Defer(func() {
				// The daemon of the script would wait for its idle time.
				program := filepath.Join(strings.Split(env.Getenv("PATH"), string(filepath.ListSeparator))[0], "lamina")
				stop := exec.Command(program, "daemon", "stop")
				stop.Env = append(os.Environ(), "LAMINA_HOME="+dir)
				_ = stop.Run() // there may be none
				_ = os.RemoveAll(dir)
			})
			env.Setenv("LAMINA_HOME", dir)
			env.Setenv("HOME", filepath.Join(env.WorkDir, "user"))
			env.Setenv("NO_COLOR", "1")
			return os.MkdirAll(filepath.Join(env.WorkDir, "user", ".ssh"), 0o700)
		},
		Cmds:                scripttest.Commands(),
		RequireExplicitExec: true,
	})
}
