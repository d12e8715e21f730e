package qemuimg

// bitmapTable is the part of the comparison that is about bitmap.
var bitmapTable []diffGroup
