package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/internal/client"
	"github.com/lamina-vm/lamina/internal/libvirttest"
	"github.com/lamina-vm/lamina/internal/qemutest"
)

// toolRun runs laminad as the tool of that name, and returns what it says and
// whether it ended with status 0.
func toolRun(t *testing.T, tool string, args ...string) (out string, ok bool) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Args[0] = tool
	cmd.Env = append(os.Environ(), envMain+"=1", "NO_COLOR=1")
	b, err := cmd.CombinedOutput()
	return string(b), err == nil
}

// TestVerbs runs the verbs over a real libvirt, as lamina does when it is given
// one.
func TestVerbs(t *testing.T) {
	d, dir := libvirttest.Start(t), t.TempDir()
	disk := filepath.Join(dir, "web.qcow2")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", disk, "16M")
	file := filepath.Join(dir, "web.xml")
	doc := `<domain type='qemu'><name>web</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='unsafe'/><source file='` + disk + `'/><target dev='vda' bus='virtio'/></disk></devices>
</domain>`
	if err := os.WriteFile(file, []byte(doc), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Virsh(t, "define", file)
	for _, c := range []struct {
		args  string
		fails bool
		want  []string
	}{
		{args: "ls", want: []string{"NAME", "web", "stopped", "64 MiB"}},
		{args: "ls --json", want: []string{`"name": "web"`, `"state": "stopped"`}},
		{args: "info web", want: []string{"name:      web", "vda disk", disk}},
		{args: "check web", want: []string{"disk vda: cache unsafe", "warning"}},
		{args: "start web", want: []string{"web runs; its boot is not waited for"}},
		{args: "start web", fails: true, want: []string{"web"}},
		{args: "ps --names", want: []string{"web\n"}},
		{args: "rm web", fails: true, want: []string{"is running"}},
		{args: "logs web", fails: true, want: []string{"keeps no log"}},
		{args: "snapshot list web", want: []string{"NAME"}},
		{args: "attach web --disk " + disk + ".none,format=raw --config", want: []string{"vda", "vdb"}},
		{args: "detach web vdb --config", want: []string{"vda"}},
		{args: "kill web", want: []string{"web is stopped"}},
		{args: "start wbe", fails: true, want: []string{"did you mean web?"}},
		{args: "clone web x", fails: true, want: []string{"own machines"}},
		{args: "rm web --remove-disks"},
		{args: "ls --names"},
	} {
		out, ok := toolRun(t, client.ToolVerbs, append(strings.Fields(c.args), "--connect", d.URI)...)
		if ok == c.fails {
			t.Errorf("%s: ended with 0: %v\n%s", c.args, ok, out)
		}
		for _, want := range c.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: no %q in\n%s", c.args, want, out)
			}
		}
		if len(c.want) == 0 && out != "" {
			t.Errorf("%s: %q", c.args, out)
		}
	}
	if _, err := os.Stat(disk); err == nil {
		t.Error("the disk is left")
	}
	if out, ok := toolRun(t, client.ToolVerbs, "ls", "--connect", "qemu+unix:///system?socket="+dir+"/none"); ok || !strings.Contains(out, "unreachable") {
		t.Errorf("no libvirt: %v, %q", ok, out)
	}
}

// TestTools finds virt-install under both names.
func TestTools(t *testing.T) {
	for _, name := range []string{client.ToolInstall, client.ToolVirtInstall, "/usr/bin/virt-install"} {
		if out, ok := toolRun(t, name, "--help"); !ok || !strings.Contains(out, "virt-install") {
			t.Errorf("%s: %v, %q", name, ok, out)
		}
	}
}
