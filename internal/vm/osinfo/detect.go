package osinfo

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// ErrUnknownMedia is wrapped by what Detect and DetectTree return where no
// system has such media.
var ErrUnknownMedia = errors.New("no operating system is known by this media")

// Media is a kind of disc that a system comes on. The ids are regular
// expressions, "" where anything will do.
type Media struct {
	Arch               string // "x86_64", ...; "all"
	URL                string // where the vendor has it
	VolumeID, SystemID string
	PublisherID        string
	ApplicationID      string
	VolumeSize         int64  // bytes, exactly; 0 where it does not matter
	Kernel, Initrd     string // paths on the disc, of the installer
	Live, Installer    bool
	InstallerReboots   int  // how often the installer restarts the machine
	EjectAfterInstall  bool // the disc must be gone at the first boot
	InstallerScript    bool // the database has scripts with which it installs unattended
	Variants           []string

	scripts bool // of its own
}

// Tree is a network installation tree.
type Tree struct {
	Arch           string
	URL            string
	Kernel, Initrd string // paths below the URL
	BootISO        string
	Variants       []string
	Treeinfo       Treeinfo // regular expressions

	hasTreeinfo bool
}

// Match is what media were recognised as.
type Match struct {
	OS    OS
	Media Media // the database's description, of Detect
	Tree  Tree  // the database's description, of DetectTree
}

// Media returns the discs that the system comes on.
func (o OS) Media() []Media {
	if o.record == nil {
		return nil
	}
	return slices.Clone(o.record.media)
}

// Trees returns the network installation trees of the system.
func (o OS) Trees() []Tree {
	if o.record == nil {
		return nil
	}
	return slices.Clone(o.record.trees)
}

// Detect says which system an installation disc is of. r must hold size
// bytes; a few KiB are read. The error wraps [ErrNotISO] or [ErrUnknownMedia].
// A disc need not be bootable to be recognised, see [Disc.Bootable].
func (db *DB) Detect(r io.ReaderAt, size int64) (Match, Disc, error) {
	d, err := ReadDisc(r, size)
	if err != nil {
		return Match{}, Disc{}, err
	}
	m, err := db.DetectDisc(d)
	return m, d, err
}

// DetectDisc is Detect for a disc that was read already.
func (db *DB) DetectDisc(d Disc) (Match, error) {
	var found []Match
	asked := []wanted{{"volume-id", d.VolumeID}, {"system-id", d.SystemID}, {"publisher-id", d.PublisherID}, {"application-id", d.ApplicationID}}
	db.candidates("iso", asked, func(r *record) {
		for _, m := range r.media {
			if m.matches(d) {
				found = append(found, Match{OS: db.os(r), Media: m})
			}
		}
	})
	if len(found) == 0 {
		return Match{}, fmt.Errorf("%w: volume id %q, system id %q, publisher %q, application %q, %d bytes",
			ErrUnknownMedia, d.VolumeID, d.SystemID, d.PublisherID, d.ApplicationID, d.VolumeSize)
	}
	return slices.MinFunc(found, moreSpecific), nil
}

// matches reports whether the disc fits: every expression that is given, and
// the size where there is one. What gives nothing at all fits nothing.
func (m Media) matches(d Disc) bool {
	if m.VolumeID == "" && m.SystemID == "" && m.PublisherID == "" && m.ApplicationID == "" && m.VolumeSize == 0 {
		return false
	}
	return (m.VolumeSize == 0 || m.VolumeSize == d.VolumeSize) &&
		matchExpr(m.VolumeID, d.VolumeID) && matchExpr(m.ApplicationID, d.ApplicationID) &&
		matchExpr(m.SystemID, d.SystemID) && matchExpr(m.PublisherID, d.PublisherID)
}

// moreSpecific orders what fits one disc: a description for one architecture
// before one for all (libosinfo's rule); with a size before one without; with
// more expressions, then with the longer ones; then the newest system.
// libosinfo takes the first that it finds, in the order of a hash table.
func moreSpecific(a, b Match) int {
	count := func(m Media) (n, length int) {
		for _, e := range []string{m.VolumeID, m.SystemID, m.PublisherID, m.ApplicationID} {
			if e != "" {
				n, length = n+1, length+len(e)
			}
		}
		return n, length
	}
	an, al := count(a.Media)
	bn, bl := count(b.Media)
	return cmp.Or(
		compareBool(a.Media.Arch == "all", b.Media.Arch == "all"),
		compareBool(a.Media.VolumeSize == 0, b.Media.VolumeSize == 0),
		cmp.Compare(bn, an),
		cmp.Compare(bl, al),
		b.OS.Released.Compare(a.OS.Released),
		strings.Compare(a.OS.ID, b.OS.ID),
	)
}

// compareBool puts false first.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// matchExpr reports whether an expression of the database fits somewhere in s.
// An expression that is not given fits anything; one that is given does not
// fit what the media do not say.
func matchExpr(expr, s string) bool {
	if expr == "" {
		return true
	}
	if s == "" {
		return false
	}
	// What an expression surely needs is looked for first: compiling some
	// thousands would take most of the time.
	if p := literalStart(expr); p != "" && !strings.Contains(s, p) {
		return false
	}
	with, without, err := compileExpr(expr)
	if err != nil {
		return false
	}
	return with.MatchString(s) && (without == nil || !without.MatchString(s))
}

// literalStart returns letters that whatever fits the expression must hold,
// taken from its start, "" where that is not plain.
func literalStart(expr string) string {
	if strings.ContainsAny(expr, "|") {
		return ""
	}
	expr = strings.TrimPrefix(expr, "^")
	i := strings.IndexAny(expr, `\.+*?()[]{}^$`)
	if i < 0 {
		return expr
	}
	// A letter that ?, * or {0,} follows may be missing.
	if i > 0 && strings.IndexByte("?*{", expr[i]) >= 0 {
		i--
	}
	for i > 0 && expr[i] >= 0x80 { // no half letters
		i--
	}
	return expr[:i]
}

const maxExpr = 1000 // bytes; the longest of the database has 200

// compileExpr compiles an expression of the database. They are Perl's, of
// which Go's lack only what looks around. The one thing of that kind in the
// database is "not followed by", (?!X): it is answered by two expressions, one
// without it that must fit and one that demands X there, which must not.
func compileExpr(expr string) (with, without *regexp.Regexp, err error) {
	if len(expr) > maxExpr {
		return nil, nil, fmt.Errorf("expression of %d bytes, more than the limit of %d", len(expr), maxExpr)
	}
	before, after, found := strings.Cut(expr, "(?!")
	if !found {
		with, err = regexp.Compile(expr)
		return with, nil, err
	}
	end := closingParen(after)
	if end < 0 {
		return nil, nil, fmt.Errorf("expression %q has an open parenthesis", expr)
	}
	if with, err = regexp.Compile(before + after[end+1:]); err != nil {
		return nil, nil, err
	}
	without, err = regexp.Compile(before + "(?:" + after[:end] + ")" + after[end+1:])
	return with, without, err
}

// closingParen returns where the parenthesis closes that s stands behind, -1
// where none does.
func closingParen(s string) int {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '(':
			depth++
		case ')':
			if depth == 0 {
				return i
			}
			depth--
		}
	}
	return -1
}
