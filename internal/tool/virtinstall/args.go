package virtinstall

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// arguments is the parsed command line: for each option what it was given, in
// order.
type arguments struct {
	values map[string][]string // by the option's key, see flag
}

// last returns what an option was given last.
func (a *arguments) last(flag string) (string, bool) {
	v := a.values[flag]
	if len(v) == 0 {
		return "", false
	}
	return v[len(v)-1], true
}

// get returns what an option was given last, "" where it was not given.
func (a *arguments) get(flag string) string {
	v, _ := a.last(flag)
	return v
}

// all returns everything that an option was given.
func (a *arguments) all(flag string) []string { return a.values[flag] }

// has reports whether an option was given.
func (a *arguments) has(flag string) bool { return len(a.values[flag]) > 0 }

// takes is what an option takes on the command line.
type takes int

const (
	takesOne     takes = iota // a word, which must follow
	takesMaybe                // a word, if one follows; else it is flag.bare
	takesNothing              // the option alone says flag.bare
)

// flag is an option of the command line.
type flag struct {
	// names are its spellings, with dashes, in the order of the messages.
	names []string
	// key is where its values are kept: the first long name without dashes,
	// unless it is another spelling of something else.
	key   string
	takes takes
	bare  string
	// kind is "int" or "float" where the word must be one.
	kind string
	// group: only one key of a group may be given.
	group string
	// set has the values of each use, not only the last: repeated uses add up.
	// All options keep all; the word here is for the reader of help.
	repeat bool
	// hidden options are of old command lines and not in the help.
	hidden bool
}

// title is how messages call the option.
func (f *flag) title() string { return strings.Join(f.names, "/") }

