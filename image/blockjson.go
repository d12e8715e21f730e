package image

import (
	"errors"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/lamina-vm/lamina/format"
)

// maxJSONDepth and maxJSONName bound what a name may ask for.
const (
	maxJSONDepth = 64
	maxJSONName  = 1 << 20
)

// jsonError is an error of the text of a json: name, in QEMU's words.
func jsonError(text string) error {
	return &format.OptionError{Text: "Could not parse the JSON options: " + text}
}

var errJSONEnd = errors.New("premature EOI")

// parseJSONOptions reads the object of a json: name, with QEMU's extension of
// strings in single quotes, into flat options with dots.
func parseJSONOptions(text string) (map[string]any, error) {
	if len(text) > maxJSONName {
		return nil, jsonError("JSON parse error, the text is too long")
	}
	p := &jsonReader{text: text, flat: map[string]any{}}
	p.space()
	if p.pos == len(text) {
		return nil, jsonError("Expecting a JSON value")
	}
	if text[p.pos] != '{' {
		if _, err := p.value("", 0); err != nil {
			return nil, p.fail(err)
		}
		return nil, &format.OptionError{Text: "Invalid JSON object given"}
	}
	if _, err := p.value("", 0); err != nil {
		return nil, p.fail(err)
	}
	if p.space(); p.pos < len(text) {
		return nil, jsonError("JSON parse error, expecting EOI")
	}
	return p.flat, nil
}

// jsonReader reads one JSON text.
type jsonReader struct {
	text string
	pos  int
	flat map[string]any
}

func (p *jsonReader) fail(err error) error { return jsonError("JSON parse error, " + err.Error()) }

func (p *jsonReader) space() {
	for p.pos < len(p.text) && strings.IndexByte(" \t\r\n", p.text[p.pos]) >= 0 {
		p.pos++
	}
}

// next skips space and returns the byte there.
func (p *jsonReader) next() (byte, error) {
	p.space()
	if p.pos == len(p.text) {
		return 0, errJSONEnd
	}
	return p.text[p.pos], nil
}

// value reads a value; members of objects and lists go to flat under prefix,
// and for these the value is ok false.
func (p *jsonReader) value(prefix string, depth int) (any, error) {
	c, err := p.next()
	if err != nil {
		return nil, err
	}
	switch {
	case depth > maxJSONDepth:
		return nil, errors.New("nested too deeply")
	case c == '{':
		return nested{}, p.object(prefix, depth)
	case c == '[':
		return nested{}, p.list(prefix, depth)
	case c == '"' || c == '\'':
		return p.str()
	case c == '-' || c >= '0' && c <= '9':
		return p.number()
	}
	word := p.word()
	switch word {
	case "true", "false":
		return word == "true", nil
	case "null":
		return nil, nil
	case "":
		return nil, errors.New("expecting value")
	}
	return nil, errors.New("invalid keyword '" + word + "'")
}

// nested stands for an object or list, whose members have been stored.
type nested struct{}

func (p *jsonReader) store(key string, v any) error {
	if _, ok := v.(nested); ok {
		return nil
	}
	p.flat[key] = v
	return nil
}

func (p *jsonReader) object(prefix string, depth int) error {
	p.pos++
	seen := map[string]bool{}
	for first := true; ; first = false {
		c, err := p.next()
		switch {
		case err != nil:
			return err
		case c == '}' && first:
			p.pos++
			return nil
		case c != '"' && c != '\'':
			return errors.New("key is not a string in object")
		}
		key, err := p.str()
		if err != nil {
			return err
		}
		if c, err = p.next(); err != nil {
			return err
		} else if c != ':' {
			return errors.New("missing : in object pair")
		}
		p.pos++
		v, err := p.value(prefix+key+".", depth+1)
		if err != nil {
			return err
		}
		if seen[key] {
			return errors.New("duplicate key")
		}
		seen[key] = true
		if err := p.store(prefix+key, v); err != nil {
			return err
		}
		if c, err = p.next(); err != nil {
			return err
		}
		p.pos++
		switch c {
		case '}':
			return nil
		case ',':
		default:
			return errors.New("expected separator in dict")
		}
	}
}

func (p *jsonReader) list(prefix string, depth int) error {
	p.pos++
	for i := 0; ; i++ {
		c, err := p.next()
		if err != nil {
			return err
		}
		if c == ']' && i == 0 {
			p.pos++
			return nil
		}
		key := prefix + strconv.Itoa(i)
		v, err := p.value(key+".", depth+1)
		if err != nil {
			return err
		}
		if err := p.store(key, v); err != nil {
			return err
		}
		if c, err = p.next(); err != nil {
			return err
		}
		p.pos++
		switch c {
		case ']':
			return nil
		case ',':
		default:
			return errors.New("expected separator in list")
		}
	}
}

func (p *jsonReader) word() string {
	start := p.pos
	for p.pos < len(p.text) && isLetter(p.text[p.pos]) {
		p.pos++
	}
	return p.text[start:p.pos]
}

func (p *jsonReader) number() (any, error) {
	start := p.pos
	for p.pos < len(p.text) && strings.IndexByte("+-.0123456789eE", p.text[p.pos]) >= 0 {
		p.pos++
	}
	text := p.text[start:p.pos]
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return n, nil
	}
	if n, err := strconv.ParseUint(text, 10, 64); err == nil {
		return n, nil
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return nil, errors.New("invalid number")
	}
	return f, nil
}

// str reads a string in the quotes that it begins with.
func (p *jsonReader) str() (string, error) {
	quote := p.text[p.pos]
	p.pos++
	var b strings.Builder
	for p.pos < len(p.text) {
		c := p.text[p.pos]
		p.pos++
		switch {
		case c == quote:
			return b.String(), nil
		case c == '\\':
			if err := p.escape(&b); err != nil {
				return "", err
			}
		case c < 0x20:
			return "", errors.New("stray control character in a string")
		default:
			b.WriteByte(c)
		}
	}
	return "", errJSONEnd
}

func (p *jsonReader) escape(b *strings.Builder) error {
	if p.pos == len(p.text) {
		return errJSONEnd
	}
	c := p.text[p.pos]
	p.pos++
	const from, to = "bfnrt", "\b\f\n\r\t"
	switch {
	case strings.IndexByte(`"'\/`, c) >= 0:
		b.WriteByte(c)
	case strings.IndexByte(from, c) >= 0:
		b.WriteByte(to[strings.IndexByte(from, c)])
	case c == 'u':
		r, err := p.unicode()
		if err != nil {
			return err
		}
		if utf16.IsSurrogate(r) && strings.HasPrefix(p.text[p.pos:], `\u`) {
			p.pos += 2
			low, err := p.unicode()
			if err != nil {
				return err
			}
			r = utf16.DecodeRune(r, low)
		}
		if r == 0 || r == utf8.RuneError || utf16.IsSurrogate(r) {
			return errors.New("invalid Unicode code point")
		}
		b.WriteRune(r)
	default:
		return errors.New("invalid escape sequence")
	}
	return nil
}

func (p *jsonReader) unicode() (rune, error) {
	if len(p.text)-p.pos < 4 {
		return 0, errJSONEnd
	}
	n, err := strconv.ParseUint(p.text[p.pos:p.pos+4], 16, 16)
	if err != nil {
		return 0, errors.New("invalid hex escape")
	}
	p.pos += 4
	return rune(n), nil
}
