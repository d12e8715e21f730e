package qemuimg

// snapshotsTable is the part of the comparison that is about snapshots.
var snapshotsTable []diffGroup
