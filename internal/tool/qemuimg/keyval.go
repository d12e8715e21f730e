package qemuimg

import (
	"errors"
	"strconv"
	"strings"

	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/format/all"
)

// keyval is one `key=value` of an option list.
type keyval struct{ key, value string }

// optionList collects the arguments of several -o.
type optionList struct {
	text string
	set  bool
}

// add appends one argument. It reports whether that is a list: it may not be
// empty, nor begin or end with a separator (two commas stand for one).
func (l *optionList) add(arg string) bool {
	tail := len(arg) - len(strings.TrimRight(arg, ","))
	if arg == "" || arg[0] == ',' || tail%2 != 0 {
		return false
	}
	if l.set {
		l.text += ","
	}
	l.text += arg
	l.set = true
	return true
}

// wantsHelp reports whether one of the options asks for the list of options.
func (l *optionList) wantsHelp() bool {
	for _, kv := range l.parse("") {
		if kv.key == "help" && kv.value == "on" || kv.key == "?" && kv.value == "on" {
			return true
		}
	}
	return false
}

// parse splits the list. Two commas stand for one; a word without "=" is a
// switch, off if it begins with "no", or the value of the key implied.
func (l *optionList) parse(implied string) []keyval { return parseKeyvals(l.text, implied) }

func parseKeyvals(text, implied string) []keyval {
	var list []keyval
	for text != "" {
		var word strings.Builder
		for text != "" {
			i := strings.IndexByte(text, ',')
			if i < 0 {
				word.WriteString(text)
				text = ""
				break
			}
			word.WriteString(text[:i])
			if text = text[i+1:]; !strings.HasPrefix(text, ",") {
				break
			}
			word.WriteByte(',')
			text = text[1:]
		}
		key, value, ok := strings.Cut(word.String(), "=")
		switch {
		case ok:
		case implied != "" && len(list) == 0:
			key, value = implied, key
		case strings.HasPrefix(key, "no"):
			key, value = key[2:], "off"
		default:
			value = "on"
		}
		list = append(list, keyval{key, value})
	}
	return list
}

// creation is the values of a new image's options.
type creation struct {
	drv    format.Driver
	values map[string]string // normalised: sizes as numbers of bytes, switches as on and off
	given  map[string]string // switches as they were written
}

// protocolOptions are those of the file itself. A driver may list them too.
func protocolOptions() []format.Option {
	return []format.Option{
		{Name: "extent_size_hint", Type: format.TypeSize, Help: "Extent size hint for the image file, 0 to disable", Default: "1048576"},
		{Name: "nocow", Type: format.TypeBool, Help: "Turn off copy-on-write (valid only on btrfs)"},
	}
}

// allOptions returns the options of the format and of the file, sorted.
func allOptions(drv format.Driver) []format.Option {
	list := append([]format.Option(nil), drv.Options()...)
	for _, o := range protocolOptions() {
		if findOption(list, o.Name) == nil {
			list = append(list, o)
		}
	}
	// By insertion: the list is sorted but for its end.
	for i := 1; i < len(list); i++ {
		for j := i; j > 0 && list[j].Name < list[j-1].Name; j-- {
			list[j], list[j-1] = list[j-1], list[j]
		}
	}
	return list
}

// hasClusters reports whether the images of a format have clusters of a size
// that can be chosen.
func hasClusters(formatName string) bool {
	drv := all.Find(formatName)
	return drv != nil && findOption(drv.Options(), "cluster_size") != nil
}

func findOption(list []format.Option, name string) *format.Option {
	for i := range list {
		if list[i].Name == name {
			return &list[i]
		}
	}
	return nil
}

// parse takes an option list over. It returns what is wrong with it in the
// stock tool's words, or "".
func (c *creation) parse(l *optionList) string { return c.parseWith(l, allOptions(c.drv)) }

