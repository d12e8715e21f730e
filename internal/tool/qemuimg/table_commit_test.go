package qemuimg

// commitTable is the part of the comparison that is about commit.
var commitTable []diffGroup
