// Package getopt reads command lines as glibc's getopt_long does: operands
// and options in any order, clusters of short options, long options by any
// unambiguous abbreviation, "--" as the end of the options.
//
// The work-alike tools use it because the corner cases of glibc (what counts
// as an argument, which word an error names) are part of how those tools feel.
package getopt

import (
	"io"
	"iter"
	"os"
	"strings"
)

// ArgMode says whether a long option takes an argument.
type ArgMode uint8

// The modes of glibc's struct option.
const (
	NoArgument ArgMode = iota
	RequiredArgument
	OptionalArgument
)

// Long is a long option. Val is what [Parser.Next] returns for it; several
// long options may share one, and it may be that of a short option.
type Long struct {
	Name string
	Arg  ArgMode
	Val  rune
}

// Option is one option of the command line.
type Option struct {
	Val rune
	Arg string // "" where the option has none
}

// ErrorKind says what is wrong with an option.
type ErrorKind uint8

// What can be wrong with an option.
const (
	Unrecognized    ErrorKind = iota // no such option
	Ambiguous                        // the abbreviation fits several long options
	MissingArgument                  // the argument that the option requires is not there
	ExtraArgument                    // "--opt=arg" for an option that takes none
)

// Error is a word that is not a valid option. Its text is glibc's.
type Error struct {
	Kind ErrorKind
	// Option is the option as it is named in messages: "f" for a short
	// one, "--format" for a long one.
	Option string
	// Long says that it was written as a long option.
	Long bool
	// Candidates are the long options that an ambiguous one could be.
	Candidates []string
	// Word is the command line word in front of the next one to be read
	// (glibc's argv[optind-1]), which some tools print instead.
	Word string
}

// Error returns the message that glibc prints behind the program's name.
func (e *Error) Error() string {
	switch {
	case e.Kind == Unrecognized && e.Long:
		return "unrecognized option '" + e.Option + "'"
	case e.Kind == Unrecognized:
		return "invalid option -- '" + e.Option + "'"
	case e.Kind == Ambiguous:
		return "option '" + e.Option + "' is ambiguous; possibilities: '--" + strings.Join(e.Candidates, "' '--") + "'"
	case e.Kind == ExtraArgument:
		return "option '" + e.Option + "' doesn't allow an argument"
	case e.Long:
		return "option '" + e.Option + "' requires an argument"
	}
	return "option requires an argument -- '" + e.Option + "'"
}

// Parser goes through a command line. It is not safe for concurrent use.
type Parser struct {
	args  []string // args[0] is the program's or verb's name; permuted while reading
	short string
	long  []Long

	next          int    // glibc's optind
	cluster       string // what is left of the current cluster of short options
	firstOp, past int    // operands skipped so far are args[firstOp:past]
	inOrder       bool   // stop at the first operand
}

// New returns a parser for args, whose first word is the program's name and
// is not looked at. short lists the short options as getopt(3) wants them: a
// colon behind a letter for a required argument, two for an optional one; a
// leading '+' (or POSIXLY_CORRECT in the environment) ends the options at
// the first operand. args is copied.
func New(args []string, short string, long []Long) *Parser {
	p := &Parser{long: long, next: 1, firstOp: 1, past: 1}
	p.args = append(p.args, args...)
	if len(p.args) == 0 {
		p.args = []string{""}
	}
	p.short, p.inOrder = strings.CutPrefix(short, "+")
	if os.Getenv("POSIXLY_CORRECT") != "" {
		p.inOrder = true
	}
	return p
}

// Rest returns the operands. It is complete once Next has returned io.EOF.
func (p *Parser) Rest() []string { return p.args[min(p.next, len(p.args)):] }

// All iterates over the options that [Parser.Next] returns. An error is the
// last that it yields.
func (p *Parser) All() iter.Seq2[Option, error] {
	return func(yield func(Option, error) bool) {
		for {
			o, err := p.Next()
			if err == io.EOF || !yield(o, err) || err != nil {
				return
			}
		}
	}
}

// Next returns the next option, io.EOF behind the last one, or an *Error,
// after which reading can go on.
func (p *Parser) Next() (Option, error) {
	if p.cluster == "" {
		done, long := p.advance()
		if done {
			return Option{}, io.EOF
		}
		if long {
			word := p.args[p.next]
			p.next++
			return p.longOption(word[2:])
		}
		p.cluster = p.args[p.next][1:]
	}
	return p.shortOption()
}

