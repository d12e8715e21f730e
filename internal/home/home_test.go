package home

import (
	"os"
	"path/filepath"
	"testing"
)

func TestRuntimeDir(t *testing.T) {
	mine := t.TempDir()
	other := filepath.Join(mine, "other")
	if err := os.Mkdir(other, 0o700); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		t.Fatal("this test runs as root")
	}
	if err := os.Chown(other, 1, 1); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ env, session, want string }{
		{"/x", mine, "/x"},
		{"", mine, mine}, // cron, su
		{"relative", mine, mine},
		{"", other, ""}, // another user's
		{"", filepath.Join(mine, "none"), ""},
	} {
		if got := runtimeDir(c.env, c.session); got != c.want {
			t.Errorf("XDG_RUNTIME_DIR=%s, %s: %q, want %q", c.env, c.session, got, c.want)
		}
	}
}

// TestAt: two homes have no file in common.
func TestAt(t *testing.T) {
	t.Setenv(Env, "/a")
	a, err := Find()
	if err != nil || a != At("/a") {
		t.Fatalf("%+v, %v", a, err)
	}
	b := At("/b")
	for _, f := range []func(Home) string{Home.Socket, Home.Lock, Home.StartLock, Home.DaemonLog, Home.Database, Home.Key, Home.Downloads, Home.Templates, Home.Machines} {
		if f(a) == f(b) || filepath.Dir(f(a))[:2] != "/a" {
			t.Errorf("%s and %s", f(a), f(b))
		}
	}
}
