package qcow2

import (
	"fmt"
	"syscall"

	"github.com/lamina-vm/lamina/block"
)

// stockError is an error whose text is what stock QEMU prints for the same
// cause, so that it is found in manuals and search engines; the sentinel that
// it matches is not part of the text.
type stockError struct {
	text     string
	sentinel error
}

func (e *stockError) Error() string { return e.text }
func (e *stockError) Unwrap() error { return e.sentinel }

// stockf returns an error in stock's words, which begin as sentences do.
func stockf(format string, args ...any) error { return fmt.Errorf(format, args...) }

// corruptf returns an error with stock's wording that matches block.ErrCorrupt.
func corruptf(format string, args ...any) error {
	return &stockError{fmt.Sprintf(format, args...), block.ErrCorrupt}
}

// unsupportedf is corruptf for block.ErrUnsupported.
func unsupportedf(format string, args ...any) error {
	return &stockError{fmt.Sprintf(format, args...), block.ErrUnsupported}
}

// couldNotRead puts stock's words before err, which it matches.
func couldNotRead(what string, err error) error {
	return &stockError{fmt.Sprintf("Could not read %s: %v", what, err), err}
}

// errnoError is an error with the system's number that stock QEMU has for the
// same cause.
type errnoError struct {
	text     string
	sentinel error
	errno    syscall.Errno
}

func (e *errnoError) Error() string   { return e.text }
func (e *errnoError) Unwrap() []error { return []error{e.sentinel, e.errno} }
