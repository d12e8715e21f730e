// Package qcow2 is the format driver of QEMU's copy-on-write images, versions
// 2 and 3, after the specification docs/interop/qcow2 of QEMU.
//
// The package has two halves. header.go, extension.go, l1.go, l2.go, subcluster.go,
// refcount.go and snapshot.go turn bytes into checked values and back and do
// no I/O. The rest are the paths over them: open, read, write, allocate,
// discard, zero, flush, create, resize, extents, info and check.
//
// # What power loss can do
//
// Metadata is changed in memory and written by one function, [Image.Flush]'s
// writeback, in this order with a barrier between the steps: guest data and
// refcounts; refcount table; L2 tables; L1 table. Only then are the clusters
// that nothing refers to any more given back. At every instant, therefore, a
// reference on disk points at a cluster whose refcount on disk is high enough
// and whose bytes are there; what a crash can leave is leaked clusters.
package qcow2
