package guestimage

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// Variant is a small guest whose boot goes another way.
type Variant string

// The variants. All but VariantNoBootable change the boot loader's settings.
const (
	// VariantPrompt stops at the boot loader's prompt.
	VariantPrompt Variant = "prompt"
	// VariantNoInitrd starts the kernel without its initramfs: it has no
	// driver for any disk and panics for lack of a root device.
	VariantNoInitrd Variant = "noinitrd"
	// VariantNoVirtio has an initramfs without virtio_blk and virtio_scsi;
	// on the virtio buses it panics for lack of a root device, on ide and
	// sata it boots.
	VariantNoVirtio Variant = "nodriver"
	// VariantEC2 waits, without a seed, for EC2's metadata service in the
	// words of cloud-init, VariantCirros in those of CirrOS.
	VariantEC2    Variant = "ec2"
	VariantCirros Variant = "cirros"
	// VariantNoBootable has no boot code: the BIOS finds no bootable disk.
	VariantNoBootable Variant = "nobootable"
)

// SmallVariant returns the path of a raw image of the small guest that boots
// the given way. It is the test's own and may be written to.
func SmallVariant(t testing.TB, v Variant) string {
	t.Helper()
	disk, err := os.ReadFile(SmallRaw(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := v.apply(disk); err != nil {
		t.Fatalf("small guest, variant %s: %v", v, err)
	}
	path := filepath.Join(t.TempDir(), "small-"+string(v)+".raw")
	if err := writeSparse(path, disk); err != nil {
		t.Fatal(err)
	}
	return path
}

// Where the boot loader's settings may lie: the FAT partition.
const bootPartitionEnd = 32 << 20

func (v Variant) apply(disk []byte) error {
	if v == VariantNoBootable {
		clear(disk[:440]) // the boot code
		clear(disk[510:512])
		return nil
	}
	const settings = "DEFAULT lamina  \nPROMPT 0\nTIMEOUT 1\n"
	at := bytes.Index(disk[:min(len(disk), bootPartitionEnd)], []byte(settings))
	if at < 0 {
		return fmt.Errorf("the boot partition has no settings %q", settings)
	}
	changed := fmt.Sprintf("DEFAULT %-8s\nPROMPT 0\nTIMEOUT 1\n", v)
	if v == VariantPrompt {
		changed = "DEFAULT lamina  \nPROMPT 1\nTIMEOUT 0\n"
	}
	if len(changed) != len(settings) {
		return fmt.Errorf("its name does not fit into the settings")
	}
	copy(disk[at:], changed)
	return nil
}

// writeSparse writes a new file with holes for its zeros.
func writeSparse(path string, data []byte) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	const block = 64 << 10
	zero := make([]byte, block)
	for off := 0; off < len(data); off += block {
		b := data[off:min(off+block, len(data))]
		if bytes.Equal(b, zero[:len(b)]) {
			continue
		}
		if _, err := f.WriteAt(b, int64(off)); err != nil {
			return err
		}
	}
	return f.Truncate(int64(len(data)))
}
