package diskcrypt

import (
	"errors"
	"fmt"

	"github.com/lamina-vm/lamina/block"
)

// ErrPassphrase: the passphrase opens no key slot.
var ErrPassphrase = errors.New("Invalid password, cannot unlock any keyslot")

// textError has stock's words as its text and matches a sentinel.
type textError struct {
	text     string
	sentinel error
}

func (e *textError) Error() string { return e.text }
func (e *textError) Unwrap() error { return e.sentinel }

func corruptf(format string, args ...any) error {
	return &textError{fmt.Sprintf(format, args...), block.ErrCorrupt}
}

func unsupportedf(format string, args ...any) error {
	return &textError{fmt.Sprintf(format, args...), block.ErrUnsupported}
}
