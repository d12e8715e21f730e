package diskcrypt

import (
	"bytes"
	"unicode/utf8"
)

// Passphrase returns the secret of that name as QEMU uses it for encryption:
// it must be text without a byte 0. lookup is nil where there are
// no secrets. The bytes are the caller's to wipe.
func Passphrase(lookup func(id string) ([]byte, error), id string) ([]byte, error) {
	if lookup == nil {
		return nil, stockf("No secret with id '%s'", id)
	}
	b, err := lookup(id)
	if err != nil {
		return nil, err
	}
	if !utf8.Valid(b) || bytes.IndexByte(b, 0) >= 0 {
		clear(b)
		return nil, stockf("Data from secret %s is not valid UTF-8", id)
	}
	return b, nil
}
