package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/guest/seed"
	"github.com/lamina-vm/lamina/internal/vm"
)

// TestMachineOptions: what every machine has, what one has that is asked for, and
// that two never have the same generation.
func TestMachineOptions(t *testing.T) {
	x := serve(t, Options{Driver: &fakeDriver{}})
	x.must(x.stream("POST", "/v1/templates", api.ImportRequest{Source: x.image, Name: "base"}, nil))
	var list []api.Machine
	x.must(x.stream("POST", "/v1/clones", api.CloneRequest{Template: "base", Names: []string{"a", "b"},
		MachineConfig: api.MachineConfig{Balloon: true, Labels: map[string]string{"role": "web"}}}, &list))
	ids := map[string]bool{}
	for _, m := range list {
		ids[m.Spec.GenerationID] = true
		var channels []string
		for _, c := range m.Spec.Channels {
			channels = append(channels, c.Target)
		}
		if strings.Join(channels, " ") != vm.ChannelLamina+" "+vm.ChannelAgent {
			t.Errorf("channels %q", channels)
		}
		if m.Spec.Balloon == nil || m.Spec.Balloon.FreePageReporting != vm.On {
			t.Errorf("balloon %+v", m.Spec.Balloon)
		}
		if m.Labels["role"] != "web" {
			t.Errorf("labels %v", m.Labels)
		}
	}
	if len(ids) != 2 || ids[""] {
		t.Errorf("generation ids %v", ids)
	}
	for _, labels := range []map[string]string{{"": "x"}, {"a b": "x"}, {"a=b": ""}, {"a": strings.Repeat("x", 300)}} {
		e := second(x.stream("POST", "/v1/clones", api.CloneRequest{Template: "base", Names: []string{"c"}, MachineConfig: api.MachineConfig{Labels: labels}}, nil))
		if e == nil || e.Code != api.CodeInvalid {
			t.Errorf("labels %.20v: %v", labels, e)
		}
	}
}

// TestUserDataTemplate: each machine has its own user-data, and a mistake that only
// the tenth would meet is told before the first is made.
func TestUserDataTemplate(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]string{}
	build := func(c seed.Config) ([]byte, error) {
		mu.Lock()
		defer mu.Unlock()
		if c.InstanceID != "try" {
			seen[c.Hostname] = string(c.UserData)
		}
		return seed.Build(c)
	}
	x := serve(t, Options{Driver: &fakeDriver{}, Seed: build})
	x.must(x.stream("POST", "/v1/templates", api.ImportRequest{Source: x.image, Name: "base"}, nil))
	clone := func(text, pattern string) *api.Error {
		return second(x.stream("POST", "/v1/clones", api.CloneRequest{Template: "base", Names: []string{pattern}, Start: true,
			MachineConfig: api.MachineConfig{UserDataTemplate: true, UserData: []byte(text)}}, nil))
	}
	if e := clone("#cloud-config\nx: {{.Index}}/{{.Count}} {{.Name}} {{.Hostname}} {{.Template}}\n", "W-{1..3}"); e != nil {
		t.Fatal(e)
	}
	if got := seen["w-2"]; got != "#cloud-config\nx: 2/3 W-2 w-2 base\n" {
		t.Errorf("the second machine is told %q of %q", got, seen)
	}
	for text, want := range map[string]string{
		"#cloud-config\n{{.Nmae}}":                              "Nmae",
		"{{if lt .Index 10}}#cloud-config{{else}}what{{end}}\n": "t-10",
		"":                                      "is empty",
		"#cloud-config\n{{range .Name}}{{end}}": "not allowed",
	} {
		if e := clone(text, "t-{1..10}"); e == nil || e.Code != api.CodeInvalid || !strings.Contains(e.Message, want) {
			t.Errorf("%q: %v; want %q", text, e, want)
		}
	}
	var all []api.Machine
	if _, e := x.call("GET", "/v1/machines", nil, &all); e != nil || len(all) != 3 {
		t.Errorf("%d machines, %v: what failed has left some", len(all), e)
	}
}

func TestKSMNote(t *testing.T) {
	file := filepath.Join(t.TempDir(), "run")
	ask := api.MachineConfig{KSM: true}
	if note := ksmNote(ask, file); !strings.Contains(note, "cannot merge") {
		t.Errorf("no KSM: %q", note)
	}
	for content, want := range map[string]string{"0\n": "does not merge", "1\n": ""} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if note := ksmNote(ask, file); (want == "") != (note == "") || !strings.Contains(note, want) {
			t.Errorf("%q: %q", content, note)
		}
	}
	if note := ksmNote(api.MachineConfig{}, "/nonexistent"); note != "" {
		t.Errorf("nobody asked: %q", note)
	}
}

// TestShares: a list does not measure what was measured a moment ago, nor more
// than it has the time for.
func TestShares(t *testing.T) {
	s := newShares()
	reads := 0
	s.read = func(pid int) int64 { reads++; return int64(pid) * 10 }
	later, past := time.Now().Add(time.Hour), time.Now().Add(-time.Hour)
	if got := s.of(7, past); got != 0 || reads != 0 {
		t.Errorf("without time: %d, %d reads", got, reads)
	}
	for range 3 {
		if got := s.of(7, later); got != 70 || reads != 1 {
			t.Errorf("measured: %d, %d reads", got, reads)
		}
	}
	s.known[7] = share{bytes: 5}
	if got := s.of(7, past); got != 5 {
		t.Errorf("an old one, without time: %d", got)
	}
	s.known[8] = share{bytes: 1}
	s.refresh([]int{7, 9}, func() bool { return false })
	if len(s.known) != 2 || s.known[7].bytes != 70 || s.known[9].bytes != 90 || reads != 3 {
		t.Errorf("after a refresh: %v, %d reads", s.known, reads)
	}
	if n := residentShare(os.Getpid()); n < 1<<20 {
		t.Errorf("this process takes %d bytes", n)
	}
}

// TestNoMerge: memory is merged with other machines' only where that was asked for.
func TestNoMerge(t *testing.T) {
	for _, ksm := range []bool{false, true} {
		var s vm.Spec
		if withMemory(&s, api.MachineConfig{KSM: ksm}); s.MemoryConfig.NoMerge == ksm {
			t.Errorf("KSM %v: %+v", ksm, s.MemoryConfig)
		}
	}
}
