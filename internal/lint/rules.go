// Package lint holds the import rules between the rooms of the repository:
// imports point down and never sideways between formats. Its test is the
// linter; every rule carries its reason, which is printed with a finding.
package lint

import "strings"

// module is the path that all rooms share.
const module = "github.com/lamina-vm/lamina/"

// rule forbids imports. Paths are relative to the module; a path that ends in
// "/..." means the room and all below it.
type rule struct {
	from   string
	except []string // rooms below from that the rule does not bind
	deny   []string // our rooms, or full paths of others, that from may not import
	allow  []string // what of deny is allowed all the same
	// deep makes the rule hold for indirect imports too.
	deep   bool
	reason string
}

var rules = []rule{
	{from: "block", deny: []string{"..."}, reason: "block is the contract below everything: it imports nothing of ours"},
	{from: "protocol/...", deny: []string{"..."}, allow: []string{"block", "block/...", "protocol/..."},
		reason: "a protocol gives bytes at offsets; it knows no format and nothing above"},
	{from: "format", deny: []string{"..."}, allow: []string{"block"},
		reason: "package format only says what a driver is"},
	{from: "format/...", except: []string{"format", "format/all"}, deny: []string{"..."},
		allow:  []string{"block", "block/...", "format", "format/encryption"},
		reason: "a format driver is handed its file and an opener; it never imports another format or a protocol"},
	{from: "image/...", deny: []string{"internal/...", "nbd/...", "cmd/..."}, allow: []string{"internal/partition", "internal/underlay"},
		reason: "image is a public library: it may not pull in machines, tools or the daemon"},
	{from: "nbd/...", deny: []string{"..."}, allow: []string{"block", "block/...", "nbd/..."},
		reason: "nbd speaks over block only"},
	{from: "internal/tool/...", except: []string{"internal/tool/virtinstall", "internal/tool/virtctl"}, deny: []string{"internal/vm/...", "internal/guest/...", "internal/store/...", "internal/daemon/...", "internal/client/..."},
		reason: "a work-alike is flags and text over the libraries; it runs without the daemon"},
	{from: "internal/tool/virtinstall", deny: []string{"internal/store/...", "internal/daemon/...", "internal/vm/qemu", "cmd/..."}, allow: []string{"internal/vm/qemu/host"},
		reason: "virt-install's work-alike describes machines and hands them to a libvirtd or to the daemon; it runs none"},
	{from: "internal/qmp", deny: []string{"..."}, allow: []string{"internal/qmp"},
		reason: "the QMP client has no machine policy"},
	{from: "internal/vm", deny: []string{"..."}, reason: "a machine's description is plain data"},
	{from: "internal/vm/...", except: []string{"internal/vm/vmtest"}, deny: []string{"internal/guest/...", "internal/store/...", "internal/daemon/...", "internal/api"},
		reason: "a machine driver does not know who asked for the machine"},
	{from: "internal/guest/...", except: []string{"internal/guest/inspect", "internal/guest/inspect/..."}, deny: []string{"internal/vm/...", "internal/store/...", "internal/daemon/...", "internal/api", "internal/qmp"},
		reason: "what the guest is told and tells does not depend on who runs it"},
	{from: "internal/vm/qemu/stream", deny: []string{"..."},
		reason: "a stream of QEMU's is split by what is in it: bytes in, bytes out, no machine and no monitor"},
	{from: "internal/guest/agent", deny: []string{"..."}, allow: []string{"internal/guest/seed", "internal/names"},
		reason: "an agent is two sockets and what is said over them; who the guest is to be is the caller's"},
	{from: "internal/guest/generalise", deny: []string{"..."},
		reason: "it is a script and what the script reports: whoever runs it brings the guest"},
	{from: "internal/guest/inspect", deny: []string{"internal/...", "cmd/..."}, allow: []string{"internal/api", "internal/partition", "internal/vm/osinfo"},
		reason: "looking into an image needs its bytes and the names of systems, and runs nothing"},
	{from: "internal/guest/inspect/...", except: []string{"internal/guest/inspect"}, deny: []string{"..."}, allow: []string{"internal/guest/inspect/tree"},
		reason: "a reader of a file system knows its disk's bytes only"},
	{from: "internal/store/...", deny: []string{"internal/daemon/...", "internal/client/...", "cmd/..."}, reason: "the store does not know the daemon"},
	{from: "internal/fleet/...", deny: []string{"internal/store/...", "internal/daemon/...", "internal/client/...", "internal/cli", "internal/vm/qemu", "internal/vm/libvirt", "cmd/..."},
		reason: "a fleet's plan does not know whose machines it is about"},
	{from: "internal/lineage", deny: []string{"..."}, allow: []string{"internal/api", "internal/progress"},
		reason: "a picture of who lies over whom is made of what the daemon told"},
	{from: "internal/daemon/...", deny: []string{"internal/client/...", "internal/tool/...", "cmd/..."}, reason: "the daemon serves clients and imports none"},
	{from: "cmd/lamina", deep: true,
		deny: []string{"modernc.org/sqlite", "gopkg.in/yaml.v3", "golang.org/x/crypto/ssh", "github.com/kdomanski/iso9660",
			"github.com/digitalocean/go-libvirt", "internal/tool/virtinstall", "internal/vm/libvirt",
			"internal/store", "internal/daemon", "internal/vm/qemu/...", "internal/guest/seed", "internal/guest/agent", "internal/guest/generalise",
			"internal/guest/inspect/...", "internal/catalog", "internal/qmp", "internal/fleet/..."},
		reason: "the command starts in 2 ms: what is heavy is linked into laminad, never into lamina"},
	{from: "internal/cli", deny: []string{"internal/vm/libvirt", "internal/vm/domain", "internal/vm/domxml", "internal/tool/virtinstall", "internal/store", "internal/daemon"},
		reason: "the verbs are a client of whatever machines they are given: both lamina and laminad link them"},
	{from: "...", except: []string{"internal/guestimage/...", "internal/vm/vmtest", "block/blocktest", "test/...", "internal/qemutest", "internal/libvirttest", "internal/programs"},
		deny:   []string{"internal/qemutest", "internal/libvirttest", "internal/programs", "internal/guestimage", "testing", "test/..."},
		reason: "the doors of the tests are for tests"},
	{from: "...", deny: []string{"C"}, deep: false, reason: "no cgo: the binaries are static"},
}

// matches reports whether the room pkg (relative to the module, or a foreign
// import path) is meant by pattern.
func matches(pattern, pkg string, ours bool) bool {
	if pattern == "..." {
		return ours
	}
	if base, ok := strings.CutSuffix(pattern, "/..."); ok {
		return pkg == base || strings.HasPrefix(pkg, base+"/")
	}
	return pkg == pattern
}

func matchesAny(patterns []string, pkg string, ours bool) bool {
	for _, p := range patterns {
		if matches(p, pkg, ours) {
			return true
		}
	}
	return false
}

// binds reports whether the rule is for room pkg.
func (r rule) binds(pkg string) bool {
	return matches(r.from, pkg, true) && !matchesAny(r.except, pkg, true)
}

// forbids reports whether room from may not import path. A room may always
// import what lies below its own folder.
func (r rule) forbids(from, path string) bool {
	pkg, ours := strings.CutPrefix(path, module)
	if ours && strings.HasPrefix(pkg, from+"/") && r.from != "..." {
		return false
	}
	return matchesAny(r.deny, pkg, ours) && !matchesAny(r.allow, pkg, ours)
}
