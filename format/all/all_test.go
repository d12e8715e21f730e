package all

import "testing"

func TestProbe(t *testing.T) {
	list := Drivers()
	if last := list[len(list)-1]; last.Name() != "raw" {
		t.Errorf("the last driver is %s: raw takes everything", last.Name())
	}
	for prefix, want := range map[string]string{
		"":                         "raw",
		"anything":                 "raw",
		"QFI\xfb\x00\x00\x00\x03":  "qcow2",
		"QFI\xfb\x00\x00\x00\x02":  "qcow2",
		"\x00QFI\xfb\x00\x00\x00":  "raw",
		"QFI":                      "raw",
		"QFI\xfb":                  "raw",
		"conectix and other words": "raw",
	} {
		if d := Probe([]byte(prefix), "disk.qcow2"); d.Name() != want {
			t.Errorf("%q is taken for %s, want %s", prefix, d.Name(), want)
		}
	}
}

func TestFind(t *testing.T) {
	for _, d := range Drivers() {
		if got := Find(d.Name()); got == nil || got.Name() != d.Name() {
			t.Errorf("%s is not found by its name", d.Name())
		}
	}
	if d := Find("RAW"); d != nil {
		t.Errorf("RAW is %s", d.Name())
	}
}
