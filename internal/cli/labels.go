package cli

import (
	"maps"
	"slices"
	"strings"
)

// parseLabels reads KEY=VALUE words.
func parseLabels(words []string) (map[string]string, error) {
	if len(words) == 0 {
		return nil, nil
	}
	out := make(map[string]string, len(words))
	for _, w := range words {
		key, value, ok := strings.Cut(w, "=")
		if !ok || key == "" {
			return nil, usagef("--label %q: it is KEY=VALUE", w)
		}
		if _, twice := out[key]; twice {
			return nil, usagef("--label %s: it is given twice", key)
		}
		out[key] = value
	}
	return out, nil
}

// labelText writes labels in order.
func labelText(labels map[string]string) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		out = append(out, k+"="+labels[k])
	}
	return strings.Join(out, " ")
}

// hasLabels says whether a machine has all of some labels.
func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}
