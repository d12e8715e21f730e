package virtinstall

// storage is the part of a host that keeps disks (V3).
type storage interface{}

// disk is what is known of the storage behind a devices/disk element: what
// exists, what is to be made (V3).
type disk struct{}
