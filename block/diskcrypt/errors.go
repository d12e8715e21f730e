package diskcrypt

import (
	"fmt"

	"github.com/lamina-vm/lamina/block"
)

// ErrPassphrase: the passphrase opens no key slot.
var ErrPassphrase = stockf("Invalid password, cannot unlock any keyslot")

// stockf returns an error in stock's words, which begin as sentences do.
func stockf(format string, args ...any) error { return fmt.Errorf(format, args...) }

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
