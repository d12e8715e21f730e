package vm

import (
	"encoding/json"
	"reflect"
	"testing"
)

// TestStoredSpec: a spec as `lamina run` stored it before there was more to
// say is still read, and is written in the same words.
func TestStoredSpec(t *testing.T) {
	const stored = `{"name":"web-1","uuid":"4b4f0a4e-5f0c-4bb5-8a5b-5a2f1f1c0001","cpus":2,"memory":536870912,"machine":"q35","accel":"auto","cpu":"max",` +
		`"disks":[{"path":"/d/disk.qcow2","format":"qcow2","device":"disk","bus":"virtio","cache":"writeback","serial":"x","bootIndex":1,"discard":true},` +
		`{"path":"/d/seed.iso","format":"raw","device":"disk","bus":"virtio","cache":"writeback","readOnly":true,"serial":"seed"}],` +
		`"nics":[{"model":"virtio-net-pci","mac":"52:54:00:00:00:01","forwards":[{"proto":"tcp","hostAddr":"127.0.0.1","hostPort":0,"guestPort":22}]}],` +
		`"graphics":{"vnc":"unix"},"rng":true,"noReboot":true}`
	var s Spec
	if err := json.Unmarshal([]byte(stored), &s); err != nil {
		t.Fatal(err)
	}
	if again := s.WithDefaults(); !reflect.DeepEqual(s, again) {
		t.Errorf("defaults change a stored spec:\n%+v\n%+v", again, s)
	}
	if err := s.Validate(); err != nil {
		t.Error(err)
	}
	b, err := json.Marshal(s)
	if err != nil || string(b) != stored {
		t.Errorf("%v\n%s\n%s", err, b, stored)
	}
}

func TestDiskNames(t *testing.T) {
	s := Spec{Disks: []Disk{{Bus: BusVirtio}, {Bus: BusSATA, Path: "/a"}, {Bus: BusUSB, Target: "sda"}, {Bus: BusVirtio, Serial: "seed"}, {Bus: BusFDC}, {Bus: BusIDE}}}
	want := []string{"vda", "sdb", "sda", "vdb", "fda", "hda"}
	if got := s.DiskNames(); !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	for name, want := range map[string]int{"vdb": 3, "/a": 1, "seed": 3, "sda": 2} {
		if i, err := s.FindDisk(name); err != nil || i != want {
			t.Errorf("%s: %d, %v", name, i, err)
		}
	}
	if _, err := s.FindDisk(""); err == nil {
		t.Error("found a drive without a name")
	}
	for n, want := range map[int]string{0: "a", 25: "z", 26: "aa", 27: "ab", 701: "zz", 702: "aaa"} {
		if got := letters(n); got != want {
			t.Errorf("letters(%d) = %s, want %s", n, got, want)
		}
	}
}