// advance moves to the next word that is an option, moving operands behind
// the options read so far. It reports the end, or a word that begins with "--".
func (p *Parser) advance() (done, long bool) {
	p.past, p.firstOp = min(p.past, p.next), min(p.firstOp, p.next)
	if !p.inOrder {
		p.exchange()
		for p.next < len(p.args) && !isOption(p.args[p.next]) {
			p.next++
		}
		p.past = p.next
	}
	if p.next < len(p.args) && p.args[p.next] == "--" {
		p.next++
		p.exchange()
		p.past = len(p.args)
		p.next = len(p.args)
	}
	if p.next >= len(p.args) {
		if p.firstOp != p.past {
			p.next = p.firstOp
		}
		return true, false
	}
	word := p.args[p.next]
	if !isOption(word) {
		return true, false // only in order
	}
	return false, strings.HasPrefix(word, "--")
}

// exchange moves the operands args[firstOp:past] behind the options
// args[past:next] that followed them.
func (p *Parser) exchange() {
	switch {
	case p.firstOp == p.past:
		p.firstOp = p.next
	case p.past != p.next:
		ops := append([]string(nil), p.args[p.firstOp:p.past]...)
		n := copy(p.args[p.firstOp:], p.args[p.past:p.next])
		copy(p.args[p.firstOp+n:], ops)
		p.firstOp += n
	}
	p.past = p.next
}

func isOption(word string) bool { return len(word) > 1 && word[0] == '-' }

// word returns glibc's argv[optind-1].
func (p *Parser) word() string { return p.args[min(p.next, len(p.args))-1] }

func (p *Parser) shortOption() (Option, error) {
	c := p.cluster[0]
	p.cluster = p.cluster[1:]
	last := p.cluster == ""
	if last {
		p.next++
	}
	i := strings.IndexByte(p.short, c)
	if i < 0 || c == ':' || c == ';' {
		return Option{}, &Error{Kind: Unrecognized, Option: string([]byte{c}), Word: p.word()}
	}
	mode := p.short[i+1:]
	if !strings.HasPrefix(mode, ":") {
		return Option{Val: rune(c)}, nil
	}
	arg := p.cluster
	p.cluster = ""
	if !last {
		p.next++
		return Option{Val: rune(c), Arg: arg}, nil
	}
	if strings.HasPrefix(mode, "::") {
		return Option{Val: rune(c)}, nil
	}
	if p.next >= len(p.args) {
		return Option{}, &Error{Kind: MissingArgument, Option: string([]byte{c}), Word: p.word()}
	}
	p.next++
	return Option{Val: rune(c), Arg: p.args[p.next-1]}, nil
}

func (p *Parser) longOption(text string) (Option, error) {
	name, arg, hasArg := strings.Cut(text, "=")
	l, candidates := p.find(name)
	switch {
	case len(candidates) > 1:
		return Option{}, &Error{Kind: Ambiguous, Option: "--" + text, Long: true, Candidates: candidates, Word: p.word()}
	case l == nil:
		return Option{}, &Error{Kind: Unrecognized, Option: "--" + text, Long: true, Word: p.word()}
	case hasArg && l.Arg == NoArgument:
		return Option{}, &Error{Kind: ExtraArgument, Option: "--" + l.Name, Long: true, Word: p.word()}
	case hasArg || l.Arg != RequiredArgument:
		return Option{Val: l.Val, Arg: arg}, nil
	case p.next >= len(p.args):
		return Option{}, &Error{Kind: MissingArgument, Option: "--" + l.Name, Long: true, Word: p.word()}
	}
	p.next++
	return Option{Val: l.Val, Arg: p.args[p.next-1]}, nil
}

// find returns the long option of that name, or the only one (or the first of
// several that mean the same) that begins with it, or the names of the
// different ones that it could stand for.
func (p *Parser) find(name string) (*Long, []string) {
	var found *Long
	var others []string
	for i := range p.long {
		l := &p.long[i]
		switch {
		case l.Name == name:
			return l, nil
		case !strings.HasPrefix(l.Name, name):
		case found == nil:
			found = l
		case found.Arg != l.Arg || found.Val != l.Val:
			others = append(others, l.Name)
		}
	}
	if others == nil {
		return found, nil
	}
	return nil, append([]string{found.Name}, others...)
}
