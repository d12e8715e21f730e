package boot

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func until(a *analyser, now, limit time.Duration) *Result {
	for ; a.result == nil && now < limit; now += tickInterval {
		a.tick(now)
	}
	return a.result
}

func TestSilence(t *testing.T) {
	for _, tc := range []struct {
		name, serial string
		screen       []string // nil: graphics mode
		hints        Hints
		stage        Stage
		cause        string
		after        time.Duration
	}{
		{"nothing at all", "", nil, Hints{}, StageNone, "graphics mode", 90 * time.Second},
		{"nothing, and a text screen", "", []string{"some text"}, Hints{}, StageNone, "without a serial console", 90 * time.Second},
		{"under TCG", "", nil, Hints{TCG: true}, StageNone, "serial port", 360 * time.Second},
		{"firmware", "SeaBIOS (version 1.16)\n", nil, Hints{}, StageFirmware, "firmware", 90 * time.Second},
		{"boot loader", "GRUB loading.\nLoading Linux 6.1 ...\n", nil, Hints{}, StageBootLoader, "console=ttyS0|does not write", 90 * time.Second},
		{"kernel", "[    0.000000] Linux version 6.1\n[    0.1] x\n", nil, Hints{}, StageKernel, "kernel stopped", 90 * time.Second},
		{"init", "[  OK  ] Reached target Multi-User System.\n", nil, Hints{}, StageInit, "no getty", 90 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := newAnalyser(Options{Hints: tc.hints})
			a.write(0, []byte(tc.serial))
			a.show(0, tc.screen)
			r := until(a, 0, time.Hour)
			if r == nil || r.Problem == nil || r.Problem.Kind != KindStalled || r.Problem.Stage != tc.stage {
				t.Fatalf("%+v", r)
			}
			if r.Took < tc.after || r.Took > tc.after+time.Second {
				t.Errorf("after %v, want %v", r.Took, tc.after)
			}
			want := strings.Split(tc.cause, "|")
			if !strings.Contains(r.Problem.Cause, want[len(want)-1]) {
				t.Errorf("cause %q", r.Problem.Cause)
			}
		})
	}
}

func TestTimeoutWhileWorking(t *testing.T) {
	a := newAnalyser(Options{Hints: Hints{TCG: true}, Timeout: time.Minute})
	now := time.Duration(0)
	for ; a.result == nil && now < time.Hour; now += time.Second {
		a.write(now, fmt.Appendf(nil, "[%5d.000000] still at it\n", int(now.Seconds())))
		a.tick(now)
	}
	p := a.result.Problem
	if p == nil || p.Kind != KindTimeout || !strings.Contains(p.Cause, "still works") || !strings.Contains(p.Cause, "KVM") {
		t.Errorf("%+v", p)
	}
	if a.result.Took != time.Minute {
		t.Errorf("took %v", a.result.Took)
	}
}

// The screen is what is looked at where the serial port says nothing.
func TestScreen(t *testing.T) {
	a := newAnalyser(Options{Hints: Hints{DiskBus: "ide"}})
	a.show(time.Second, []string{"SeaBIOS (version 1.16.2-debian-1.16.2-1)", "", "Booting from Hard Disk...", "Boot failed: not a bootable disk", "", "No bootable device.", ""})
	r := until(a, time.Second, time.Minute)
	if r == nil || r.Problem == nil || r.Problem.Kind != KindNoBootable || r.Via != "screen" || r.Took > 5*time.Second {
		t.Fatalf("%+v", r)
	}
	if got := r.Problem.Last[len(r.Problem.Last)-1]; got != "No bootable device." {
		t.Errorf("last line %q", got)
	}

	a = newAnalyser(Options{})
	a.show(time.Second, []string{"GRUB loading."})
	a.show(2*time.Second, []string{"Alpine 3.20", "web login:"})
	if a.result == nil || !a.result.Login || a.result.Via != "screen" {
		t.Errorf("login on the screen: %+v", a.result)
	}

	// The same picture is not news.
	a = newAnalyser(Options{})
	for now := time.Duration(0); a.result == nil && now < time.Hour; now += time.Second {
		a.show(now, []string{"Loading Linux 6.1 ..."})
		a.tick(now)
	}
	if p := a.result.Problem; p == nil || p.Kind != KindStalled || p.Stage != StageBootLoader {
		t.Errorf("%+v", a.result)
	}
}

