package domain

// What means nothing outside of libvirt, and is passed over without a word.

// ofDomain: metadata is for management programs (what libosinfo says there is
// Spec.OS's source elsewhere).
var ofDomain = []string{"@id", "metadata"}

// ofDevice: the alias is libvirt's name for the running device. An address
// is where libvirt put it; drive addresses, the ones that decide what the
// guest calls a disk, are read.
var ofDevice = []string{"alias"}

// ofDisk: how libvirt treats the disk in its own snapshots, and the number
// that it gives to images of the chain.
var ofDisk = []string{"@snapshot"}

// noteworthy addresses would be the person's choice where they were written by
// hand, which cannot be told from libvirt's own.
const addressNote = "the place on the bus is QEMU's choice"

// device settles what every device has.
func (n *node) device() {
	n.ignore(ofDevice...)
	if a := n.child("address"); a != nil && !a.whole {
		if t := a.e.Attr("type"); n.e.Name != "disk" && n.e.Name != "hostdev" || t != "drive" {
			a.whole = true
			n.r.note(a.path, addressNote, useLibvirt+" where it matters")
		}
	}
	n.one("acpi").refuse("ACPI indexes of devices are not set", useLibvirt)
}
