package qcow2

import "sync"

// inflatedClusters is how many decompressed clusters are remembered, so that
// small reads of one compressed cluster decompress it once. With clusters of
// 2 MiB it is 16 MiB.
const inflatedClusters = 8

// inflatedCache remembers the last decompressed clusters by their L2 entry.
// An entry is dropped when the cluster's reference to it is; nobody reads it
// then, because that needs the guest cluster alone.
type inflatedCache struct {
	mu      sync.Mutex
	entries [inflatedClusters]inflatedCluster
	next    int
}

type inflatedCluster struct {
	entry l2Entry // 0: empty
	data  []byte
}

// read copies from offset in of the cluster of e to p and reports whether it
// is remembered.
func (c *inflatedCache) read(p []byte, in int64, e l2Entry) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.entries {
		if c.entries[i].entry == e {
			copy(p, c.entries[i].data[in:])
			return true
		}
	}
	return false
}

// put remembers a cluster, whose bytes the cache then owns, and returns the
// buffer that it no longer needs, if any.
func (c *inflatedCache) put(e l2Entry, data []byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.entries {
		if c.entries[i].entry == e {
			return data
		}
	}
	old := c.entries[c.next].data
	c.entries[c.next] = inflatedCluster{e, data}
	c.next = (c.next + 1) % inflatedClusters
	return old
}

// drop forgets a cluster.
func (c *inflatedCache) drop(e l2Entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.entries {
		if c.entries[i].entry == e {
			c.entries[i].entry = 0
		}
	}
}

// clear forgets all clusters.
func (c *inflatedCache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.entries {
		c.entries[i].entry = 0
	}
}