// The screen's login prompt waits for the serial port's, which is what
// `lamina console` reaches.
func TestScreenGivesWayToSerial(t *testing.T) {
	a := newAnalyser(Options{})
	a.write(0, []byte("[  OK  ] Started getty\r\n"))
	a.show(time.Second, []string{"web login:"})
	if a.result != nil {
		t.Fatal("the screen's prompt counted while the serial port speaks")
	}
	a.write(2*time.Second, []byte("web login: "))
	if a.result == nil || a.result.Via != "serial" {
		t.Errorf("%+v", a.result)
	}
	a = newAnalyser(Options{})
	a.write(0, []byte("[  OK  ] Started getty\r\n"))
	a.show(screenPatience, []string{"web login:"})
	if a.result == nil || a.result.Via != "screen" {
		t.Errorf("a silent port: %+v", a.result)
	}
}

// What both consoles show counts as the serial port's.
func TestSameStageOnBoth(t *testing.T) {
	a := newAnalyser(Options{})
	a.show(time.Second, []string{"SYSLINUX 6.04", "boot:"})
	a.write(2*time.Second, []byte("SYSLINUX 6.04\r\nboot: "))
	r := until(a, 2*time.Second, time.Minute)
	if r == nil || r.Problem == nil || r.Problem.Kind != KindLoader || r.Via != "serial" {
		t.Errorf("%+v", r)
	}
}

