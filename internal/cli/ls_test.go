package cli

import (
	"slices"
	"testing"

	"github.com/lamina-vm/lamina/internal/api"
)

// TestPausedText: one line for each reason, with the first names.
func TestPausedText(t *testing.T) {
	var list []api.Machine
	for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
		list = append(list, api.Machine{Name: name, PauseReason: "no space"})
	}
	list[1].PauseReason, list[2].PauseReason = "", "beyond the quota"
	want := []string{"a, d, e, f are paused: no space", "c is paused: beyond the quota"}
	if got := pausedText(list); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	list[1].PauseReason = "no space"
	want[0] = "a, b, d, e and 1 more are paused: no space"
	if got := pausedText(list); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if got := pausedText(nil); got != nil {
		t.Errorf("%q", got)
	}
}
