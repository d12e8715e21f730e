package qemuimg

// ddTable is the part of the comparison that is about dd.
var ddTable []diffGroup
