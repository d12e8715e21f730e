//go:build race

package store

// slowdown is what the race detector costs: promises about time are for
// programs without it.
const slowdown = 10
