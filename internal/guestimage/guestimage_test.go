package guestimage_test

import (
	"context"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/guest/boot"
	"github.com/lamina-vm/lamina/internal/guest/seed"
	"github.com/lamina-vm/lamina/internal/guestimage"
	"github.com/lamina-vm/lamina/internal/guestimage/guesttest"
	"github.com/lamina-vm/lamina/internal/qemutest"
	"github.com/lamina-vm/lamina/internal/vm"
)

// overlay returns a disk on a new overlay of base.
func overlay(t *testing.T, base, format string, bus vm.Bus) vm.Disk {
	t.Helper()
	path := t.TempDir() + "/overlay.qcow2"
	if err := image.Overlay(t.Context(), path, image.OverlayOptions{Base: base, BaseFormat: format}); err != nil {
		t.Fatal(err)
	}
	return vm.Disk{Path: path, Format: "qcow2", Bus: bus}
}

func TestSmallIsSmall(t *testing.T) {
	st, err := os.Stat(guestimage.Small(t))
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() > 40<<20 {
		t.Errorf("the small guest takes %d MiB, more than 40", st.Size()>>20)
	}
	qemutest.RequireClean(t, guestimage.Small(t))
	qemutest.RequireSame(t, "qcow2", guestimage.Small(t), "raw", guestimage.SmallRaw(t))
}

// The whole of what the small guest takes from a seed, and that a second
// boot with the same instance-id leaves it as it is.
func TestSmallAppliesSeed(t *testing.T) {
	disk := overlay(t, guestimage.Small(t), "qcow2", vm.BusVirtio)
	config := &seed.Config{
		InstanceID: "i-1",
		Hostname:   "web-01",
		User:       "bob",
		Password:   "a 'quoted' pass",
		UserData: []byte(`#cloud-config
write_files:
- path: /etc/note
  content: |
    first "line" \n
      second
  permissions: '0640'
runcmd:
- echo "runcmd as $(id -un)" >>/etc/ran
- [sh, -c, 'echo "$1" >>/etc/ran', x, "it's a list"]
`),
	}
	g := guesttest.Start(t, guesttest.Config{Disk: disk, Seed: config})
	r := g.Login()
	if r.Via != "serial" || r.Stage != boot.StageLogin {
		t.Errorf("login seen via %s at stage %s, want via serial at login", r.Via, r.Stage)
	}
	for command, want := range map[string]string{
		"id -un; hostname":                          "bob\nweb-01\n",
		"sudo id -un":                               "root\n",
		"sudo cat /etc/note":                        "first \"line\" \\n\n  second\n",
		"stat -c '%a' /etc/note":                    "640\n",
		"cat /sys/class/misc/hw_random/rng_current": "virtio_rng.0\n",
	} {
		if got := g.SSH(command); got != want {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
	// The commands of the user-data may still be running.
	const ran = "runcmd as root\nit's a list\n"
	if got := g.SSH("i=0; while [ $i -lt 60 ] && ! grep -qs list /etc/ran; do sleep 1; i=$((i+1)); done; cat /etc/ran"); got != ran {
		t.Errorf("runcmd: %q, want %q", got, ran)
	}
	if lines, err := g.ScreenText(t.Context()); err != nil || !strings.Contains(strings.Join(lines, "\n"), "web-01 login:") {
		t.Errorf("screen: %v, error %v: no login prompt", lines, err)
	}
	hostKey := g.SSH("sudo md5sum /etc/dropbear/dropbear_ed25519_host_key; sudo grep bob: /etc/shadow")
	g.Stop()

	// The test's key is another one: it must not be let in.
	config.Hostname = "other"
	again := guesttest.Start(t, guesttest.Config{Disk: disk, Seed: config})
	again.Login()
	log, err := os.ReadFile(again.SerialLog())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(log), "instance i-1 is already configured") || !strings.Contains(string(log), "web-01 login:") {
		t.Errorf("second boot with the same instance-id:\n%s", log)
	}
	again.Stop()

	// A clone of the machine: a new instance has keys of its own.
	config.InstanceID = "i-2"
	clone := guesttest.Start(t, guesttest.Config{Disk: disk, Seed: config})
	clone.Login()
	if got := clone.SSH("hostname"); got != "other\n" {
		t.Errorf("host name of a new instance: %q", got)
	}
	if got := clone.SSH("sudo md5sum /etc/dropbear/dropbear_ed25519_host_key; sudo grep bob: /etc/shadow"); got == hostKey {
		t.Error("a new instance kept the SSH host key")
	}
	clone.Stop()
	qemutest.RequireClean(t, disk.Path)
}

func TestUnknownKind(t *testing.T) {
	if _, err := guestimage.Build(context.Background(), "huge", io.Discard); err == nil || !strings.Contains(err.Error(), "small") {
		t.Errorf("Build of an unknown guest: %v, want an error that names the guests", err)
	}
}
