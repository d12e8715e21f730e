package qemuimg

// blockoptsTable is the part of the comparison that is about blockopts.
var blockoptsTable []diffGroup
