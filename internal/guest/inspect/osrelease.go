package inspect

import (
	"strings"
)

// release is what an image says of its system: the fields of os-release.
type release map[string]string

// parseRelease reads os-release(5): lines of KEY=VALUE in a shell's quoting.
// What is not such a line is left out.
func parseRelease(b []byte) release {
	r := release{}
	for line := range strings.Lines(string(b)) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || strings.HasPrefix(key, "#") || strings.ContainsAny(key, " \t") {
			continue
		}
		r[key] = clean([]byte(unquote(value)))
	}
	return r
}

// unquote takes a value as a shell would: in double quotes a backslash keeps the
// character behind it, in single ones nothing is special.
func unquote(s string) string {
	if len(s) >= 2 && s[0] == '\'' && s[len(s)-1] == '\'' {
		return s[1 : len(s)-1]
	}
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		s = s[1 : len(s)-1]
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// redHatFamily are the beginnings of /etc/redhat-release, of systems from before
// os-release.
var redHatFamily = []struct{ start, id string }{
	{"CentOS", "centos"}, {"Red Hat Enterprise Linux", "rhel"}, {"Scientific Linux", "scientific"}, {"Fedora", "fedora"}, {"Oracle Linux", "ol"},
}

// parseRedHat reads "CentOS release 6.10 (Final)".
func parseRedHat(b []byte) release {
	text := clean(b)
	_, rest, ok := strings.Cut(text, " release ")
	if !ok {
		return nil
	}
	version, _, _ := strings.Cut(rest, " ")
	for _, f := range redHatFamily {
		if strings.HasPrefix(text, f.start) {
			return release{"ID": f.id, "VERSION_ID": version, "PRETTY_NAME": text}
		}
	}
	return nil
}

// name is what people call the system.
func (r release) name() string {
	if n := r["PRETTY_NAME"]; n != "" {
		return n
	}
	return strings.TrimSpace(r["NAME"] + " " + r["VERSION_ID"])
}

// id returns osinfo-db's short id of the system, by the rules by which that
// database names releases; known asks a database whether it has an id. It
// returns "" for a system that no rule is for, and that known does not know.
func (r release) id(known func(string) bool) string {
	id := r.rule(known)
	if strings.Trim(id, "abcdefghijklmnopqrstuvwxyz0123456789.-") != "" {
		return "" // of what an image says only names go on
	}
	return id
}

func (r release) rule(known func(string) bool) string {
	version := r["VERSION_ID"]
	major, minor, _ := strings.Cut(version, ".")
	pretty := r["PRETTY_NAME"]
	switch id := r["ID"]; id {
	case "debian":
		if version == "" { // testing and unstable have none
			return "debiantesting"
		}
		return "debian" + major
	case "ubuntu":
		return join("ubuntu", version)
	case "fedora":
		return fedora(r, version)
	case "centos":
		switch {
		case strings.Contains(r["NAME"], "Stream"):
			return join("centos-stream", major)
		case major == "8":
			return "centos8"
		case minor == "": // 7 says no more
			return join("centos", major+".0")
		}
		return join("centos", version)
	case "rhel", "ol":
		if minor == "" && version != "" {
			version += ".0"
		}
		return join(id, version)
	case "scientific":
		return join("scientificlinux", version)
	case "almalinux", "rocky":
		return join(id, major)
	case "alpine":
		if parts := strings.Split(version, "."); len(parts) > 1 {
			version = parts[0] + "." + parts[1]
		}
		if strings.Contains(version, "alpha") || strings.Contains(pretty, "edge") {
			return firstKnown(known, "alpinelinuxedge")
		}
		return join("alpinelinux", version)
	case "opensuse", "opensuse-leap":
		return join("opensuse", version)
	case "opensuse-tumbleweed":
		return "opensusetumbleweed"
	case "sles", "sled":
		return suse(id, major, minor)
	case "sle-micro", "sle-micro-rancher":
		return join("slem", version)
	case "arch":
		return "archlinux"
	case "gentoo", "manjaro":
		return id
	case "void":
		return "voidlinux"
	case "clear-linux-os":
		return "clearlinux"
	case "nixos":
		return firstKnown(known, "nixos-"+version, "nixos-unstable")
	case "guix":
		return "guix-latest"
	case "pop":
		return join("popos", version)
	case "endless":
		return join("eos", version)
	case "cirros":
		return join("cirros", version)
	case "altlinux":
		return firstKnown(known, "alt."+version, "alt"+version)
	case "":
		return ""
	default:
		return firstKnown(known, id+version, id+"-"+version, id+major)
	}
}

// join makes an id of a name and a version; without a version there is none.
func join(name, version string) string {
	if version == "" {
		return ""
	}
	return name + version
}

func firstKnown(known func(string) bool, ids ...string) string {
	for _, id := range ids {
		if known(id) {
			return id
		}
	}
	return ""
}

// fedora names the editions that the database has of their own.
func fedora(r release, version string) string {
	rawhide := strings.Contains(r["PRETTY_NAME"]+r["VERSION"], "Rawhide") || r["REDHAT_BUGZILLA_PRODUCT_VERSION"] == "rawhide"
	switch variant := r["VARIANT_ID"]; {
	case variant == "coreos":
		return "fedora-coreos-stable"
	case variant == "eln" || version == "eln":
		return "fedora-eln"
	case variant == "silverblue" && rawhide:
		return "silverblue-rawhide"
	case variant == "silverblue":
		return join("silverblue", version)
	case rawhide:
		return "fedora-rawhide"
	}
	return join("fedora", version)
}

// suse: from 15 on server and desktop are one: sle15sp4, sles12sp5.
func suse(id, major, minor string) string {
	if major == "" {
		return ""
	}
	if n := len(major); n > 2 || n == 2 && major >= "15" {
		id = "sle"
	}
	if minor != "" && minor != "0" {
		minor = "sp" + minor
	} else {
		minor = ""
	}
	return id + major + minor
}
