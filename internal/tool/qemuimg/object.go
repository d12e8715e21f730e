package qemuimg

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// objectTypes are the types of `--object` that stock takes here and that do
// nothing unless a block option refers to them, with their properties. The
// block options that could are refused by name, so taking the objects ignores
// nothing.
func objectProperties(kind string) ([]string, bool) {
	switch kind {
	case "secret":
		return []string{"loaded", "format", "keyid", "iv", "data", "file"}, true
	case "authz-list":
		return []string{"policy", "rules"}, true
	case "authz-simple":
		return []string{"identity"}, true
	case "main-loop":
		return []string{"aio-max-batch", "thread-pool-min", "thread-pool-max"}, true
	case "throttle-group":
		return []string{
			"limits", "x-iops-total", "x-iops-total-max", "x-iops-total-max-length", "x-iops-read", "x-iops-read-max",
			"x-iops-read-max-length", "x-iops-write", "x-iops-write-max", "x-iops-write-max-length", "x-bps-total",
			"x-bps-total-max", "x-bps-total-max-length", "x-bps-read", "x-bps-read-max", "x-bps-read-max-length",
			"x-bps-write", "x-bps-write-max", "x-bps-write-max-length", "x-iops-size",
		}, true
	}
	return nil, false
}

// otherObjects are the types that stock knows and this tool does not have.
var otherObjects = []string{
	"authz-listfile", "authz-pam", "can-bus", "can-host-socketcan", "colo-compare", "cryptodev-backend", "cryptodev-backend-builtin",
	"cryptodev-vhost-user", "dbus-vmstate", "filter-buffer", "filter-dump", "filter-mirror", "filter-redirector", "filter-replay",
	"filter-rewriter", "input-barrier", "input-linux", "iothread", "memory-backend-epc", "memory-backend-file", "memory-backend-memfd",
	"memory-backend-ram", "pef-guest", "pr-manager-helper", "qtest", "rng-builtin", "rng-egd", "rng-random", "s390-pv-guest",
	"secret_keyring", "sev-guest", "thread-context", "tls-cipher-suites", "tls-creds-anon", "tls-creds-psk", "tls-creds-x509", "x-remote-object",
}

// object takes one `--object` over. It reports whether that worked, else it
// has said why, in stock's words; the data of a secret is never part of them.
func (t *tool) object(arg string) bool {
	props, err := parseObject(arg)
	if err == nil {
		err = t.addObject(props)
	}
	if err != nil {
		t.errorf("%v", err)
		return false
	}
	return true
}

// addObject makes an object of its properties.
func (t *tool) addObject(props map[string]string) error {
	kind, ok := props["qom-type"]
	if !ok {
		return stockf("Parameter 'qom-type' is missing")
	}
	known, ok := objectProperties(kind)
	if !ok && !slices.Contains(otherObjects, kind) {
		return stockf("Parameter 'qom-type' does not accept value '%s'", kind)
	}
	id, hasID := props["id"]
	switch {
	case !hasID:
		return stockf("Parameter 'id' is missing")
	case !ok:
		return fmt.Errorf("invalid object type: %s", kind)
	}
	if err := checkEnum(props, "loaded", "format"); err != nil {
		return err
	}
	if bad := unexpected(props, known); bad != "" {
		return errors.New(bad)
	}
	if !isIdentifier(id) {
		return stockf("Parameter 'id' expects an identifier\nIdentifiers consist of letters, digits, '-', '.', '_', starting with a letter.")
	}
	if _, ok := props["loaded"]; ok {
		return stockf("Property 'secret.loaded' is not writable")
	}
	return t.secrets.add(id, kind, props)
}

// unexpected says which property the object does not have, or "".
func unexpected(props map[string]string, known []string) string {
	keys := make([]string, 0, len(props))
	for k := range props {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		head, _, dotted := strings.Cut(k, ".")
		switch {
		case k == "qom-type" || k == "id" || slices.Contains(known, k) || head == "limits" && slices.Contains(known, head):
		case dotted:
			return "Parameters '" + head + ".*' are unexpected"
		default:
			return "Parameter '" + k + "' is unexpected"
		}
	}
	return ""
}

