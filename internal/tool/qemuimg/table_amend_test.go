package qemuimg

// amendTable is the part of the comparison that is about amend.
var amendTable []diffGroup
