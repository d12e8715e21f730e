package inspect

import (
	"strings"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/vm/osinfo"
)

// SpecOS returns the short id by which db knows the system of an image: its own
// one, or that of the newest release before it that the database knows, whose
// needs are the likeliest to fit. exact says which; the id is "" where the
// database knows nothing of the kind.
func SpecOS(db *osinfo.DB, info api.ImageInfo) (id string, exact bool) {
	if info.OS == "" {
		return "", false
	}
	if _, err := db.Lookup(info.OS); err == nil {
		return info.OS, true
	}
	stem := strings.TrimRight(info.OS, "0123456789.")
	want := version(info.OS[len(stem):])
	best := []int(nil)
	for _, o := range db.List() {
		for _, short := range o.ShortIDs {
			rest, ok := strings.CutPrefix(short, stem)
			if !ok || strings.Trim(rest, "0123456789.") != "" || rest == "" {
				continue
			}
			if v := version(rest); less(v, want) && (best == nil || less(best, v)) {
				best, id = v, short
			}
		}
	}
	return id, false
}

// version reads the numbers of "22.04".
func version(s string) []int {
	var out []int
	for part := range strings.SplitSeq(s, ".") {
		n := 0
		for _, c := range part {
			if n < 1e8 {
				n = n*10 + int(c-'0')
			}
		}
		out = append(out, n)
	}
	return out
}

func less(a, b []int) bool {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return a[i] < b[i]
		}
	}
	return len(a) < len(b)
}
