package cli

import (
	"os/exec"
	"strings"
	"testing"
)

func TestNamedUser(t *testing.T) {
	for _, c := range []struct{ said, want string }{
		{"Please login as the user \"debian\" rather than the user \"root\".\n\n", "debian"},
		{"motd\nPlease login as the user \"ec2-user\" rather than the user \"root\".", "ec2-user"},
		{"Please login as the user \"-oProxyCommand=x\" rather than the user \"root\".\n", ""},
		{"Please login as the user \"a b\" rather than", ""},
		{"Please login as the user \"\" rather than", ""},
		{"Please login as the user \"cut", ""},
		{strings.Repeat("x", 100<<10) + "\nPlease login as the user \"late\" rather", ""},
		{"", ""},
	} {
		if got := namedUser(strings.NewReader(c.said)); got != c.want {
			t.Errorf("%.60q: %q, want %q", c.said, got, c.want)
		}
	}
}

// TestPasted: what is suggested does the same when it is pasted into a shell.
func TestPasted(t *testing.T) {
	words := []string{"uname", "-a", "a; b | c", "it's", "", "$HOME"}
	out, err := exec.CommandContext(t.Context(), "sh", "-c", "printf '<%s>' "+pasted(words)).Output()
	if want := "<" + strings.Join(words, "><") + ">"; err != nil || string(out) != want {
		t.Errorf("%s, want %s: %v", out, want, err)
	}
	if got := pasted([]string{"uname", "-a"}); got != "uname -a" {
		t.Errorf("%q", got)
	}
}
