package virtinstall

import (
	"slices"
	"strings"
	"testing"
)

// What argparse says of each command line was seen of the stock tool.
func TestArguments(t *testing.T) {
	for line, want := range map[string]string{
		"--mem 5 --nope x y": "ambiguous option: --mem could match --memory, --memballoon, --memdev, --memtune, --memorybacking",
		"--mem=5":            "ambiguous option: --mem=5 could match --memory, --memballoon, --memdev, --memtune, --memorybacking",
		"--launch x":         "ambiguous option: --launch could match --launchSecurity, --launchsecurity",
		"--pxe=3":            "argument --pxe: ignored explicit argument '3'",
		"-v -p":              "argument -p/--paravirt: not allowed with argument -v/--hvm",
		"-r x":               "argument -r/--ram: invalid int value: 'x'",
		"-s q":               "argument -s/--file-size: invalid float value: 'q'",
		"--wait q":           "argument --wait: invalid int value: 'q'",
		"--name":             "argument -n/--name: expected one argument",
		"--name --pxe":       "argument -n/--name: expected one argument",
		"-qx":                "argument -x/--extra-args: expected one argument",
		"-nfoo bar":          "unrecognized arguments: bar",
		"-z":                 "unrecognized arguments: -z",
		"--os-v":             "argument --os-variant/--osinfo: expected one argument",
		"--net -5 pos":       "unrecognized arguments: pos",
		"-- x":               "unrecognized arguments: -- x",
		"-nfoo":              "name=foo",
		"--na=foo":           "name=foo",
		"-qd -n foo":         "debug=yes name=foo quiet=yes",
		"-v -v":              "os_type=hvm,hvm",
		"--host-device x --hostdev y --soundhw z --sound":   "hostdev=x,y sound=z,default",
		"--print-xml 2 --wait --unattended --noautoconsole": "autoconsole=none print-xml=2 unattended= wait=-1",
		"--help --nope": "help=yes",
	} {
		a, err := parseArguments(strings.Fields(line))
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			var parts []string
			for _, f := range flags() {
				if values := a.all(f.key); len(values) > 0 {
					parts = append(parts, f.key+"="+strings.Join(values, ","))
					delete(a.values, f.key)
				}
			}
			slices.Sort(parts)
			got = strings.Join(parts, " ")
		}
		if got != want {
			t.Errorf("%s gives\n  %s\nwant\n  %s", line, got, want)
		}
	}
	if _, err := parseArguments([]string{"-x", "-d gtk"}); err == nil {
		t.Error("the word \"-d gtk\" is taken as a value: it is the option -d")
	}
	if a, err := parseArguments([]string{"-x", "-1 gtk"}); err != nil || a.get("extra-args") != "-1 gtk" {
		t.Errorf("the word \"-1 gtk\": %v", err)
	}
}
