package image

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Name returns the options as a name of the form json:{...}, which [Open] and
// all else that takes names takes too.
func (o *BlockOptions) Name() string {
	var b strings.Builder
	b.WriteString("json:")
	o.write(&b, func(string) bool { return true }, false)
	return b.String()
}

// Filename returns the name by which stock QEMU calls the node: the file's
// where nothing but the driver was chosen, else json:{...} with the options
// that matter to the content.
func (o *BlockOptions) Filename() string {
	if isProtocol(o.Driver) || o.File == nil {
		name, _ := o.Values["filename"].(string)
		return name
	}
	protocol := o.File.File == nil && (o.File.Driver == "" || isProtocol(o.File.Driver))
	if protocol && !slices.ContainsFunc(slices.Collect(maps.Keys(o.Values)), isStrong) {
		return o.File.Filename()
	}
	var b strings.Builder
	b.WriteString("json:")
	o.write(&b, isStrong, true)
	return b.String()
}

// isStrong reports whether an option decides what a node's content is.
func isStrong(k string) bool {
	switch k {
	case "filename", "offset", "size", "encrypt.key-secret", "key-secret":
		return true
	}
	return false
}

// write writes the node as a JSON object with those of its own options that
// keep wants, in QEMU's order. full names the driver also where it goes without
// saying.
func (o *BlockOptions) write(b *strings.Builder, keep func(string) bool, full bool) {
	members := map[string]func(){}
	for k, v := range o.Values {
		if keep(k) {
			members[k] = func() { writeValue(b, v) }
		}
	}
	driver := o.Driver
	if full && driver == "" && o.File == nil {
		driver = "file"
	}
	if driver != "" {
		members["driver"] = func() { writeText(b, driver) }
	}
	for _, child := range []string{childFile, childData, childBacking} {
		if n := *o.child(child); n != nil {
			members[child] = func() { n.write(b, keep, full) }
		}
	}
	if o.NoBacking {
		members[childBacking] = func() { b.WriteString("null") }
	}
	b.WriteByte('{')
	for i, k := range queueOrder(slices.Collect(maps.Keys(members))) {
		if i > 0 {
			b.WriteString(", ")
		}
		writeText(b, k)
		b.WriteString(": ")
		members[k]()
	}
	b.WriteByte('}')
}

func writeValue(b *strings.Builder, v any) {
	switch v := v.(type) {
	case nil:
		b.WriteString("null")
	case bool:
		b.WriteString(strconv.FormatBool(v))
	case string:
		writeText(b, v)
	default:
		s, _ := optionText(v)
		b.WriteString(s)
	}
}

// writeText writes a JSON string with QEMU's escapes.
func writeText(b *strings.Builder, s string) {
	const hex = "0123456789ABCDEF"
	b.WriteByte('"')
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		if r == utf8.RuneError && n == 1 {
			// A file name need not be text; the byte is kept.
			b.WriteByte(s[0])
			s = s[1:]
			continue
		}
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteByte(byte(r))
		case r < 0x20 || r == 0x7f:
			b.WriteString(`\u00`)
			b.WriteByte(hex[r>>4])
			b.WriteByte(hex[r&15])
		default:
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	b.WriteByte('"')
}

// queueOrder sorts keys as QEMU's dictionaries are walked: by the bucket of
// their hash. It decides the order in names, and which of several errors is
// reported.
func queueOrder(keys []string) []string {
	slices.SortFunc(keys, func(a, b string) int {
		if d := int(bucket(a)) - int(bucket(b)); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	return keys
}

// bucket is the hash bucket of a key in QEMU's dictionaries.
func bucket(key string) uint32 {
	h := 0x238f13af * uint32(len(key))
	for i := range len(key) {
		h += uint32(key[i]) << (i * 5 % 24)
	}
	return (1103515243*h + 12345) % 512
}
