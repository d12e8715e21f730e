package osinfo

import (
	"regexp/syntax"
	"strings"
	"testing"
)

// sample returns a string that an expression of the database fits: each
// choice's first, each repetition as short as it may be but at least once.
func sample(t *testing.T, expr string) string {
	t.Helper()
	if before, after, found := strings.Cut(expr, "(?!"); found {
		expr = before + after[closingParen(after)+1:]
	}
	re, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		t.Fatalf("%q: %v", expr, err)
	}
	var b strings.Builder
	var write func(*syntax.Regexp)
	write = func(re *syntax.Regexp) {
		switch re.Op {
		case syntax.OpLiteral:
			b.WriteString(string(re.Rune))
		case syntax.OpCharClass:
			r := re.Rune[0]
			for i := 0; i+1 < len(re.Rune); i += 2 { // a letter rather than a control character
				if re.Rune[i+1] >= '0' {
					r = max(re.Rune[i], '0')
					break
				}
			}
			b.WriteRune(r)
		case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
			b.WriteByte('x')
		case syntax.OpRepeat:
			for range max(re.Min, 1) {
				write(re.Sub[0])
			}
		case syntax.OpAlternate:
			write(re.Sub[0])
		default:
			for _, sub := range re.Sub {
				write(sub)
			}
		}
	}
	write(re)
	return b.String()
}

// sampleDisc returns a disc that a description fits.
func sampleDisc(t *testing.T, m Media) Disc {
	d := Disc{
		VolumeID: sample(t, m.VolumeID), SystemID: sample(t, m.SystemID), PublisherID: sample(t, m.PublisherID),
		ApplicationID: sample(t, m.ApplicationID), VolumeSize: m.VolumeSize, ElTorito: true,
	}
	if d.VolumeSize == 0 {
		d.VolumeSize = 700 << 20
	}
	return d
}

// question is a disc as stock.py wants it.
func question(d Disc) map[string]any {
	return map[string]any{"volume-id": d.VolumeID, "system-id": d.SystemID, "publisher-id": d.PublisherID,
		"application-id": d.ApplicationID, "volume-size": d.VolumeSize}
}
