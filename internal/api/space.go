package api

import "time"

// PruneRequest removes what nothing needs.
type PruneRequest struct {
	DryRun bool `json:"dryRun,omitempty"` // only say what would go
	// Templates also removes templates without machines (of a fleet neither);
	// All downloads and warm units also that could be used again.
	Templates bool `json:"templates,omitempty"`
	All       bool `json:"all,omitempty"`
	// OlderThan spares what was made or used more recently.
	OlderThan time.Duration `json:"olderThan,omitempty"`
}

// Pruned is one thing that was, or would be, removed.
type Pruned struct {
	Kind string `json:"kind"` // template, layer, warm, download, leftover
	Name string `json:"name"`
	Path string `json:"path,omitempty"`
	Size int64  `json:"size"` // bytes on the host
	Why  string `json:"why"`
	Gone bool   `json:"gone"` // removed
	// Note says why it was not removed although it was asked for.
	Note string `json:"note,omitempty"`
}

// PruneResult is what came of a prune.
type PruneResult struct {
	Items []Pruned `json:"items"`
	Freed int64    `json:"freed"` // bytes; with DryRun what would be
	// Kept are files in the store that no record names, and that are not
	// removed: a person's, or of a lost database.
	Kept []string `json:"kept,omitempty"`
}

// SpaceLimits are the bounds of a home. 0 is no bound for Quota, and the default
// for the others.
type SpaceLimits struct {
	// MinFree: machines whose disks lie on a file system with less than this many bytes
	// free are paused before they see an error; default 512 MiB. They go on when
	// there is half as much again.
	MinFree int64 `json:"minFree"`
	// Quota bounds what the home takes on the host, in bytes: beyond it nothing new is
	// made, and machines are paused as above.
	Quota int64 `json:"quota,omitempty"`
}

// SpaceChange sets bounds of a home: what is not given stays as it is.
type SpaceChange struct {
	MinFree *int64 `json:"minFree,omitempty"`
	Quota   *int64 `json:"quota,omitempty"`
}

// Space is what a home takes and has.
type Space struct {
	Limits    SpaceLimits `json:"limits"`  // as they were set
	MinFree   int64       `json:"minFree"` // what is kept free: Limits.MinFree, or the default here
	Free      int64       `json:"free"`    // of the file system
	Total     int64       `json:"total"`
	Used      int64       `json:"used"` // by the home
	Templates int64       `json:"templates"`
	Warm      int64       `json:"warm"`
	Machines  int64       `json:"machines"`
	Downloads int64       `json:"downloads"`
	Paused    []string    `json:"paused,omitempty"` // machines that are paused for lack of space
}
