package qemutest

import (
	"os/exec"
	"strings"
	"testing"
)

// SaveVM makes an internal snapshot of a qcow2 image that also holds the state
// of a (tiny, empty) machine, which only QEMU itself can make.
func SaveVM(t testing.TB, file, name string) {
	t.Helper()
	monitor(t, file, "savevm "+name)
}

// LoadVM has QEMU load what SaveVM, or the same machine, made.
func LoadVM(t testing.TB, file, name string) {
	t.Helper()
	monitor(t, file, "loadvm "+name)
}

// monitor runs one command in the monitor of the machine, which does not run.
func monitor(t testing.TB, file, command string) {
	t.Helper()
	cmd := exec.Command(Path(t, "qemu-system-x86_64"), "-accel", "tcg", "-S", "-nodefaults", "-display", "none", "-m", "4",
		"-machine", "microvm", "-monitor", "stdio", "-drive", "if=none,format=qcow2,file="+strings.ReplaceAll(file, ",", ",,"))
	cmd.Stdin = strings.NewReader(command + "\nquit\n")
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(out), "Error") {
		t.Fatalf("%s of %s: %v\n%s", command, file, err, out)
	}
}
