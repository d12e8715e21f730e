package virtinstall

import "strings"

// shellWords splits at blanks; quotes and backslashes keep them, as in a shell.
func shellWords(text string) ([]string, error) {
	var words []string
	var word strings.Builder
	started := false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; c {
		case ' ', '\t', '\n', '\r':
			if started {
				words = append(words, word.String())
				word.Reset()
				started = false
			}
		case '\\':
			if i++; i == len(text) {
				return nil, &bareError{"No escaped character"}
			}
			word.WriteByte(text[i])
			started = true
		case '\'', '"':
			started = true
			for i++; i < len(text) && text[i] != c; i++ {
				if c == '"' && text[i] == '\\' && i+1 < len(text) && (text[i+1] == '"' || text[i+1] == '\\') {
					i++
				}
				word.WriteByte(text[i])
			}
			if i == len(text) {
				return nil, &bareError{"No closing quotation"}
			}
		default:
			word.WriteByte(c)
			started = true
		}
	}
	if started {
		words = append(words, word.String())
	}
	return words, nil
}