func checkEnum(props map[string]string, onOff, format string) error {
	if v, ok := props[onOff]; ok && !slices.Contains([]string{"on", "off", "yes", "no", "true", "false", "y", "n"}, v) {
		return stockf("Parameter '%s' expects 'on' or 'off'", onOff)
	}
	if v, ok := props[format]; ok && v != "raw" && v != "base64" {
		return stockf("Parameter '%s' does not accept value '%s'", format, v)
	}
	return nil
}

// isIdentifier: letters, digits, '-', '.', '_', beginning with a letter.
func isIdentifier(id string) bool {
	for i, c := range []byte(id) {
		letter := c|0x20 >= 'a' && c|0x20 <= 'z'
		if !letter && (i == 0 || (c < '0' || c > '9') && c != '-' && c != '.' && c != '_') {
			return false
		}
	}
	return id != ""
}

// parseObject reads the argument of `--object`: JSON, or key=value with
// "qom-type" implied for the first.
func parseObject(arg string) (map[string]string, error) {
	if strings.HasPrefix(arg, "{") {
		return parseObjectJSON(arg)
	}
	props := map[string]string{}
	for first := true; arg != ""; first = false {
		end := strings.IndexAny(arg, "=,")
		if first && (end < 0 || arg[end] == ',' && !strings.HasPrefix(arg[end:], ",,")) {
			if end < 0 {
				end = len(arg)
			}
			props["qom-type"] = arg[:end]
			arg = strings.TrimPrefix(arg[end:], ",")
			continue
		}
		key := arg
		if end >= 0 {
			key = arg[:end]
		}
		if key == "" || key[0] >= '0' && key[0] <= '9' {
			return nil, stockf("Invalid parameter '%s'", key)
		}
		if end < 0 || arg[end] == ',' {
			return nil, stockf("Expected '=' after parameter '%s'", key)
		}
		var value string
		value, arg = cutValue(arg[end+1:])
		props[key] = value
	}
	return props, nil
}

// cutValue returns the value up to the next single comma; two stand for one.
func cutValue(s string) (value, rest string) {
	var b strings.Builder
	for {
		i := strings.IndexByte(s, ',')
		if i < 0 {
			b.WriteString(s)
			return b.String(), ""
		}
		b.WriteString(s[:i])
		if !strings.HasPrefix(s[i:], ",,") {
			return b.String(), s[i+1:]
		}
		b.WriteByte(',')
		s = s[i+2:]
	}
}

// parseObjectJSON reads an object of properties.
func parseObjectJSON(arg string) (map[string]string, error) {
	dec := json.NewDecoder(strings.NewReader(arg))
	dec.UseNumber()
	var tree map[string]any
	err := dec.Decode(&tree)
	if err == nil && dec.More() {
		return nil, stockf("JSON parse error, expecting value")
	}
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return nil, stockf("JSON parse error, premature EOI")
	case err != nil:
		if word := badKeyword(arg, err); word != "" {
			return nil, stockf("JSON parse error, invalid keyword '%s'", word)
		}
		return nil, stockf("JSON parse error, invalid syntax")
	}
	props := map[string]string{}
	keys := make([]string, 0, len(tree))
	for k := range tree {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		switch v := tree[k].(type) {
		case string:
			props[k] = v
		case bool:
			if k != "loaded" {
				return nil, stockf("Invalid parameter type for '%s', expected: string", k)
			}
			props[k] = map[bool]string{true: "on", false: "off"}[v]
		case json.Number:
			if slices.Contains([]string{"id", "qom-type", "data", "file", "format", "iv", "keyid"}, k) {
				return nil, stockf("Invalid parameter type for '%s', expected: string", k)
			}
			props[k] = v.String()
		default:
			props[k] = ""
		}
	}
	return props, nil
}

// badKeyword returns the word without quotes at which the JSON goes wrong.
func badKeyword(arg string, err error) string {
	var syntax *json.SyntaxError
	if !errors.As(err, &syntax) || syntax.Offset < 1 {
		return ""
	}
	rest := []byte(arg[syntax.Offset-1:])
	n := bytes.IndexFunc(rest, func(r rune) bool { return !(r|0x20 >= 'a' && r|0x20 <= 'z') })
	if n < 0 {
		n = len(rest)
	}
	if _, err := strconv.Unquote("\"" + string(rest[:n]) + "\""); err != nil {
		return ""
	}
	return string(rest[:n])
}
