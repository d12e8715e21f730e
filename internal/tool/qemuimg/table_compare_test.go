package qemuimg

// compareTable is the part of the comparison that is about compare.
var compareTable []diffGroup