// parseWith is parse with the options that there are.
func (c *creation) parseWith(l *optionList, options []format.Option) string {
	c.values = map[string]string{}
	c.given = map[string]string{}
	if !l.set {
		return ""
	}
	for _, kv := range l.parse("") {
		o := findOption(options, kv.key)
		if o == nil {
			return "Invalid parameter '" + kv.key + "'"
		}
		v := kv.value
		switch o.Type {
		case format.TypeBool:
			c.given[kv.key] = v
			switch v {
			case "on", "yes", "true", "y":
				v = "on"
			case "off", "no", "false", "n":
				v = "off"
			default:
				return "Parameter '" + kv.key + "' expects 'on' or 'off'"
			}
		case format.TypeSize:
			n, err := parseSize(v)
			if err == errSizeTooBig {
				return "Value '" + v + "' is out of range for parameter '" + kv.key + "'"
			} else if err != nil {
				return "Parameter '" + kv.key + "' expects a non-negative number below 2^64" + sizeHint
			}
			v = strconv.FormatUint(n, 10)
		case format.TypeNumber:
			n, err := strconv.ParseUint(v, 0, 64)
			if errors.Is(err, strconv.ErrRange) {
				return "Value '" + v + "' is too large for parameter '" + kv.key + "'"
			} else if err != nil {
				return "Parameter '" + kv.key + "' expects a number"
			}
			v = strconv.FormatUint(n, 10)
		}
		c.values[kv.key] = v
	}
	return ""
}

// printOrder is the order in which the stock tool writes the options of a
// new image, with the values of those that were not given ("" for none).
func printOrder(formatName string) []keyval {
	if formatName == "qcow2" {
		return []keyval{
			{"encryption", ""}, {"encrypt.format", ""}, {"encrypt.key-secret", ""}, {"encrypt.cipher-alg", ""}, {"encrypt.cipher-mode", ""},
			{"encrypt.ivgen-alg", ""}, {"encrypt.ivgen-hash-alg", ""}, {"encrypt.hash-alg", ""}, {"encrypt.iter-time", ""},
			{"cluster_size", "65536"}, {"extended_l2", "off"}, {"preallocation", ""}, {"compression_type", "zlib"}, {"size", ""},
			{"compat", ""}, {"backing_file", ""}, {"backing_fmt", ""}, {"data_file", ""}, {"data_file_raw", ""}, {"lazy_refcounts", "off"}, {"refcount_bits", "16"}, {"extent_size_hint", ""}, {"nocow", ""},
		}
	}
	if formatName == "luks" {
		return []keyval{
			{"size", ""}, {"key-secret", ""}, {"cipher-alg", ""}, {"cipher-mode", ""}, {"ivgen-alg", ""}, {"ivgen-hash-alg", ""},
			{"hash-alg", ""}, {"iter-time", ""}, {"extent_size_hint", ""}, {"nocow", ""}, {"preallocation", ""},
		}
	}
	return []keyval{{"size", ""}, {"extent_size_hint", ""}, {"nocow", ""}, {"preallocation", ""}}
}

// line returns the options as `create` prints them.
func (c *creation) line() string {
	var b strings.Builder
	for _, kv := range printOrder(c.drv.Name()) {
		v, ok := c.values[kv.key]
		if !ok {
			v = kv.value
		}
		if v == "" && !ok {
			continue
		}
		if g, ok := c.given[kv.key]; ok {
			v = g
		}
		b.WriteString(" " + kv.key + "=" + strings.ReplaceAll(v, ",", ",,"))
	}
	return b.String()
}

// optionHelp prints the options of a format; with a file name also those of
// the file.
func (t *tool) optionHelp(drv format.Driver, filename string) int {
	list := allOptions(drv)
	if filename == "" {
		own := list[:0:0]
		for _, o := range list {
			if findOption(protocolOptions(), o.Name) == nil && (o.Name != "preallocation" || drv.Name() == "qcow2") {
				own = append(own, o)
			}
		}
		list = own
		t.printf("Supported %s options:\n", drv.Name())
	} else {
		t.printf("Supported options:\n")
	}
	for _, o := range list {
		t.printf("  %-22s - %s\n", o.Name+"=<"+string(o.Type)+">", o.Help)
	}
	if filename == "" {
		t.printf("\nThe protocol level may support further options.\nSpecify the target filename to include those options.\n")
	}
	return exitOK
}
