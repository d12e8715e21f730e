package qemuimg

// subclustersTable is the part of the comparison that is about subclusters.
var subclustersTable []diffGroup
