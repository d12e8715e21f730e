package qemuimg

// luksTable is the part of the comparison that is about luks.
var luksTable []diffGroup
