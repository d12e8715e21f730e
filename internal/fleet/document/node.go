package document

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/lamina-vm/lamina/internal/nearest"
)

// fail notes what is wrong with a field of the current group.
func (r *reader) fail(n *yaml.Node, name, format string, args ...any) {
	r.errs = append(r.errs, &Error{File: r.file, Line: n.Line, Field: field(r.group, name), Text: fmt.Sprintf(format, args...)})
}

// resolve follows an alias and counts the value; nil where there are too many.
func (r *reader) resolve(n *yaml.Node, name string) *yaml.Node {
	r.nodes++
	if r.nodes > maxNodes {
		if r.nodes == maxNodes+1 {
			r.fail(n, name, "more than %d values: aliases repeat too much", maxNodes)
		}
		return nil
	}
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// entry is a key of a mapping that is known: what reads its value.
type entry func(n *yaml.Node, name string)

// mapping reads a mapping by its keys. prefix stands before their names.
func (r *reader) mapping(n *yaml.Node, prefix string, keys map[string]entry) {
	at := strings.TrimSuffix(prefix, ".")
	if n = r.resolve(n, at); n == nil {
		return
	}
	if n.Kind != yaml.MappingNode {
		r.fail(n, at, "%s is not a mapping of keys to values", describe(n))
		return
	}
	seen := make(map[string]bool)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		name := prefix + key.Value
		read := keys[key.Value]
		switch {
		case key.Kind != yaml.ScalarNode:
			r.fail(key, at, "a key is a word, not %s", describe(key))
		case key.Tag == "!!merge":
			r.fail(key, at, "the key << is not supported: write the keys out, or use an alias for a whole value")
		case read == nil:
			r.fail(key, at, "unknown key %q%s", clip(key.Value), meant(key.Value, keys))
		case seen[key.Value]:
			r.fail(key, name, "it is there twice: remove one")
		default:
			seen[key.Value] = true
			r.lines[place{r.group, name}] = key.Line
			read(value, name)
		}
		if len(r.errs) > maxErrors {
			return
		}
	}
}

// meant says which key may have been meant, or which there are.
func meant(word string, keys map[string]entry) string {
	var known []string
	for k := range keys {
		known = append(known, k)
	}
	slices.Sort(known)
	// A map's order must not choose between two that are as near.
	for _, k := range known {
		if strings.EqualFold(strings.NewReplacer("-", "", "_", "").Replace(word), k) {
			return "; did you mean " + k + "?"
		}
	}
	if near := nearest.Word(word, known); near != "" {
		return "; did you mean " + near + "?"
	}
	return "; it is one of " + strings.Join(known, ", ")
}

// list reads each value of a list.
func (r *reader) list(each entry) entry {
	return func(n *yaml.Node, name string) {
		if n = r.resolve(n, name); n == nil {
			return
		}
		if n.Kind != yaml.SequenceNode {
			r.fail(n, name, "%s is not a list: begin each of its values with \"- \"", describe(n))
			return
		}
		for i, v := range n.Content {
			one := fmt.Sprintf("%s[%d]", name, i)
			r.lines[place{r.group, one}] = v.Line
			each(v, one)
			if len(r.errs) > maxErrors {
				return
			}
		}
	}
}

// scalar returns the text of a single value; false, with an error noted, for
// anything else.
func (r *reader) scalar(n *yaml.Node, name, want string) (*yaml.Node, bool) {
	if n = r.resolve(n, name); n == nil {
		return nil, false
	}
	if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		r.fail(n, name, "%s is not %s", describe(n), want)
		return nil, false
	}
	return n, true
}

func (r *reader) text(to *string) entry {
	return func(n *yaml.Node, name string) {
		if n, ok := r.scalar(n, name, "a text"); ok {
			if n.Tag == "!!binary" {
				r.fail(n, name, "binary data is not supported here: write a text")
				return
			}
			*to = n.Value
		}
	}
}

func word[T ~string](r *reader, to *T) entry {
	return func(n *yaml.Node, name string) {
		var s string
		r.text(&s)(n, name)
		*to = T(s)
	}
}

func (r *reader) integer(to *int) entry {
	return func(n *yaml.Node, name string) {
		n, ok := r.scalar(n, name, "a whole number")
		if !ok {
			return
		}
		v, err := strconv.ParseInt(n.Value, 10, 64)
		if err != nil || n.Tag != "!!int" || v < math.MinInt32 || v > math.MaxInt32 {
			r.fail(n, name, "%q is not a whole number", clip(n.Value))
			return
		}
		*to = int(v)
	}
}

func (r *reader) boolean(to *bool) entry {
	return func(n *yaml.Node, name string) {
		n, ok := r.scalar(n, name, "true or false")
		if !ok {
			return
		}
		if n.Tag != "!!bool" || n.Decode(to) != nil {
			r.fail(n, name, "%q is not true or false", clip(n.Value))
		}
	}
}

// size reads an amount of bytes with parse.
func (r *reader) size(to *int64, parse func(string) (int64, error)) entry {
	return func(n *yaml.Node, name string) {
		n, ok := r.scalar(n, name, "a size such as 2G")
		if !ok {
			return
		}
		v, err := parse(clip(n.Value))
		switch {
		case err != nil:
			r.fail(n, name, "%v", err)
		case v <= 0:
			r.fail(n, name, "%q is nothing: leave it out for the default", clip(n.Value))
		default:
			*to = v
		}
	}
}

func (r *reader) duration(to *time.Duration) entry {
	return func(n *yaml.Node, name string) {
		n, ok := r.scalar(n, name, "a time such as 90s or 5m")
		if !ok {
			return
		}
		v, err := time.ParseDuration(clip(n.Value))
		if err != nil || v <= 0 {
			r.fail(n, name, "%q is not a time: write a number and a unit, such as 90s or 5m", clip(n.Value))
			return
		}
		*to = v
	}
}

// describe is what a value is, in words.
func describe(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Tag == "!!null":
		return "nothing"
	}
	return strconv.Quote(clip(n.Value))
}

// clip bounds what is said, or parsed, of a value.
func clip(s string) string {
	const most = 80
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
