// Package programs builds lamina and laminad for the tests that run them as
// people do:
//
//	var bin string
//
//	func TestMain(m *testing.M) { programs.Main(m, &bin) }
package programs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Main builds the programs, static as they are shipped, sets *bin to the folder
// with lamina, laminad and the name virt-install, which any user may enter,
// runs the tests and exits. The folder is removed.
func Main(m *testing.M, bin *string) {
	os.Exit(run(m, bin))
}

func run(m *testing.M, bin *string) int {
	dir, err := os.MkdirTemp("", "lamina-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := build(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	*bin = dir
	return m.Run()
}

func build(dir string) error {
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir+"/",
		"github.com/lamina-vm/lamina/cmd/lamina", "github.com/lamina-vm/lamina/cmd/laminad")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return os.Symlink("lamina", filepath.Join(dir, "virt-install"))
}
