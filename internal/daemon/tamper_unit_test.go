package daemon

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lamina-vm/lamina/internal/api"
	"github.com/lamina-vm/lamina/internal/home"
	"github.com/lamina-vm/lamina/internal/vm"
)

// unitTampering is what happens to a warm unit, and how a start tells of it. A cold start
// is done then, or, where that was ruled out, refused with the way to one.
var unitTampering = []struct {
	name   string
	change func(x *tester, d *warmDriver, u api.WarmUnit) error
	start  string
	verify string // what a look at the content says, "" if it takes the unit back into use
	chosen bool   // what differs is what a person may have asked for: not worth a word
}{
	{"RAM cut", onRAM(func(p string) error { return os.Truncate(p, 3) }), "has 3 bytes in place of 6", "has SHA-256", false},
	{"RAM of zero length", onRAM(func(p string) error { return os.Truncate(p, 0) }), "has 0 bytes", "has SHA-256", false},
	{"RAM edited", onRAM(func(p string) error { return edit(p, false) }), "was written", "has SHA-256", false},
	{"RAM edited in secret", onRAM(func(p string) error { return edit(p, true) }), "was changed, or given another mode", "has SHA-256", false},
	{"RAM gone", onRAM(os.Remove), "is gone", "no such file", false},
	{"RAM replaced", onRAM(func(p string) error { return errors.Join(os.Remove(p), os.WriteFile(p, []byte("nezorf"), 0o600)) }), "RAM file", "has SHA-256", false},
	{"RAM replaced by a link", onRAM(byLink), "is no regular file", "is no regular file", false},
	{"RAM of another mode", onRAM(func(p string) error { return os.Chmod(p, 0o644) }), "given another mode", "", false},
	{"RAM copied", onRAM(copyOver), "is another file of the same size and time", "", false},
	{"state cut", onState(func(p string) error { return os.Truncate(p, 3) }), "has 3 bytes in place of 6", "has SHA-256", false},
	{"state edited", onState(func(p string) error { return edit(p, false) }), "was written", "has SHA-256", false},
	{"state edited in secret", onState(func(p string) error { return edit(p, true) }), "was changed, or given another mode", "has SHA-256", false},
	{"state gone", onState(os.Remove), "is gone", "no such file", false},
	{"its disk edited", func(x *tester, _ *warmDriver, u api.WarmUnit) error { return edit(x.home.LayerDisk(u.Layer), true) }, "the disk of warm unit", "has SHA-256", false},
	{"its disk gone", func(x *tester, _ *warmDriver, u api.WarmUnit) error { return os.Remove(x.home.LayerDisk(u.Layer)) }, "the disk of warm unit", "no such file", false},
	{"another QEMU here", func(_ *tester, d *warmDriver, _ api.WarmUnit) error { d.upgrade("9.9"); return nil }, "QEMU fake, ", "", false},
	{"of another QEMU", ofKey("qemu", `"1.0"`), "QEMU 1.0, ", "", false},
	{"of another build", ofKey("binary", `"abc"`), "build of QEMU abc, ", "", false},
	{"of another CPU", ofKey("cpu", `"z80"`), "CPU z80, ", "", false},
	{"of another machine type", ofKey("machine", `"pc-i440fx-1.0"`), "machine type pc-i440fx-1.0, ", "", true},
	{"of other memory", ofKey("memory", `2147483648`), "memory 2048 MiB, ", "", true},
	{"of more CPUs", ofKey("cpus", `7`), "CPUs 7, ", "", true},
	{"its key edited", func(x *tester, _ *warmDriver, u api.WarmUnit) error {
		return x.tamper(`UPDATE units SET key = json_set(key, '$.qemu', 'fake!') WHERE id = '` + u.ID + `'`)
	}, "was edited", "was edited", false},
	{"its record cut", func(x *tester, _ *warmDriver, u api.WarmUnit) error {
		return x.tamper(`UPDATE units SET frozen = '{' WHERE id = '` + u.ID + `'`)
	}, "the row of warm unit", "the row of warm unit", false},
}

func onRAM(change func(path string) error) func(*tester, *warmDriver, api.WarmUnit) error {
	return func(x *tester, _ *warmDriver, u api.WarmUnit) error {
		return change(filepath.Join(x.home.Unit(u.ID), home.RAMFile))
	}
}

