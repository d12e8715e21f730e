package virtinstall

import (
	"slices"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// sample is an option with each thing that the engine does.
var sample = option{flag: "disk", element: "devices/disk", many: true, first: []string{"path"}, subs: func() []sub {
	return []sub{
		{name: "path", path: "source/@file"},
		{name: "cache", path: "driver/@cache"},
		{name: "readonly", aliases: []string{"ro"}, path: "readonly", kind: bare},
		{name: "seclabel[0-9]*.label[0-9]*.x", path: "seclabel[#]/label[#]/@x"},
		{name: "opts", path: "opts", comma: true},
		{name: "copy", path: "driver/@copy", kind: onOff},
	}
}}

func TestEngine(t *testing.T) {
	for line, want := range map[string]string{
		"/a b,cache=none":             `<disk><source file="/a b"/><driver cache="none"/></disk>`,
		"cache=x,path=y,cache=z":      `<disk><source file="y"/><driver cache="z"/></disk>`,
		"ro=yes,copy=true":            `<disk><readonly/><driver copy="on"/></disk>`,
		`path="a,b",cache=`:           `<disk><source file="a,b"/></disk>`,
		"seclabel1.label.x=5":         `<disk><seclabel><label x="5"/></seclabel></disk>`,
		"opts=a,b=c,d,cache=none":     `<disk><driver cache="none"/><opts>a,b=c,d</opts></disk>`,
		"ro=maybe":                    `ro must be 'yes' or 'no'`,
		"cache":                       `<disk><source file="cache"/></disk>`,
		"x,cache":                     `Error: --disk x,cache: Option 'cache' had no value set.`,
		"x,nope=1,no=2":               `Unknown --disk options: ['nope', 'no']`,
		`"x`:                          `No closing quotation`,
		"seclabel9999999999.label.x=": `Unknown --disk options: ['seclabel9999999999.label.x']`,
	} {
		g := &guest{dom: domxml.New("domain")}
		el, err := sample.apply(g, line)
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			got = strings.NewReplacer("\n", "", "  ", "").Replace(el.String())
		}
		if got != want {
			t.Errorf("%s gives\n  %s\nwant\n  %s", line, got, want)
		}
	}
	if got := sample.names(); !slices.Equal(got, []string{"clearxml", "xpath[0-9]*.create", "xpath[0-9]*.delete", "xpath[0-9]*.set", "xpath[0-9]*.value",
		"cache", "copy", "opts", "path", "readonly", "seclabel[0-9]*.label[0-9]*.x"}) {
		t.Error(got)
	}
}