// A screen cuts lines at its width; half an address is none.
func TestAskedURL(t *testing.T) {
	for line, want := range map[string]string{
		"url_helper.py[WARNING]: Calling 'http://169.254.169.254/x' failed [0/120s]": "http://169.254.169.254/x",
		"url_helper.py[WARNING]: Calling 'http://169.254.169.25":                     "",
		"checking http://169.254.169.254/2009-04-04/instance-id":                     "http://169.254.169.254/2009-04-04/instance-id",
		"checking http://169.254.169":                                                "",
	} {
		if got := askedURL(line); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

func TestLoginPrompts(t *testing.T) {
	for line, want := range map[string]bool{
		"web login:": true, "localhost login:": true, "(none) login:": true, "login:": true,
		"a.b-c_1 login:":  true,
		"Last login:":     false,
		"failed login:":   true, // a host may be called so; nothing follows it
		"x web login:":    false,
		"weblogin:":       false,
		" login:":         false,
		"web login: root": false,
		"":                false,
	} {
		if got := isLogin(line); got != want {
			t.Errorf("isLogin(%q) = %v", line, got)
		}
	}
	for line, want := range map[string]bool{
		"web login: [   19.5] cloud-init[612]: x": true,
		"web login: ci-info: no keys":             true,
		"web login: root":                         false,
		"sshd: invalid login: [preauth]":          false,
	} {
		if got := isLoginSwamped(line); got != want {
			t.Errorf("isLoginSwamped(%q) = %v", line, got)
		}
	}
	for line, want := range map[string]bool{"root@web:~#": true, "ann@web:/x$": true, "~ #": false, "a@b": false, "#": false} {
		if got := isShell(line); got != want {
			t.Errorf("isShell(%q) = %v", line, got)
		}
	}
}

func TestTerminal(t *testing.T) {
	for in, want := range map[string][]string{
		"a\r\nb\n":                        {"a", "b"},
		"one\rtwo\n":                      {"one", "two"},
		"\x1b[1;31mred\x1b[0m text\n":     {"red text"},
		"\x1b[2J\x1b[1;1Hmenu\x1b[5;3Hx":  {"menu"},
		"\x1b]0;title\x07after\n":         {"after"},
		"\x1b]8;;http://x\x1b\\link\n":    {"link"},
		"abc\b\b\bxy\n":                   {"xy"},
		"a\tb\x00c\n":                     {"a bc"},
		"\x1bM\r\x1b[K[ *** ] job\n":      {"[ *** ] job"},
		"\x1b(Btext\n":                    {"text"},
		"\xff\xfe\n":                      {"?"},
		"\n\n  \n":                        nil,
		"\x1b[\x01broken\n":               {"broken"},
		strings.Repeat("x", 5000) + "\ny": {strings.Repeat("x", maxLine)},
	} {
		var got []string
		tm := terminal{emit: func(s string) { got = append(got, s) }}
		tm.write([]byte(in))
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func TestKernelLines(t *testing.T) {
	for line, want := range map[string]bool{
		"[    0.000000] x": true, "[12345.678901] x": true, "[   12.34] x": false, "[  OK  ] x": false, "[ 1.2345678 x": false, "[": false, "": false,
	} {
		if got := isKernelLine(line); got != want {
			t.Errorf("%q: %v", line, got)
		}
	}
}

func TestStageText(t *testing.T) {
	b, err := json.Marshal(Result{Stage: StageBootLoader})
	if err != nil || !strings.Contains(string(b), `"stage":"boot loader"`) {
		t.Errorf("%s, %v", b, err)
	}
	for s := StageNone; s <= StageLogin; s++ {
		var back Result
		b, err := json.Marshal(Result{Stage: s})
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &back); err != nil || back.Stage != s {
			t.Errorf("%v: %v, %v", s, back.Stage, err)
		}
	}
	if err := json.Unmarshal([]byte(`{"stage":"nowhere"}`), &Result{}); err == nil {
		t.Error("an unknown stage was taken")
	}
	if _, err := json.Marshal(Result{Stage: 99}); err == nil {
		t.Error("a stage out of range was written")
	}
	if Stage(99).String() == "" {
		t.Error("no text")
	}
}

// Every rule can be met: its own words lead to it and not to one before it.
func TestEveryRuleIsReached(t *testing.T) {
	for i := range rules {
		r := &rules[i]
		for _, h := range r.has {
			line := h
			if r.also != "" && !strings.Contains(line, r.also) {
				line += " " + r.also
			}
			_, got := match(line)
			if r.mode != sign && got != r && (got == nil || got.kind != r.kind) {
				t.Errorf("%q is taken for %+v", line, got)
			}
		}
		if r.mode != sign && r.kind == "" || r.mode == wait && (r.note == "" || r.after == 0) {
			t.Errorf("rule %q is not whole", r.has)
		}
	}
}

// FuzzAnalyser: no output makes the analyser panic or grow, and how the bytes
// are cut into reads changes nothing of what the lines say.
func FuzzAnalyser(f *testing.F) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		f.Fatal(files, err)
	}
	for i, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[max(0, len(b)-3000):], uint8(i))
	}
	f.Fuzz(func(t *testing.T, b []byte, cut uint8) {
		var whole, parts []string
		one := terminal{emit: func(s string) { whole = append(whole, s) }}
		one.write(b)
		two := terminal{emit: func(s string) { parts = append(parts, s) }}
		a := newAnalyser(Options{Hints: Hints{DiskBus: "virtio"}})
		step := int(cut) + 1
		for i := 0; i < len(b); i += step {
			c := b[i:min(i+step, len(b))]
			two.write(c)
			a.write(time.Duration(i)*time.Millisecond, c)
			a.tick(time.Duration(i) * time.Millisecond)
		}
		if !reflect.DeepEqual(whole, parts) {
			t.Errorf("%q\n%q", whole, parts)
		}
		a.show(time.Duration(len(b))*time.Millisecond, strings.Split(string(b), "\n"))
		if r := until(a, time.Duration(len(b))*time.Millisecond, 3*time.Hour); r == nil {
			t.Error("nothing decided")
		} else if p := r.Problem; p != nil && (len(p.Last) > maxLast || p.Cause == "" || len(p.Remedy) == 0 || p.Kind == "") {
			t.Errorf("%+v", p)
		}
		if len(a.told) > 101 || len(a.serial.term.line) > maxLine {
			t.Error("grows without bound")
		}
	})
}

// TestMountFailures: only a root that is not mounted ends a boot.
func TestMountFailures(t *testing.T) {
	for line, fatal := range map[string]bool{
		"mount: mounting /dev/vda1 on /root failed: No such device":                true,
		"mount: mounting /dev/vda3 on /sysroot failed: Invalid argument":           true,
		"Unable to find a medium containing a live file system":                    true,
		"mount: mounting /dev/vdb1 on /root/data failed: No such device":           false,
		"mount: mounting /dev/disk/by-label/chroot on /mnt failed: No such device": false,
	} {
		a := newAnalyser(Options{})
		a.write(0, []byte("[    0.000000] Linux version 6.1\n"+line+"\n"))
		until(a, 0, 10*time.Second)
		if got := a.result != nil && a.result.Problem != nil && a.result.Problem.Kind == KindNoRoot; got != fatal {
			t.Errorf("%s: %+v", line, a.result)
		}
	}
}
