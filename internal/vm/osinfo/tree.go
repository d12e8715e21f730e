package osinfo

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Treeinfo is what the .treeinfo (or treeinfo) file of a network installation
// tree says. In the database the first four are regular expressions.
type Treeinfo struct {
	Family, Variant, Version, Arch string
	Kernel, Initrd, BootISO        string // paths in the tree, for that architecture
}

const maxTreeinfo = 1 << 20 // bytes

// ParseTreeinfo reads a .treeinfo file: groups in brackets, KEY = VALUE, and
// comments. Of a key that is given twice the last counts.
func ParseTreeinfo(data []byte) (Treeinfo, error) {
	if len(data) > maxTreeinfo {
		return Treeinfo{}, fmt.Errorf("treeinfo of %d bytes, more than the limit of %d", len(data), maxTreeinfo)
	}
	groups := map[string]map[string]string{}
	var group map[string]string
	line := 0
	for text := range strings.Lines(strings.ToValidUTF8(string(data), "\ufffd")) {
		line++
		text = strings.TrimSpace(text)
		if text == "" || text[0] == '#' {
			continue
		}
		if name, ok := strings.CutPrefix(text, "["); ok && strings.HasSuffix(name, "]") {
			name = strings.TrimSuffix(name, "]")
			if groups[name] == nil {
				groups[name] = map[string]string{}
			}
			group = groups[name]
			continue
		}
		key, value, ok := strings.Cut(text, "=")
		if !ok || group == nil {
			return Treeinfo{}, fmt.Errorf("treeinfo: line %d: expected [GROUP] or KEY = VALUE", line)
		}
		group[strings.TrimSpace(key)] = unescapeKey(strings.TrimSpace(value))
	}
	general := groups["general"]
	if general == nil {
		return Treeinfo{}, fmt.Errorf("treeinfo: no group [general]")
	}
	t := Treeinfo{Family: general["family"], Variant: general["variant"], Version: general["version"], Arch: general["arch"]}
	images := groups["images-"+t.Arch]
	t.Kernel, t.Initrd, t.BootISO = images["kernel"], images["initrd"], images["boot.iso"]
	return t, nil
}

// unescapeKey resolves the escapes of GLib's key files.
func unescapeKey(s string) string {
	return strings.NewReplacer(`\\`, `\`, `\s`, " ", `\n`, "\n", `\t`, "\t", `\r`, "\r").Replace(s)
}

// DetectTree says which system a network installation tree is of. The error
// wraps [ErrUnknownMedia].
func (db *DB) DetectTree(t Treeinfo) (Match, error) {
	var found []Match
	asked := []wanted{{"family", t.Family}, {"variant", t.Variant}, {"version", t.Version}, {"arch", t.Arch}}
	db.candidates("treeinfo", asked, func(r *record) {
		for _, tree := range r.trees {
			if tree.matches(t) {
				found = append(found, Match{OS: db.os(r), Tree: tree})
			}
		}
	})
	if len(found) == 0 {
		return Match{}, fmt.Errorf("%w: family %q, variant %q, version %q, architecture %q",
			ErrUnknownMedia, t.Family, t.Variant, t.Version, t.Arch)
	}
	return slices.MinFunc(found, func(a, b Match) int {
		return cmp.Or(
			compareBool(a.Tree.Arch == "all", b.Tree.Arch == "all"),
			cmp.Compare(b.Tree.expressions(), a.Tree.expressions()),
			b.OS.Released.Compare(a.OS.Released),
			strings.Compare(a.OS.ID, b.OS.ID),
		)
	}), nil
}

func (t Tree) matches(info Treeinfo) bool {
	return t.hasTreeinfo && matchExpr(t.Treeinfo.Family, info.Family) && matchExpr(t.Treeinfo.Variant, info.Variant) &&
		matchExpr(t.Treeinfo.Version, info.Version) && matchExpr(t.Treeinfo.Arch, info.Arch)
}

// expressions is how much the tree's description asks for.
func (t Tree) expressions() int {
	n := 0
	for _, e := range []string{t.Treeinfo.Family, t.Treeinfo.Variant, t.Treeinfo.Version, t.Treeinfo.Arch} {
		if e != "" {
			n += 1000 + len(e)
		}
	}
	return n
}
