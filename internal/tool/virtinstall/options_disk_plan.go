package virtinstall

import "github.com/lamina-vm/lamina/internal/vm/domxml"

// planDisk notes what one --disk says of the storage (V3: delete this file).
func (g *guest) planDisk(_ *domxml.Element, _ *suboptions) error { return nil }
