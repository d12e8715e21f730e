package qemuimg

// bitmapsTable is the part of the comparison that is about bitmaps.
var bitmapsTable []diffGroup
