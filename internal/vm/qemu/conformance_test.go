package qemu

import (
	"testing"

	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/vmtest"
)

func TestConformance(t *testing.T) {
	qemutest.Path(t, program)
	vmtest.Run(t, func(*testing.T) vm.Driver { return New(Options{}) })
}
