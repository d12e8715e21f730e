package nearest

import "testing"

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b       string
		most, want int
	}{
		{"debian", "debian", 2, 0},
		{"debain", "debian", 2, 1},
		{"", "abc", 3, 3},
		{"abc", "", 3, 3},
		{"abc", "", 2, 3},
		{"kitten", "sitting", 9, 3},
		{"a", "abcdefgh", 3, 4},
	} {
		if got := Distance(c.a, c.b, c.most); got != c.want {
			t.Errorf("Distance(%q, %q, %d) = %d, want %d", c.a, c.b, c.most, got, c.want)
		}
	}
}
