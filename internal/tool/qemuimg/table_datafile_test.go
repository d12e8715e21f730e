package qemuimg

// datafileTable is the part of the comparison that is about datafile.
var datafileTable []diffGroup
