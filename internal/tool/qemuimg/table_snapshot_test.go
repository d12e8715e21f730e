package qemuimg

// snapshotTable is the part of the comparison that is about snapshot.
var snapshotTable []diffGroup
