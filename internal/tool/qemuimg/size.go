package qemuimg

import (
	"errors"
	"math"
	"strconv"
	"strings"
)

// Errors of parseSize.
var (
	errNotSize    = errors.New("not a size")
	errSizeTooBig = errors.New("size is too big")
)

// parseSize reads a number of bytes as QEMU does: decimal, with a fraction
// and one of the suffixes b k M G T P E in either case (powers of 1024), or
// hexadecimal. A fraction is rounded to the next byte.
func parseSize(s string) (uint64, error) {
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
		return scale(n, 0, hex[end:])
	}
	end := 0
	for end < len(s) && s[end] >= '0' && s[end] <= '9' {
		end++
	}
	if end == 0 {
		return 0, errNotSize
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
				return 0, errNotSize
			}
		}
		s = s[end:]
	}
	return scale(n, fraction, s)
}

// scale multiplies by a suffix.
func scale(n uint64, fraction float64, s string) (uint64, error) {
	shift := 0
	if s != "" {
		i := strings.IndexByte("bkmgtpe", s[0]|0x20)
		if i < 0 || len(s) > 1 {
			return 0, errNotSize
		}
		shift = 10 * i
	}
	if fraction != 0 && shift == 0 {
		return 0, errNotSize
	}
	if n > math.MaxUint64>>shift {
		return 0, errSizeTooBig
	}
	n <<= shift
	part := uint64(fraction*float64(uint64(1)<<shift) + 0.5)
	if n > math.MaxUint64-part {
		return 0, errSizeTooBig
	}
	return n + part, nil
}

func sizeError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, strconv.ErrRange):
		return errSizeTooBig
	}
	return errNotSize
}

// number reads a size from the command line and reports what is wrong with
// it in the stock tool's words; what names the argument.
func (t *tool) number(what, s string) (int64, bool) {
	return t.boundedNumber(what, s, 0, math.MaxInt64)
}

// boundedNumber is number for numbers from least to most.
func (t *tool) boundedNumber(what, s string, least, most int64) (int64, bool) {
	n, err := parseSize(s)
	if hexWithSuffix(s) && err == nil {
		t.errorf("warning: Using a multiplier suffix on hex numbers is deprecated: %s", s)
	}
	switch {
	case errors.Is(err, errSizeTooBig) || err == nil && (n > uint64(most) || n < uint64(least)):
		t.errorf("Invalid %s specified. Must be between %d and %d.", what, least, most)
	case err != nil:
		t.errorf("Invalid %s specified. You may use k, M, G, T, P or E suffixes for", what)
		t.errorf("kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.")
	default:
		return int64(n), true
	}
	return 0, false
}

// hexWithSuffix reports whether a valid size is hexadecimal with a suffix,
// which QEMU means to forbid one day.
func hexWithSuffix(s string) bool {
	s = strings.ToLower(strings.TrimLeft(s, " \t\n\v\f\r+"))
	return strings.HasPrefix(s, "0x") && strings.IndexByte("kmgtp", s[len(s)-1]) >= 0
}

// sizeHint is what QEMU prints behind an option whose size does not parse.
const sizeHint = "\nOptional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively."

// humanSize writes a number of bytes with three digits and a unit below 1000.
func humanSize(n int64) string {
	units := [...]string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	i, v := 0, float64(n)
	for v >= 1000 && i < len(units)-1 {
		v /= 1024
		i++
	}
	return strconv.FormatFloat(v, 'g', 3, 64) + " " + units[i]
}
