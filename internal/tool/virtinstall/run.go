package virtinstall

import (
	"context"
	"errors"
)

// runner is the part of a host that runs machines (V3).
type runner interface{}

// run is one command line, from its words to the machine (V1).
func run(_ context.Context, args []string, _ Streams) error {
	if _, err := parseArguments(args); err != nil {
		return err
	}
	return errors.New("nothing runs yet")
}