// flags lists the options, in the order in which messages name them.
func flags() []*flag {
	var list []*flag
	add := func(names string, t takes, more ...func(*flag)) {
		f := &flag{names: strings.Fields(names), takes: t, bare: "yes"}
		for _, name := range f.names {
			if long, ok := strings.CutPrefix(name, "--"); ok && f.key == "" {
				f.key = long
			}
		}
		if f.key == "" {
			f.key = strings.TrimPrefix(f.names[0], "-")
		}
		for _, m := range more {
			m(f)
		}
		list = append(list, f)
	}
	repeat := func(f *flag) { f.repeat = true }
	hidden := func(f *flag) { f.hidden = true }
	kind := func(k string) func(*flag) { return func(f *flag) { f.kind = k } }
	key := func(k string) func(*flag) { return func(f *flag) { f.key = k } }
	bare := func(b string) func(*flag) { return func(f *flag) { f.bare = b } }
	osType := func(b string) func(*flag) {
		return func(f *flag) { f.bare, f.key, f.group = b, "os_type", "os_type" }
	}

	add("-h --help", takesNothing)
	add("--version", takesNothing)
	add("--connect", takesOne)
	add("-n --name", takesOne)
	add("--memory", takesOne, repeat)
	add("-r --ram", takesOne, hidden, kind("int"))
	add("--vcpus", takesOne, repeat)
	add("--cpu", takesOne, repeat)
	add("--check-cpu", takesNothing, hidden)
	add("--cpuset", takesOne, hidden)
	add("--metadata", takesOne, repeat)
	add("--xml", takesOne, repeat)
	add("-u --uuid", takesOne, hidden)
	add("--description", takesOne, hidden)
	add("-c", takesOne, hidden)
	add("--cdrom", takesOne)
	add("-l --location", takesOne)
	add("--pxe", takesNothing)
	add("--import", takesNothing)
	add("--livecd", takesNothing, hidden)
	add("-x --extra-args", takesOne, repeat)
	add("--initrd-inject", takesOne, repeat)
	add("--unattended", takesMaybe, bare(""))
	add("--install", takesOne)
	add("--reinstall", takesOne)
	add("--cloud-init", takesMaybe, bare(""))
	add("--test-media-detection", takesOne, hidden)
	add("--test-stub-command", takesNothing, hidden)
	add("--boot", takesOne, repeat)
	add("--idmap", takesOne, repeat)
	add("--init", takesOne, hidden)
	add("--os-variant --osinfo", takesOne)
	add("--os-type", takesOne, hidden)
	for _, name := range strings.Fields("disk -w/network graphics controller input serial parallel channel console hostdev") {
		if short, long, ok := strings.Cut(name, "/"); ok {
			add(short+" --"+long, takesOne, repeat)
			continue
		}
		add("--"+name, takesOne, repeat)
	}
	add("--host-device", takesOne, repeat, hidden, key("hostdev"))
	add("--filesystem", takesOne, repeat)
	add("--sound", takesMaybe, repeat, bare("default"))
	add("--soundhw", takesOne, repeat, hidden, key("sound"))
	for _, name := range strings.Fields("audio watchdog video smartcard redirdev memballoon tpm rng panic shmem memdev vsock iommu") {
		add("--"+name, takesOne, repeat)
	}
	add("-f --file", takesOne, repeat, hidden)
	add("-s --file-size", takesOne, repeat, hidden, kind("float"))
	add("--nonsparse", takesNothing, hidden)
	add("--nodisks", takesNothing, hidden)
	add("--nonetworks", takesNothing, hidden)
	add("-b --bridge", takesOne, repeat, hidden)
	add("-m --mac", takesOne, repeat, hidden)
	add("--vnc", takesNothing, hidden)
	add("--vncport", takesOne, hidden, kind("int"))
	add("--vnclisten", takesOne, hidden)
	add("-k --keymap", takesOne, hidden)
	add("--sdl", takesNothing, hidden)
	add("--nographics", takesNothing, hidden)
	add("--iothreads", takesOne, repeat)
	add("--seclabel --security", takesOne, repeat)
	for _, name := range strings.Fields("keywrap cputune numatune memtune blkiotune memorybacking features clock pm events resource sysinfo qemu-commandline") {
		add("--"+name, takesOne, repeat)
	}
	add("--launchSecurity --launchsecurity", takesOne, repeat)
	add("-v --hvm", takesNothing, osType("hvm"))
	add("-p --paravirt", takesNothing, osType("xen"))
	add("--container", takesNothing, osType("exe"))
	add("--virt-type", takesOne)
	add("--arch", takesOne)
	add("--machine", takesOne)
	add("--accelerate", takesNothing, hidden)
	add("--noapic", takesNothing, hidden)
	add("--noacpi", takesNothing, hidden)
	add("--autostart", takesNothing)
	add("--transient", takesNothing)
	add("--destroy-on-exit", takesNothing)
	add("--wait", takesMaybe, bare("-1"), kind("int"))
	add("--prompt", takesNothing, hidden)
	add("--force", takesNothing, hidden)
	add("--insecure-graphics", takesNothing) // ours
	add("--autoconsole", takesOne)
	add("--noautoconsole", takesNothing, key("autoconsole"), bare("none"))
	add("--noreboot", takesNothing)
	add("--print-xml", takesMaybe, bare("all"))
	add("--print-step", takesOne, hidden)
	add("--dry-run", takesNothing)
	add("--check", takesOne, repeat)
	add("-q --quiet", takesNothing)
	add("-d --debug", takesNothing)
	return list
}

// parser reads a command line as Python's argparse does, which is what the
// original's users know: options anywhere, "--opt=word" and "--opt word",
// "-nNAME", "-qd", long options cut short where that is unambiguous.
type parser struct {
	list  []*flag
	by    map[string]*flag
	words []string
	out   *arguments
	extra []string         // what nothing took
	taken map[string]*flag // by group
}

func parseArguments(words []string) (*arguments, error) {
	p := &parser{list: flags(), by: map[string]*flag{}, words: words, taken: map[string]*flag{},
		out: &arguments{values: map[string][]string{}}}
	for _, f := range p.list {
		for _, name := range f.names {
			p.by[name] = f
		}
	}
	for len(p.words) > 0 {
		word := p.words[0]
		p.words = p.words[1:]
		if word == "--" { // nothing but positional words, of which there are none
			if len(p.words) > 0 {
				p.extra = append(append(p.extra, word), p.words...)
			}
			break
		}
		if !p.isOption(word) {
			p.extra = append(p.extra, word)
			continue
		}
		if err := p.option(word); err != nil {
			return nil, err
		}
		if p.out.has("help") || p.out.has("version") {
			return p.out, nil // they act at once, whatever follows
		}
	}
	if len(p.extra) > 0 {
		return nil, &usageError{"unrecognized arguments: " + strings.Join(p.extra, " ")}
	}
	return p.out, nil
}