func onState(change func(path string) error) func(*tester, *warmDriver, api.WarmUnit) error {
	return func(x *tester, _ *warmDriver, u api.WarmUnit) error {
		return change(filepath.Join(x.home.Unit(u.ID), home.StateFile))
	}
}

// ofKey makes a unit one that another QEMU, or a machine of another shape, left: its
// record is whole.
func ofKey(field, value string) func(*tester, *warmDriver, api.WarmUnit) error {
	return func(x *tester, _ *warmDriver, u api.WarmUnit) error {
		b, err := json.Marshal(u.Key)
		if err != nil {
			return err
		}
		var key map[string]json.RawMessage
		if err := json.Unmarshal(b, &key); err != nil {
			return err
		}
		key[field] = json.RawMessage(value)
		var k vm.FrozenKey
		if b, err = json.Marshal(key); err == nil {
			err = json.Unmarshal(b, &k)
		}
		if err == nil {
			b, err = json.Marshal(k)
		}
		if err != nil {
			return err
		}
		sum := sha256.Sum256(b)
		return x.tamper(fmt.Sprintf(`UPDATE units SET key = '%s', key_hash = '%x' WHERE id = '%s'`, b, sum, u.ID))
	}
}

// TestTamperedUnit: a warm unit that is not what was frozen, or not of this host, is found
// before there is a process. Machines that lie over its disk, and those that would be made
// so, are started cold, which is told; where they must be warm, the error says how.
func TestTamperedUnit(t *testing.T) {
	for _, c := range unitTampering {
		t.Run(c.name, func(t *testing.T) {
			d := newWarmDriver()
			x := serve(t, Options{Driver: d, Guests: &fakeGuests{}, Images: realImages{}})
			image := filepath.Join(t.TempDir(), "i.raw")
			if err := errors.Join(os.WriteFile(image, []byte("t"), 0o600), os.Truncate(image, 1<<20)); err != nil {
				t.Fatal(err)
			}
			x.must(x.stream("POST", "/v1/templates", api.ImportRequest{Source: image, Format: "raw", Name: "t"}, nil))
			u := x.warm()
			x.clone("t", "new")
			d.setRefuse(errFake)
			if _, _, e := x.cloneWarm(api.CloneRequest{Names: []string{"over"}, Warm: api.WarmMust}); e == nil || x.machine("over").Base != u.Layer {
				t.Fatalf("over the unit's disk: %v, %+v", e, x.machine("over"))
			}
			d.setRefuse(nil)
			if err := c.change(x, d, u); err != nil {
				t.Fatal(err)
			}
			_, before := d.count()
			x.says("a clone that must be warm", second(x.stream("POST", "/v1/clones", api.CloneRequest{Template: "t", Names: []string{"x"}, Start: true, Warm: api.WarmMust}, nil)), "t cannot be started warm")
			for _, name := range []string{"new", "over"} {
				e := second(x.stream("POST", "/v1/machines/"+name+"/start", api.StartRequest{Warm: api.WarmMust}, nil))
				x.says("must be warm: "+name, e, c.start, "lamina template warm")
				if name == "over" {
					x.says("must be warm: "+name, e, "--cold")
				}
			}
			if _, after := d.count(); after != before {
				t.Errorf("%d processes were started", after-before)
			}
			for _, name := range []string{"new", "over"} {
				var m api.Machine
				told := ""
				for _, e := range x.must(x.stream("POST", "/v1/machines/"+name+"/start", api.StartRequest{}, &m)) {
					told += e.Warning
				}
				if m.State != api.Login || m.Warmth != nil || m.Base != u.Digest {
					t.Errorf("%s: %+v", name, m)
				}
				if (name == "over" || !c.chosen) && !(strings.Contains(told, c.start) && strings.Contains(told, "started cold")) {
					t.Errorf("%s: nobody was told: %q", name, told)
				}
			}
			e := second(x.stream("POST", "/v1/templates/t/verify", nil, nil))
			if c.verify != "" {
				x.says("verify", e, c.verify, u.ID, "--cold")
			} else if e != nil {
				t.Errorf("verify: %v", e)
			}
		})
	}
}

