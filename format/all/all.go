// Package all is the list of image formats, in probe order.
package all

import (
	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/format/luks"
	"github.com/lamina-vm/lamina/format/qcow2"
	"github.com/lamina-vm/lamina/format/raw"
)

// Drivers returns every format driver. Probing asks all and takes the best
// score, the first of equals; raw, which takes anything, is last.
func Drivers() []format.Driver {
	return []format.Driver{qcow2.Driver{}, luks.Driver{}, raw.Driver{}}
}

// Find returns the driver of that name, or nil.
func Find(name string) format.Driver {
	for _, d := range Drivers() {
		if d.Name() == name {
			return d
		}
	}
	return nil
}

// Probe returns the driver that the first bytes of a file speak for. prefix
// is at most format.ProbeSize bytes.
func Probe(prefix []byte, filename string) format.Driver {
	var best format.Driver
	score := 0
	for _, d := range Drivers() {
		if s := d.Probe(prefix, filename); s > score {
			best, score = d, s
		}
	}
	return best
}
