package boot

import (
	"context"
	"errors"
)

// Watch follows a boot until the login prompt, until it is plain that the
// prompt will not come, or until ctx ends (then the error is its cause; a
// boot that stops is a Result with a Problem, not an error). Call Close on a
// followed log to end the goroutine that reads it.
func Watch(ctx context.Context, src Sources, o Options) (Result, error) {
	if src.Serial == nil {
		return Result{}, errors.New("boot: no serial log to watch")
	}
	return Result{}, errors.New("boot: not built yet")
}
