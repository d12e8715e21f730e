package virtinstall

import (
	"context"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// installation is where the guest comes from (V3).
type installation struct{}

// newInstallation reads the options of the installation.
func newInstallation(_ *guest) (*installation, error) { return &installation{}, nil }

// detect returns the short id of the OS that the installation media hold, ""
// where nothing is known of them.
func (in *installation) detect(_ context.Context, _ *guest) (string, error) { return "", nil }

// specified reports whether an install method was given.
func (in *installation) specified() bool { return true }

// prepare changes the machine as the installation needs it: called before the
// defaults are set.
func (in *installation) prepare(_ context.Context, _ *installation) error { return nil }

// documents returns the document of the install phase, nil where there is
// none, and the one of the machine.
func (in *installation) documents(_ context.Context, g *guest) (first, final *domxml.Element, err error) {
	return nil, g.dom, nil
}
