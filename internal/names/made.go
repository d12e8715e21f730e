package names

import (
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
)

// The words of made-up names: short, easy to say and to tell apart, and none
// that one would not want on a server.
var (
	colours = strings.Fields("amber aqua ash beige black blue bronze brown coral cream crimson cyan dusky ecru fawn gold green grey hazel indigo ivory jade khaki lemon lilac lime linen mauve mint navy ochre olive opal peach pearl pink plum red rose ruby rust sand scarlet sepia silver slate tan teal umber violet white")
	animals = strings.Fields("adder badger beaver bison bream carp civet cod colt coot crane crow deer dove duck eagle eel egret elk falcon ferret finch fox frog gecko goat goose grouse gull hare hawk heron hornet ibex ibis jay kestrel kite koala lark lemur linnet lizard llama lynx marten merlin mole moose moth newt okapi orca osprey otter owl panda perch pike plover puffin quail raven robin salmon seal shrew skua snipe sparrow stoat stork swan swift tapir teal tern thrush tiger toad trout vole walrus weasel whale wolf wren yak zebra")
)

// Make returns a free name that begins with what the image is called:
// "debian-teal-otter". base may be anything, also empty; taken says whether a
// name is in use.
func Make(base string, taken func(string) bool) string {
	base = clip(base, MaxLength-20)
	for range 100 {
		name := colours[rand.IntN(len(colours))] + "-" + animals[rand.IntN(len(animals))]
		if base != "" {
			name = base + "-" + name
		}
		if !taken(name) {
			return name
		}
	}
	return Free(base, taken)
}

// Free returns base if it is free, else the first of base-2, base-3, ...
func Free(base string, taken func(string) bool) string {
	base = clip(base, MaxLength-12)
	if base == "" {
		base = "machine"
	}
	name := base
	for n := 2; taken(name); n++ {
		name = fmt.Sprintf("%s-%d", base, n)
	}
	return name
}

// FromSource returns what an image is called by where it came from: the last
// part of a path or URL without the endings of image files.
func FromSource(source string) string {
	if i := strings.IndexAny(source, "?#"); i >= 0 && strings.Contains(source, "://") {
		source = source[:i]
	}
	name := path.Base(source)
	for {
		ext := path.Ext(name)
		switch strings.ToLower(ext) {
		case ".qcow2", ".qcow", ".img", ".raw", ".gz", ".xz", ".zst", ".disk":
			name = strings.TrimSuffix(name, ext)
			continue
		}
		return clip(name, MaxLength)
	}
}

// clip makes s fit for the beginning of a machine's name.
func clip(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if alnum(r) || r == '.' || r == '_' {
			return r
		}
		return '-'
	}, s)
	s = strings.TrimLeft(s, "-._")
	if len(s) > n {
		s = s[:n]
	}
	return strings.TrimRight(s, "-._")
}
