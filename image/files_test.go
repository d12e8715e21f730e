package image_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/lamina-vm/lamina/image"
	"github.com/lamina-vm/lamina/internal/qemutest"
)

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	at := func(names ...string) (list []string) {
		for _, n := range names {
			list = append(list, filepath.Join(dir, n))
		}
		return list
	}
	p := at("base", "over", "sealed")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", "-o", "data_file="+filepath.Join(dir, "data"), p[0], "1M")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", p[1])
	// Its passphrase is not known.
	qemutest.Img(t, "create", "-q", "-f", "qcow2", filepath.Join(dir, "over2"), "1M")
	qemutest.Img(t, "create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=abc",
		"-o", "encrypt.format=aes,encrypt.key-secret=s", "-b", "over2", "-F", "qcow2", p[2])
	for i, want := range [][]string{at("base", "data"), at("over", "base", "data"), at("sealed", "over2")} {
		got, err := image.Files(t.Context(), p[i], "qcow2")
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %q, %v; want %q", p[i], got, err, want)
		}
	}
	for _, gone := range at("over2", "base") {
		if err := os.Remove(gone); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range p {
		if got, err := image.Files(t.Context(), name, "qcow2"); err == nil {
			t.Errorf("%s has lost an image below it: %q", name, got)
		}
	}
}
