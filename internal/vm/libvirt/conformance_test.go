package libvirt

import (
	"testing"

	"github.com/lamina-vm/lamina/internal/libvirttest"
	"github.com/lamina-vm/lamina/internal/vm"
	"github.com/lamina-vm/lamina/internal/vm/vmtest"
)

func TestMain(m *testing.M) { libvirttest.Main(m) }

func TestConformance(t *testing.T) {
	d := libvirttest.Shared(t)
	vmtest.Run(t, func(*testing.T) vm.Driver { return NewDriver(d.URI) })
}
