package qemu

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/home"
)

func TestLastWords(t *testing.T) {
	for log, want := range map[string]string{
		"":                         "",
		"# 2026 the command\n":     "",
		"qemu-system-x86_64: no\n": "no",
		"qemu-kvm: error: failed to set MSR\nqemu-kvm: kvm.c:1: f: Assertion `x' failed.\n": "failed to set MSR",
		"qemu-system-x86_64: warning: old\n":                                                "warning: old",
		"a\nb\nc\nd\ne\nf\n":                                                                "b; c; d; e; f",
		strings.Repeat("x", 9000) + "\nlast\xff\n":                                          "last?",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, home.QEMULogFile), []byte(log), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := lastWords(dir); got != want {
			t.Errorf("%.40q: %q, want %q", log, got, want)
		}
	}
	if got := lastWords(t.TempDir()); got != "" {
		t.Errorf("no log: %q", got)
	}
}

// TestMemoryFilesGo: QEMU leaves them behind, with the guest's memory in them.
func TestMemoryFilesGo(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{memoryFile, "memory1.ram"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := removeRuntime(dir); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("%v, %v", left, err)
	}
}
