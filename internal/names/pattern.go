package names

import (
	"fmt"
	"strconv"
	"strings"
)

// MaxExpansion is the largest number of names that one request may make.
const MaxExpansion = 10_000

// maxPattern is the longest pattern in bytes. Each of the names is at most as
// long, which bounds what a pattern can make.
const maxPattern = 4096

// Expand returns the names that a pattern stands for, in order. As in a shell,
// {01..10} counts (as wide as the wider end when either begins with a zero),
// {a..e} goes through letters, {web,db} lists; several braces make every
// combination, the last one changing fastest. A pattern without braces is one
// name. Braces do not nest. The names are not checked otherwise.
func Expand(pattern string) ([]string, error) {
	if len(pattern) > maxPattern {
		return nil, fmt.Errorf("%w: pattern %.60q... has %d characters, at most %d are allowed", ErrInvalid, pattern, len(pattern), maxPattern)
	}
	out := []string{""}
	for rest := pattern; rest != ""; {
		open := strings.IndexAny(rest, "{}")
		if open < 0 {
			appendAll(out, rest)
			break
		}
		if rest[open] == '}' {
			return nil, fmt.Errorf("%w: pattern %q: } without {", ErrInvalid, pattern)
		}
		appendAll(out, rest[:open])
		rest = rest[open+1:]
		end := strings.IndexAny(rest, "{}")
		if end < 0 || rest[end] == '{' {
			return nil, fmt.Errorf("%w: pattern %q: { without }", ErrInvalid, pattern)
		}
		words, err := alternatives(rest[:end])
		if err != nil {
			return nil, fmt.Errorf("%w: pattern %q: %s", ErrInvalid, pattern, err)
		}
		if len(words)*len(out) > MaxExpansion {
			return nil, tooMany(pattern)
		}
		next := make([]string, 0, len(out)*len(words))
		for _, o := range out {
			for _, w := range words {
				next = append(next, o+w)
			}
		}
		out, rest = next, rest[end+1:]
	}
	return out, nil
}

// ExpandMachines expands all patterns and checks each name. A name that comes
// twice is an error, as are more than [MaxExpansion] names in all.
func ExpandMachines(patterns []string) ([]string, error) {
	var all []string
	seen := make(map[string]bool)
	for _, p := range patterns {
		list, err := Expand(p)
		if err != nil {
			return nil, err
		}
		if len(all)+len(list) > MaxExpansion {
			return nil, tooMany(p)
		}
		for _, n := range list {
			if err := CheckMachine(n); err != nil {
				return nil, err
			}
			if seen[n] {
				return nil, fmt.Errorf("%w: %q is named twice", ErrInvalid, n)
			}
			seen[n] = true
			all = append(all, n)
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: no name given", ErrInvalid)
	}
	return all, nil
}

func tooMany(pattern string) error {
	return fmt.Errorf("%w: pattern %.60q: more than %d names", ErrInvalid, pattern, MaxExpansion)
}

func appendAll(list []string, s string) {
	for i := range list {
		list[i] += s
	}
}

// alternatives returns the words that the inside of a pair of braces means.
func alternatives(inside string) ([]string, error) {
	from, to, isRange := strings.Cut(inside, "..")
	if !isRange {
		if !strings.Contains(inside, ",") {
			return nil, fmt.Errorf("{%s} is neither a range nor a list", inside)
		}
		words := strings.Split(inside, ",")
		if len(words) > MaxExpansion {
			return nil, fmt.Errorf("more than %d names", MaxExpansion)
		}
		return words, nil
	}
	if len(from) == 1 && len(to) == 1 && letter(from[0]) && letter(to[0]) {
		return count(int64(from[0]), int64(to[0]), func(v int64) string { return string(rune(v)) })
	}
	a, errA := strconv.ParseUint(from, 10, 31)
	b, errB := strconv.ParseUint(to, 10, 31)
	if errA != nil || errB != nil {
		return nil, fmt.Errorf("{%s} is not a range of numbers or of letters", inside)
	}
	width := 0
	if padded(from) || padded(to) {
		width = max(len(from), len(to))
	}
	if width > MaxLength {
		return nil, fmt.Errorf("{%.20s...} is wider than a name", inside)
	}
	return count(int64(a), int64(b), func(v int64) string { return fmt.Sprintf("%0*d", width, v) })
}

func count(a, b int64, text func(int64) string) ([]string, error) {
	step, n := int64(1), b-a+1
	if b < a {
		step, n = -1, a-b+1
	}
	if n > MaxExpansion {
		return nil, fmt.Errorf("more than %d names", MaxExpansion)
	}
	words := make([]string, 0, n)
	for i := range n {
		words = append(words, text(a+i*step))
	}
	return words, nil
}

func letter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

func padded(s string) bool { return len(s) > 1 && s[0] == '0' }
