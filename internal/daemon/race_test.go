//go:build race

package daemon

// slowdown is what the race detector costs: promises about time are for
// programs without it.
const slowdown = 10
