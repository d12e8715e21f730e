package qemuimg

// rebaseTable is the part of the comparison that is about rebase.
var rebaseTable []diffGroup
