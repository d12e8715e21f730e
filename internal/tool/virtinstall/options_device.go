package virtinstall

import (
	"context"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// deviceOptions are the options of devices, in the order in which they take
// effect (V2): disk, network, graphics, controller, input, serial, ...
func deviceOptions() []option { return nil }

// deviceDefaults gives a device of the document what it lacks (V2). kind is
// its element's name.
func (g *guest) deviceDefaults(_ context.Context, _ *domxml.Element) error { return nil }
