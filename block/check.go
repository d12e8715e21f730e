package block

import "context"

// Repair says what Check may change.
type Repair uint8

const (
	RepairNone  Repair = iota // read only
	RepairLeaks               // free clusters that nothing refers to
	RepairAll                 // also wrong refcounts and references; may choose between two damaged states
)

// CheckOptions are the choices of [Checker].Check.
type CheckOptions struct {
	Repair Repair
	// Report receives each finding as the line that qemu-img check prints
	// for it (without the newline), on the calling goroutine. May be nil.
	Report func(line string)
}

// CheckResult counts what a check found, in the terms of
// `qemu-img check --output=json`.
type CheckResult struct {
	ImageEndOffset     int64
	Corruptions        int64 // still there after the repair
	Leaks              int64 // still there after the repair
	CheckErrors        int64 // things that could not be checked
	CorruptionsFixed   int64
	LeaksFixed         int64
	AllocatedClusters  int64
	TotalClusters      int64
	FragmentedClusters int64
	CompressedClusters int64
	HasClusterCounts   bool // the four cluster counts are meaningful
}

// Checker is a format node whose metadata can be checked and repaired. Check
// must not run concurrently with writes. The error is for a check that could
// not be carried out; findings are in the result.
type Checker interface {
	Check(ctx context.Context, opts CheckOptions) (CheckResult, error)
}