var negativeNumber = regexp.MustCompile(`^-\d+$|^-\d*\.\d+$`)

// isOption reports whether a word is an option, known or not, rather than the
// value of one.
func (p *parser) isOption(word string) bool {
	if len(word) < 2 || word[0] != '-' {
		return false
	}
	name, _, _ := strings.Cut(word, "=")
	if p.by[word] != nil || p.by[name] != nil || len(p.matching(name, word)) > 0 {
		return true
	}
	return !negativeNumber.MatchString(word) && !strings.Contains(word, " ")
}

// option reads one option and what belongs to it.
func (p *parser) option(word string) error {
	if f := p.by[word]; f != nil {
		return p.use(f, nil)
	}
	name, text, has := strings.Cut(word, "=")
	if f := p.by[name]; f != nil && has {
		return p.use(f, &text)
	}
	matches := p.matching(name, word)
	switch {
	case len(matches) > 1:
		return &usageError{fmt.Sprintf("ambiguous option: %s could match %s", word, strings.Join(matches, ", "))}
	case len(matches) == 1 && has && strings.HasPrefix(word, "--"):
		return p.use(p.by[matches[0]], &text)
	case len(matches) == 1:
		if f := p.by[matches[0]]; matches[0] != word[:2] || len(word) == 2 {
			return p.use(f, nil)
		}
		return p.short(word)
	}
	p.extra = append(p.extra, word)
	return nil
}

// matching returns the names that a word may be short for, in order.
func (p *parser) matching(name, word string) []string {
	var found []string
	for _, f := range p.list {
		for _, full := range f.names {
			switch {
			case strings.HasPrefix(word, "--"):
				if strings.HasPrefix(full, name) && (full == name || full != "--insecure-graphics") { // the original's abbreviations stay
					found = append(found, full)
				}
			case full == word[:2] || strings.HasPrefix(full, word):
				found = append(found, full)
			}
		}
	}
	return found
}

// short reads "-nNAME" and "-qd".
func (p *parser) short(word string) error {
	for rest := word[1:]; rest != ""; {
		f := p.by["-"+rest[:1]]
		if f == nil {
			return &usageError{fmt.Sprintf("argument %s: ignored explicit argument '%s'", p.by[word[:2]].title(), rest)}
		}
		rest = rest[1:]
		if f.takes != takesNothing {
			if rest == "" {
				return p.use(f, nil)
			}
			text := strings.TrimPrefix(rest, "=")
			return p.use(f, &text)
		}
		if err := p.use(f, nil); err != nil {
			return err
		}
	}
	return nil
}

// use gives an option its word: the one that came with it, or the next.
func (p *parser) use(f *flag, text *string) error {
	if other := p.taken[f.group]; f.group != "" && other != nil && other != f {
		return &usageError{fmt.Sprintf("argument %s: not allowed with argument %s", f.title(), other.title())}
	}
	p.taken[f.group] = f
	switch {
	case f.takes == takesNothing && text != nil:
		return &usageError{fmt.Sprintf("argument %s: ignored explicit argument '%s'", f.title(), *text)}
	case f.takes == takesNothing:
		text = &f.bare
	case text != nil:
	case len(p.words) > 0 && !p.isOption(p.words[0]):
		text = &p.words[0]
		p.words = p.words[1:]
	case f.takes == takesMaybe:
		text = &f.bare
	default:
		return &usageError{"argument " + f.title() + ": expected one argument"}
	}
	if err := f.check(*text); err != nil {
		return err
	}
	p.out.values[f.key] = append(p.out.values[f.key], *text)
	return nil
}

// check reports a word that is not the number that it should be.
func (f *flag) check(text string) error {
	trimmed := strings.TrimSpace(text)
	var err error
	switch f.kind {
	case "int":
		_, err = strconv.ParseInt(trimmed, 10, 64)
	case "float":
		_, err = strconv.ParseFloat(trimmed, 64)
	}
	if err != nil {
		return &usageError{fmt.Sprintf("argument %s: invalid %s value: '%s'", f.title(), f.kind, text)}
	}
	return nil
}
