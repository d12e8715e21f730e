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
	cmd := exec.Command(Path(t, "qemu-system-x86_64"), "-accel", "tcg", "-S", "-nodefaults", "-display", "none", "-m", "4",
		"-machine", "microvm", "-monitor", "stdio", "-drive", "if=none,format=qcow2,file="+strings.ReplaceAll(file, ",", ",,"))
	cmd.Stdin = strings.NewReader("savevm " + name + "\nquit\n")
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(out), "Error") {
		t.Fatalf("savevm %s: %v\n%s", file, err, out)
	}
}
