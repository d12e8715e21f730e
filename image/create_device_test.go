package image_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lamina-vm/lamina/image"
)

// TestCreateDevice: an image that a block device has no room for leaves the
// device as it was; a raw one that fits clears the header of what was there.
func TestCreateDevice(t *testing.T) {
	if os.Getuid() != 0 {
		t.Log("only root has loop devices: nothing to see")
		return
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, bytes.Repeat([]byte("old!"), 1<<18), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "-f", "--show", path).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	defer func() { _ = exec.Command("losetup", "-d", dev).Run() }()
	head := func() string {
		b, err := os.ReadFile(dev)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:4]) + string(b[512:516])
	}
	for _, c := range []struct {
		size int64
		fill bool
		want string
	}{{2 << 20, false, "old!old!"}, {2 << 20, true, "old!old!"}, {1 << 20, false, "\x00\x00\x00\x00old!"}} {
		err := image.Create(t.Context(), dev, image.CreateOptions{Format: "raw", Size: c.size, Fill: c.fill})
		if (err == nil) != (c.size == 1<<20) || head() != c.want {
			t.Errorf("%+v: %v, the device begins with %q", c, err, head())
		}
	}
}
