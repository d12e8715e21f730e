package qcow2

// readGuest reads the guest's bytes at guest offset off, which lie at host.
func (img *Image) readGuest(p []byte, off int64, host hostOffset) error {
	return img.readData(p, host)
}

// writeGuest writes the guest's bytes at guest offset off to host.
func (img *Image) writeGuest(p []byte, off int64, host hostOffset) error {
	return img.writeData(p, host)
}
