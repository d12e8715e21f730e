package virtinstall

import (
	"strings"

	"github.com/lamina-vm/lamina/internal/vm/domxml"
)

// featuresBefore remembers which of the features that are on by default were
// spoken of: one that is switched off leaves no trace in the document.
func featuresBefore(g *guest, _ *domxml.Element, given *suboptions) error {
	for _, o := range given.list {
		g.said["features/"+o.key] = "yes"
	}
	return nil
}

// setTimer sets an attribute of a timer that is found by its name:
// "hpet_present", "rtc_tickpolicy".
func setTimer(_ *guest, el *domxml.Element, v value) error {
	name, attr, _ := strings.Cut(v.key, "_")
	if err := el.Set("timer[@name='"+name+"']/@name", name); err != nil {
		return err
	}
	path := "timer[@name='" + name + "']/@" + attr
	if v.text == "" {
		return el.Remove(path)
	}
	return el.Set(path, v.text)
}
