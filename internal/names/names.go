// Package names says what machines and templates may be called, expands the
// patterns that name many of them, and makes up names that can be remembered.
package names

import (
	"errors"
	"fmt"
	"strings"
)

// MaxLength is the longest name, in bytes. It is the longest host name label
// (RFC 1035, 2.3.4), since a machine's name is its guest's host name.
const MaxLength = 63

// ErrInvalid is wrapped by every error of this package.
var ErrInvalid = errors.New("invalid name")

// CheckMachine says whether name can be a machine's: 1 to 63 ASCII letters,
// digits, '-', '_' and '.', the first and the last one a letter or digit.
func CheckMachine(name string) error {
	return check("machine", name, "-_.")
}

// CheckTemplate is [CheckMachine] for templates, which may also contain ':'
// ("debian:12"). A name that reads like a digest is refused, as a digest is
// the other way to name a template.
func CheckTemplate(name string) error {
	if err := check("template", name, "-_.:"); err != nil {
		return err
	}
	if IsDigest(name) {
		return fmt.Errorf("%w: template %q reads like a digest", ErrInvalid, name)
	}
	return nil
}

// IsDigest says whether s can be a digest, or the beginning of one that is
// long enough to refer to it: 12 to 64 lower-case hex digits.
func IsDigest(s string) bool {
	if len(s) < 12 || len(s) > 64 {
		return false
	}
	return strings.Trim(s, "0123456789abcdef") == ""
}

// IsUser says whether s can be the name of a guest's user. A guest is not trusted: what
// it says must not become an option of a program.
func IsUser(s string) bool {
	if s == "" || len(s) > 32 || s[0] == '-' {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool { return !alnum(r) && !strings.ContainsRune("_-.", r) }) < 0
}

func check(kind, name, punctuation string) error {
	switch {
	case name == "":
		return fmt.Errorf("%w: a %s needs a name", ErrInvalid, kind)
	case len(name) > MaxLength:
		return fmt.Errorf("%w: %s %.20q... has %d characters, at most %d are allowed", ErrInvalid, kind, name, len(name), MaxLength)
	}
	for i, r := range name {
		if !alnum(r) && !strings.ContainsRune(punctuation, r) {
			return fmt.Errorf("%w: %s %q: %q is not allowed; use letters, digits and %s", ErrInvalid, kind, name, r, punctuation)
		}
		if (i == 0 || i == len(name)-1) && !alnum(r) {
			return fmt.Errorf("%w: %s %q must begin and end with a letter or digit", ErrInvalid, kind, name)
		}
	}
	return nil
}

func alnum(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
}

// Hostname returns the host name for a machine's name: lower case, with '-'
// for what a host name label may not contain (RFC 1123, 2.1).
func Hostname(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		case alnum(r):
			return r
		}
		return '-'
	}, name)
}
