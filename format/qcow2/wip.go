package qcow2

type freedRun struct{}
type packCursor struct{}

func (img *Image) repairDirty() error { return unsupportedf("dirty image") }

func (img *Image) Close() error {
	if img.closed.Swap(true) {
		return nil
	}
	return img.file.Close()
}
