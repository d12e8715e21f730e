package format

import (
	"errors"
	"math"
	"strconv"
	"strings"

	"github.com/lamina-vm/lamina/block"
)

// OptionError says what is wrong with an option or its value, in the words of
// the stock tool. It matches [block.ErrUnsupported].
type OptionError struct{ Text string }

// Error returns the stock tool's wording.
func (e *OptionError) Error() string { return e.Text }

// Is makes the error match [block.ErrUnsupported].
func (e *OptionError) Is(target error) bool { return target == block.ErrUnsupported }

// Errors of [ParseSize].
var (
	ErrNotSize    = errors.New("not a size")
	ErrSizeTooBig = errors.New("size is too big")
)

// ParseSize reads a number of bytes as QEMU does: decimal, with a fraction
// and one of the suffixes b k M G T P E in either case (powers of 1024), or
// hexadecimal. A fraction is rounded to the next byte.
func ParseSize(s string) (uint64, error) {
	s = strings.TrimLeft(s, " \t\n\v\f\r")
	s = strings.TrimPrefix(s, "+")
	if hex, ok := strings.CutPrefix(strings.ToLower(s), "0x"); ok {
		end := 0
		for end < len(hex) && strings.IndexByte("0123456789abcdef", hex[end]) >= 0 {
			end++
		}
		n, err := strconv.ParseUint(hex[:end], 16, 64)
		if err != nil {
			return 0, sizeError(err)
		}
		return scaleSize(n, 0, hex[end:])
	}
	end := 0
	for end < len(s) && s[end] >= '0' && s[end] <= '9' {
		end++
	}
	if end == 0 {
		return 0, ErrNotSize
	}
	n, err := strconv.ParseUint(s[:end], 10, 64)
	if err != nil {
		return 0, sizeError(err)
	}
	s = s[end:]
	fraction := 0.0
	if strings.HasPrefix(s, ".") {
		end = 1
		for end < len(s) && s[end] >= '0' && s[end] <= '9' {
			end++
		}
		if end > 1 {
			if fraction, err = strconv.ParseFloat("0"+s[:end], 64); err != nil {
				return 0, ErrNotSize
			}
		}
		s = s[end:]
	}
	return scaleSize(n, fraction, s)
}

// scaleSize multiplies by a suffix.
func scaleSize(n uint64, fraction float64, s string) (uint64, error) {
	shift := 0
	if s != "" {
		i := strings.IndexByte("bkmgtpe", s[0]|0x20)
		if i < 0 || len(s) > 1 {
			return 0, ErrNotSize
		}
		shift = 10 * i
	}
	if fraction != 0 && shift == 0 {
		return 0, ErrNotSize
	}
	if n > math.MaxUint64>>shift {
		return 0, ErrSizeTooBig
	}
	n <<= shift
	part := uint64(fraction*float64(uint64(1)<<shift) + 0.5)
	if n > math.MaxUint64-part {
		return 0, ErrSizeTooBig
	}
	return n + part, nil
}

func sizeError(err error) error {
	if errors.Is(err, strconv.ErrRange) {
		return ErrSizeTooBig
	}
	return ErrNotSize
}

// OptionSize is ParseSize for the value v of option k; the error is an
// *[OptionError].
func OptionSize(k, v string) (uint64, error) {
	n, err := ParseSize(v)
	switch {
	case err == ErrSizeTooBig:
		return 0, &OptionError{"Value '" + v + "' is out of range for parameter '" + k + "'"}
	case err != nil:
		return 0, &OptionError{"Parameter '" + k + "' expects a non-negative number below 2^64\n" +
			"Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively."}
	}
	return n, nil
}

// OptionBool reads a switch; the error is an *[OptionError].
func OptionBool(k, v string) (bool, error) {
	switch v {
	case "on", "yes", "true", "y":
		return true, nil
	case "off", "no", "false", "n":
		return false, nil
	}
	return false, &OptionError{"Parameter '" + k + "' expects 'on' or 'off'"}
}

// OptionNumber reads a number; the error is an *[OptionError].
func OptionNumber(k, v string) (uint64, error) {
	n, err := strconv.ParseUint(v, 0, 64)
	if err != nil {
		return 0, &OptionError{"Parameter '" + k + "' expects a number"}
	}
	return n, nil
}

// UnknownOption is the error for a runtime option that the driver of that name
// does not have.
func UnknownOption(driver, option string) error {
	return &OptionError{"Block format '" + driver + "' does not support the option '" + option + "'"}
}
