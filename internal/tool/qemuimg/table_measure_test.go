package qemuimg

// measureTable is the part of the comparison that is about measure.
var measureTable []diffGroup
