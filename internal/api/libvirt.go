package api

import "time"

// What only the machines of a libvirt have so far.

// Snapshot is a state of a machine that it can go back to.
type Snapshot struct {
	Name        string    `json:"name"`
	Parent      string    `json:"parent,omitempty"`
	Description string    `json:"description,omitempty"`
	State       string    `json:"state"` // of the machine then: "running", "shutoff", "disk-snapshot", ...
	CreatedAt   time.Time `json:"createdAt"`
	Current     bool      `json:"current,omitempty"` // what the machine went on from
}

// SnapshotRequest takes a snapshot.
type SnapshotRequest struct {
	Name        string `json:"name,omitempty"` // made up of the time if empty
	Description string `json:"description,omitempty"`
	// DiskOnly takes the disks alone, as overlays beside the present images.
	DiskOnly bool `json:"diskOnly,omitempty"`
}

// MachineEvent is something that happened to a machine.
type MachineEvent struct {
	Time    time.Time `json:"time"` // when it was heard of
	Machine string    `json:"machine"`
	Kind    string    `json:"kind"` // "started", "stopped", "defined", ...
	Reason  string    `json:"reason,omitempty"`
}
