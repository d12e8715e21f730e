package qemuimg

import (
	"errors"
	"math"
	"strconv"
	"strings"

	"github.com/lamina-vm/lamina/format"
)

// errSizeTooBig of parseSize.
var errSizeTooBig = format.ErrSizeTooBig

// parseSize reads a number of bytes as QEMU does.
func parseSize(s string) (uint64, error) { return format.ParseSize(s) }

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