// TestTamperedUnitRemedy: what the messages say to do puts it right.
func TestTamperedUnitRemedy(t *testing.T) {
	x, _, _ := warmTester(t)
	u := x.warm()
	if err := x.tamper(`UPDATE units SET key = '{}'`); err != nil {
		t.Fatal(err)
	}
	next := x.warm()
	if list, _, e := x.cloneWarm(api.CloneRequest{Names: []string{"a"}, Warm: api.WarmMust}); e != nil || list[0].Warmth.Unit != next.ID || next.ID == u.ID {
		t.Errorf("warmed again: %+v, %v", list, e)
	}
	var res api.PruneResult
	if _, e := x.call("POST", "/v1/prune", api.PruneRequest{}, &res); e != nil || !strings.Contains(fmt.Sprint(res), u.ID) || !strings.Contains(fmt.Sprint(res), "was edited") {
		t.Errorf("pruned: %+v, %v", res, e)
	}
	if _, err := os.Lstat(x.home.Unit(u.ID)); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// TestRottenUnit: what moves no time a start does not find, but for the pages that a real
// driver holds against the state's seal: nobody reads all of a machine's memory before it goes
// on. A look at the content does.
func TestRottenUnit(t *testing.T) {
	x, _, _ := warmTester(t)
	u := x.warm()
	path := filepath.Join(x.home.Unit(u.ID), home.RAMFile)
	if err := edit(path, true); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := errors.Join(unix.Stat(path, &st), x.tamper(fmt.Sprintf(`UPDATE units SET files = json_set(files, '$.ram.ctime', %d)`, st.Ctim.Nano()))); err != nil {
		t.Fatal(err)
	}
	if _, _, e := x.cloneWarm(api.CloneRequest{Names: []string{"a"}, Warm: api.WarmMust}); e != nil {
		t.Error(e)
	}
	x.says("verify", second(x.stream("POST", "/v1/templates/t/verify", nil, nil)), path, u.ID, "has SHA-256", "--cold")
}

// TestTamperedBelowUnit: where the template itself was changed no start is left, warm or
// cold, and the message names that, not the unit.
func TestTamperedBelowUnit(t *testing.T) {
	x, d, _ := warmTester(t)
	u := x.warm()
	x.clone("t", "new")
	d.setRefuse(errFake)
	if _, _, e := x.cloneWarm(api.CloneRequest{Names: []string{"over"}, Warm: api.WarmMust}); e == nil {
		t.Fatal("started")
	}
	d.setRefuse(nil)
	path := x.home.TemplateDisk(u.Digest)
	if err := edit(path, true); err != nil {
		t.Fatal(err)
	}
	_, before := d.count()
	for _, name := range []string{"new", "over"} {
		for _, warm := range []api.Warm{api.WarmAuto, api.WarmNever, api.WarmMust} {
			x.says(name, second(x.stream("POST", "/v1/machines/"+name+"/start", api.StartRequest{Warm: warm}, nil)),
				"template was changed behind the store's back: t:", path, "was changed, or given another mode", "lamina template verify t")
		}
	}
	if _, after := d.count(); after != before {
		t.Errorf("%d processes were started", after-before)
	}
	if err := edit(path, true); err != nil {
		t.Fatal(err)
	}
	x.must(x.stream("POST", "/v1/templates/t/verify", nil, nil))
	for _, name := range []string{"new", "over"} {
		var m api.Machine
		x.must(x.stream("POST", "/v1/machines/"+name+"/start", api.StartRequest{Warm: api.WarmMust}, &m))
		if m.Warmth == nil || m.Warmth.Unit != u.ID {
			t.Errorf("%s: %+v", name, m.Warmth)
		}
	}
}

// TestWrittenClone: a machine into whose disk somebody has put something is started cold,
// from that disk.
func TestWrittenClone(t *testing.T) {
	x, d, _ := warmTester(t)
	u := x.warm()
	x.clone("t", "new")
	d.setRefuse(errFake)
	if _, _, e := x.cloneWarm(api.CloneRequest{Names: []string{"over"}, Warm: api.WarmMust}); e == nil {
		t.Fatal("started")
	}
	d.setRefuse(nil)
	for name, base := range map[string]string{"new": u.Digest, "over": u.Layer} {
		disk := x.disk(name)
		x.write(disk)
		x.says(name, second(x.stream("POST", "/v1/machines/"+name+"/start", api.StartRequest{Warm: api.WarmMust}, nil)), "was written to its disk")
		var m api.Machine
		told := fmt.Sprint(x.must(x.stream("POST", "/v1/machines/"+name+"/start", api.StartRequest{}, &m)))
		if m.Warmth != nil || m.Base != base || m.Spec.Disks[0].Path != disk || !strings.Contains(told, "was written to its disk") {
			t.Errorf("%+v, told %s", m, told)
		}
	}
}
