package advice

import (
	"fmt"
	"strings"
)

// Explain returns the table of a topic. The error names the topics that there
// are.
func Explain(t Topic) (Table, error) {
	switch t {
	case TopicCache:
		return cacheTable(), nil
	case TopicBus:
		return busTable(), nil
	case TopicPreallocation:
		return preallocationTable(), nil
	case TopicFormat:
		return formatTable(), nil
	}
	var known []string
	for _, k := range Topics() {
		known = append(known, string(k))
	}
	return Table{}, fmt.Errorf("nothing to explain of %q: use one of %s", t, strings.Join(known, ", "))
}

// Row returns the row of that name.
func (t Table) Row(name string) (Row, error) {
	var known []string
	for _, r := range t.Rows {
		if r.Name == name {
			return r, nil
		}
		known = append(known, r.Name)
	}
	return Row{}, fmt.Errorf("%s has no choice %q: use one of %s", t.Topic, name, strings.Join(known, ", "))
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
