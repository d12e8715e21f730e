package systemd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/home"
)

// TestUnits lets systemd itself read the units: it must find nothing to say.
func TestUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Fatal("systemd-analyze is not installed: run make deps")
	}
	for _, c := range []struct {
		dir  string
		args []string
	}{{".", nil}, {"user", []string{"--user"}}} {
		dir := t.TempDir()
		// It insists that the program exists; /bin/true stands in.
		var units []string
		for _, u := range []string{"laminad.service", "laminad.socket"} {
			b, err := os.ReadFile(filepath.Join(c.dir, u))
			if err != nil {
				t.Fatal(err)
			}
			text := strings.Replace(string(b), "ExecStart=/usr/local/bin/laminad\n", "ExecStart=/bin/true\n", 1)
			if strings.HasSuffix(u, ".service") && text == string(b) {
				t.Errorf("%s does not start /usr/local/bin/laminad", u)
			}
			path := filepath.Join(dir, u)
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			units = append(units, path)
		}
		cmd := exec.Command(analyze, append(append([]string{"verify", "--man=no", "--recursive-errors=no"}, c.args...), units...)...)
		cmd.Env = append(os.Environ(), "LC_ALL=C", "XDG_RUNTIME_DIR="+dir)
		out, err := cmd.CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("%v: %v\n%s", cmd.Args, err, out)
		}
	}
}

// TestSockets: the units listen where the command looks for the daemon, and
// the machines survive the service.
func TestSockets(t *testing.T) {
	t.Setenv(home.Env, "")
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/1")
	system := home.Home{Run: "/run/lamina"}
	user := home.Home{Run: "/run/user/1/lamina"}
	if os.Geteuid() == 0 {
		h, err := home.Find()
		if err != nil {
			t.Fatal(err)
		}
		system = h
	}
	for file, want := range map[string]string{
		"laminad.socket":       "\nListenStream=" + system.Socket() + "\n",
		"user/laminad.socket":  "\nListenStream=" + strings.Replace(user.Socket(), "/run/user/1", "%t", 1) + "\n",
		"laminad.service":      "\nKillMode=process\n",
		"user/laminad.service": "\nKillMode=process\n",
	} {
		b, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%s: no %q, %v", file, want, err)
		}
	}
}
