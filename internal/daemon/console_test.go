package daemon

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
)

// TestConsole shares a serial port between clients.
func TestConsole(t *testing.T) {
	driver := &fakeDriver{}
	x := serve(t, Options{Driver: driver})
	m := x.run("m")
	a := x.dialConsole("m")
	// What the guest wrote before is shown.
	x.readUntil(a, "guest login: ")
	for _, text := range []string{"root\n", "\x03", "ls\n", "\x00\xff\n"} {
		began := time.Now()
		if _, err := io.WriteString(a, text); err != nil {
			t.Fatal(err)
		}
		if got := x.readUntil(a, text); got != text {
			t.Errorf("echo %q, want %q", got, text)
		}
		t.Logf("echo after %s", time.Since(began))
	}
	b := x.dialConsole("m")
	if got := x.readUntil(b, "\x00\xff\n"); !strings.Contains(got, "login: root\n\x03ls\n") {
		t.Errorf("backlog %q", got)
	}
	if _, err := io.WriteString(b, "from b\n"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{a, b} {
		if got := x.readUntil(c, "from b\n"); got != "from b\n" {
			t.Errorf("%q", got)
		}
	}
	// A client that leaves does not take the others along; after the last,
	// the next one gets a new connection.
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	driver.machine(t, m.Dir).say("hello b\n")
	x.readUntil(b, "hello b\n")
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	c := x.dialConsole("m")
	x.readUntil(c, "hello b\n")
	if _, err := io.WriteString(c, "again\n"); err != nil {
		t.Fatal(err)
	}
	x.readUntil(c, "again\n")
	// The end of the machine is the end of the console, after its last words.
	guest := driver.machine(t, m.Dir)
	guest.say("power down\n")
	guest.end("stopped", "guest shut down")
	x.readUntil(c, "power down\n")
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		t.Errorf("%q, %v", rest, err)
	}
	if _, e := x.stream("POST", "/v1/machines/m/console", nil, nil); e == nil {
		t.Error("a console without a machine")
	}
}

// TestSlowConsole: a client that does not read holds up nobody and is cut off.
func TestSlowConsole(t *testing.T) {
	driver := &fakeDriver{}
	x := serve(t, Options{Driver: driver})
	m := x.run("m")
	x.dialConsole("m") // and never reads
	quick := x.dialConsole("m")
	x.readUntil(quick, "login: ")
	guest := driver.machine(t, m.Dir)
	line := strings.Repeat("x", 1023) + "\n"
	go func() {
		for range 2000 {
			guest.say(line)
		}
		guest.say("end")
	}()
	if err := quick.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var all bytes.Buffer
	for buf := make([]byte, 64<<10); !bytes.HasSuffix(all.Bytes(), []byte("end")); {
		n, err := quick.Read(buf)
		if err != nil {
			t.Fatalf("after %d bytes: %v", all.Len(), err)
		}
		all.Write(buf[:n])
	}
	if want := 2000*len(line) + len("end"); all.Len() != want {
		t.Errorf("%d bytes, want %d", all.Len(), want)
	}
}

// TestFollowLog: a followed log has every byte and ends with the machine.
func TestFollowLog(t *testing.T) {
	driver := &fakeDriver{}
	x := serve(t, Options{Driver: driver})
	m := x.run("m")
	res := x.send(t.Context(), "GET", "/v1/machines/m/log?follow=1&tail=1", nil)
	defer func() { _ = res.Body.Close() }()
	guest := driver.machine(t, m.Dir)
	go func() {
		for range 50 {
			guest.say("tick\n")
			time.Sleep(time.Millisecond)
		}
		guest.end("stopped", "guest shut down")
	}()
	b, err := io.ReadAll(res.Body)
	if want := "guest login: " + strings.Repeat("tick\n", 50); err != nil || string(b) != want {
		t.Errorf("%q, %v", b, err)
	}
	x.await("m", api.Stopped)
}

func TestTailOffset(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	long := strings.Repeat("y", 40<<10)
	for _, c := range []struct {
		content string
		lines   int
		most    int64
		want    string
	}{
		{"", 3, 0, ""},
		{"a", 1, 0, "a"},
		{"a\n", 1, 0, "a\n"},
		{"a\nb", 1, 0, "b"},
		{"a\nb\n", 1, 0, "b\n"},
		{"a\nb\n", 2, 0, "a\nb\n"},
		{"a\nb\n", 9, 0, "a\nb\n"},
		{"a\nb\n", 0, 0, ""},
		{"a\nb\n", -1, 0, "a\nb\n"},
		{"a\n\n\n", 2, 0, "\n\n"},
		{"a\n" + long + "\nb\n", 2, 0, long + "\nb\n"},
		{"a\n" + long + "\nb\n", 2, 10, "yyyyyyy\nb\n"},
		{"a\nb\n", -1, 2, "b\n"},
		{long + "\n" + long, 1, 0, long},
	} {
		if err := os.WriteFile(path, []byte(c.content), 0o600); err != nil {
			t.Fatal(err)
		}
		off, err := tailOffset(path, c.lines, c.most)
		if err != nil || off < 0 || c.content[off:] != c.want {
			t.Errorf("last %d lines of %.20q: from %d, %v", c.lines, c.content, off, err)
		}
	}
	if off, err := tailOffset(path+"none", 3, 0); off != 0 || err != nil {
		t.Errorf("no file: %d, %v", off, err)
	}
}

func TestLogFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := OpenLog(path)
	if err != nil {
		t.Fatal(err)
	}
	l.max = 100
	record := []byte(strings.Repeat("r", 29) + "\n")
	for range 10 {
		if _, err := l.Write(record); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Write(record); err == nil {
		t.Error("a write after the end")
	}
	for p, want := range map[string]int64{path: 30, path + ".1": 90} {
		st, err := os.Stat(p)
		if err != nil || st.Size() != want || st.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", p, st, err)
		}
	}
}
