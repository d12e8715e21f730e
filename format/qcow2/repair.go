package qcow2

func (img *Image) repairDirty() error { return unsupportedf("dirty") }
