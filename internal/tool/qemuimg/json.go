package qemuimg

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// object is a JSON object whose keys keep their order. encoding/json sorts
// them, and costs start-up time that a tool of milliseconds notices.
type object []member

type member struct {
	key   string
	value any // string, bool, int64, object, []any
}

func (o *object) add(key string, value any) { *o = append(*o, member{key, value}) }

// writeJSON writes a value indented as QEMU does.
func writeJSON(v any) string {
	var b strings.Builder
	appendJSON(&b, v, "\n")
	return b.String()
}

// appendJSON writes v; nl is a newline and the current indentation.
func appendJSON(b *strings.Builder, v any, nl string) {
	switch v := v.(type) {
	case object:
		b.WriteByte('{')
		for i, m := range v {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(nl + "    ")
			appendString(b, m.key)
			b.WriteString(": ")
			appendJSON(b, m.value, nl+"    ")
		}
		b.WriteString(nl + "}")
	case []any:
		b.WriteByte('[')
		for i, e := range v {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(nl + "    ")
			appendJSON(b, e, nl+"    ")
		}
		b.WriteString(nl + "]")
	case string:
		appendString(b, v)
	case bool:
		b.WriteString(strconv.FormatBool(v))
	case int64:
		b.WriteString(strconv.FormatInt(v, 10))
	default:
		// Formats give nothing else; say what it is rather than lose it.
		appendString(b, fmt.Sprint(v))
	}
}

// appendString writes a JSON string with QEMU's escapes: all that is not
// printable ASCII.
func appendString(b *strings.Builder, s string) {
	b.WriteByte('"')
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		s = s[n:]
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\b':
			b.WriteString(`\b`)
		case r == '\f':
			b.WriteString(`\f`)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r >= 0x10000:
			r -= 0x10000
			appendUnicode(b, 0xd800+r>>10)
			appendUnicode(b, 0xdc00+r&0x3ff)
		case r < 0x20 || r > 0x7e:
			appendUnicode(b, r)
		default:
			b.WriteByte(byte(r))
		}
	}
	b.WriteByte('"')
}

func appendUnicode(b *strings.Builder, r rune) {
	const hex = "0123456789ABCDEF"
	b.WriteString(`\u`)
	for shift := 12; shift >= 0; shift -= 4 {
		b.WriteByte(hex[r>>shift&15])
	}
}

func formatInt(n int64) string { return strconv.FormatInt(n, 10) }

func pad2(n uint64) string {
	if n < 10 {
		return "0" + strconv.FormatUint(n, 10)
	}
	return strconv.FormatUint(n, 10)
}

func pad3(n uint64) string {
	if n < 100 {
		return "0" + pad2(n)
	}
	return strconv.FormatUint(n, 10)
}
