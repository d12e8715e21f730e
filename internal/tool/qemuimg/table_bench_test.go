package qemuimg

// benchTable is the part of the comparison that is about bench.
var benchTable []diffGroup
