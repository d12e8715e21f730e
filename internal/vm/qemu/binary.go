package qemu

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// program is the name of the QEMU that runs x86-64 machines.
const program = "qemu-system-x86_64"

// elsewhere is where distributions keep it outside PATH.
var elsewhere = []string{"/usr/libexec/qemu-kvm", "/usr/bin/qemu-kvm"}

// findBinary returns the path of the QEMU to run.
func findBinary(configured string) (string, error) {
	if configured != "" {
		p, err := exec.LookPath(configured)
		if err != nil {
			return "", fmt.Errorf("QEMU: %w", err)
		}
		return filepath.Abs(p)
	}
	if p, err := exec.LookPath(program); err == nil {
		return filepath.Abs(p)
	}
	for _, p := range elsewhere {
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", fmt.Errorf("%s is not installed: install the package qemu-system-x86 (Debian, Ubuntu), qemu-system-x86-core (Fedora) or qemu-kvm (RHEL and its kin): %w", program, exec.ErrNotFound)
}
