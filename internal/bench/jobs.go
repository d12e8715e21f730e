package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// osDisk is a disk of 4 GiB on which an operating system takes 1.5 GiB.
var osDisk = layout{diskSize: 4 << 30, dataSize: 3 << 29, minRun: 4, maxRun: 2048}

// most is the ratio that every verb must keep on the OS disk.
const most = 1.2

// bench is the folder with the inputs, and the two programs.
type bench struct {
	ctx                context.Context // of all that it runs
	dir, lamina, stock string
	rt                 bool // as real-time processes
	jobs               []job
	made               map[string]bool // the inputs that are there
}

// inputs are the files that jobs read and leave as they are, by name: each is
// what the stock tool makes with these words. disk.raw is [writeDisk]'s.
var inputs = map[string][]string{
	"disk.raw":    nil,
	"empty.qcow2": {"create", "-q", "-f", "qcow2", "empty.qcow2", "10G"},
	"disk.qcow2":  {"convert", "-f", "raw", "-O", "qcow2", "disk.raw", "disk.qcow2"},
	"zlib.qcow2":  {"convert", "-f", "raw", "-O", "qcow2", "-W", "-c", "disk.raw", "zlib.qcow2"},
	"zstd.qcow2":  {"convert", "-f", "raw", "-O", "qcow2", "-W", "-c", "-o", "compression_type=zstd", "disk.raw", "zstd.qcow2"},
	"luks.qcow2":  {"convert", "-f", "raw", "-O", "qcow2", "--object", benchSecret, "-o", luksOptions, "disk.raw", "luks.qcow2"},
}

// The key of the encrypted disks. Its derivation takes no time: what the bench
// compares is the encryption of the disk.
const (
	benchSecret = "secret,id=key,data=lamina"
	luksOptions = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10"
)

// provide makes the inputs that occur in words, with the inputs from which
// they are made, once.
func (b *bench) provide(words []string) error {
	for _, w := range words {
		for _, name := range strings.FieldsFunc(w, func(r rune) bool { return r == ',' || r == '=' }) {
			recipe, ok := inputs[name]
			if !ok || b.made[name] {
				continue
			}
			b.made[name] = true
			if recipe == nil {
				if err := writeDisk(filepath.Join(b.dir, name), osDisk); err != nil {
					return err
				}
			} else if err := b.stockRun(recipe...); err != nil {
				return err
			}
		}
	}
	return nil
}

// stockRun runs the stock tool on the inputs, which it makes first.
func (b *bench) stockRun(args ...string) error {
	if err := b.provide(args); err != nil {
		return err
	}
	cmd := exec.CommandContext(b.ctx, b.stock, args...)
	cmd.Dir = b.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("qemu-img %v: %w: %s", args, err, out)
	}
	return nil
}

// add adds a job that both programs do with the same words.
func (b *bench) add(name string, runs int, limit float64, reset func() error, args ...string) {
	b.jobs = append(b.jobs, job{name: name, runs: runs, limit: limit, reset: reset, args: args})
}

// addWriting adds a job that writes much into a file that it makes.
func (b *bench) addWriting(name string, args ...string) {
	b.add(name, leastRuns, most, b.remove, args...)
	b.jobs[len(b.jobs)-1].writes = true
}

// remove removes what a job made.
func (b *bench) remove() error {
	err := os.Remove(filepath.Join(b.dir, "out"))
	if os.IsNotExist(err) {
		return nil
	}
	return err
}

// again makes what a job changes anew, with the stock tool.
func (b *bench) again(lines ...[]string) func() error {
	return func() error {
		for _, args := range lines {
			if err := b.stockRun(args...); err != nil {
				return err
			}
		}
		return nil
	}
}

// addJobs adds all jobs.
func (b *bench) addJobs() {
	b.smallJobs()
	b.readJobs()
	b.convertJobs()
	b.changeJobs()
	b.installJobs()
}

// smallJobs are over before a person notices.
func (b *bench) smallJobs() {
	b.add("create qcow2 10G", 200, 0.6, b.remove, "create", "-q", "-f", "qcow2", "out", "10G")
	b.add("create overlay", 200, most, b.remove, "create", "-q", "-f", "qcow2", "-b", "empty.qcow2", "-F", "qcow2", "out")
	b.add("info qcow2", 200, 0.8, nil, "info", "empty.qcow2")
	b.add("info --output=json", 200, 0.8, nil, "info", "--output=json", "empty.qcow2")
	b.add("snapshot -c", 50, most, b.again([]string{"create", "-q", "-f", "qcow2", "out", "10G"}), "snapshot", "-c", "one", "out")
}

// readJobs read metadata, or all of the disk.
func (b *bench) readJobs() {
	for _, image := range []string{"disk.qcow2", "zlib.qcow2"} {
		b.add("check "+image, 7, most, nil, "check", "-q", image)
		b.add("map "+image, 7, most, nil, "map", "--output=json", image)
		b.add("measure "+image, 7, most, nil, "measure", "-O", "qcow2", image)
	}
	b.add("map disk.raw", 7, most, nil, "map", "--output=json", "-f", "raw", "disk.raw")
	b.add("measure disk.raw", 7, most, nil, "measure", "-O", "qcow2", "-f", "raw", "disk.raw")
	b.add("compare raw with qcow2", leastRuns, most, nil, "compare", "-f", "raw", "disk.raw", "disk.qcow2")
	b.add("compare qcow2 with zlib", leastRuns, most, nil, "compare", "disk.qcow2", "zlib.qcow2")
	b.add("compare zstd with raw", leastRuns, most, nil, "compare", "-F", "raw", "zstd.qcow2", "disk.raw")
	for _, image := range []string{"disk.raw", "disk.qcow2", "zlib.qcow2"} {
		b.add("bench reads of "+image, 5, most, nil, "bench", "-c", "30000", image)
	}
	b.add("bench, 64 KiB reads of qcow2", 7, most, nil, "bench", "-c", "10000", "-s", "64k", "disk.qcow2")
}

// convertJobs copy the disk.
func (b *bench) convertJobs() {
	convert := func(name string, args ...string) {
		b.addWriting("convert "+name, append([]string{"convert"}, args...)...)
	}
	convert("raw to qcow2", "-f", "raw", "-O", "qcow2", "disk.raw", "out")
	convert("qcow2 to raw", "-f", "qcow2", "-O", "raw", "disk.qcow2", "out")
	convert("qcow2 to qcow2", "-f", "qcow2", "-O", "qcow2", "disk.qcow2", "out")
	convert("zlib qcow2 to raw", "-f", "qcow2", "-O", "raw", "zlib.qcow2", "out")
	convert("zstd qcow2 to raw", "-f", "qcow2", "-O", "raw", "zstd.qcow2", "out")
	convert("raw to zlib qcow2", "-c", "-f", "raw", "-O", "qcow2", "disk.raw", "out")
	convert("raw to zstd qcow2", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", "disk.raw", "out")
	convert("LUKS qcow2 to raw", "--object", benchSecret, "--image-opts", "-O", "raw",
		"driver=qcow2,encrypt.key-secret=key,file.filename=luks.qcow2", "out")
	convert("raw to LUKS qcow2", "--object", benchSecret, "-f", "raw", "-O", "qcow2", "-o", luksOptions, "disk.raw", "out")
	b.addWriting("dd of 1 GiB, qcow2 to raw", "dd", "-f", "qcow2", "-O", "raw", "bs=1M", "count=1024", "if=disk.qcow2", "of=out")
}

// changeJobs change an image.
func (b *bench) changeJobs() {
	b.add("bench writes to qcow2", leastRuns, most, b.again([]string{"create", "-q", "-f", "qcow2", "out", "4G"}), "bench", "-w", "-c", "30000", "out")
	overlay := [][]string{
		{"create", "-q", "-f", "qcow2", "base.qcow2", "4G"},
		{"create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "out"},
		{"bench", "-w", "-c", "2000", "-s", "64k", "-S", "256k", "--pattern", "65", "out"},
	}
	b.add("commit", 5, most, b.again(overlay...), "commit", "-q", "out")
	b.add("rebase", leastRuns, most, b.again([]string{"create", "-q", "-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2", "out"}), "rebase", "-f", "qcow2", "-b", "disk.raw", "-F", "raw", "out")
	b.add("rebase -u", 20, most, b.again([]string{"create", "-q", "-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2", "out"}), "rebase", "-u", "-f", "qcow2", "-b", "disk.raw", "-F", "raw", "out")
	b.add("amend", 20, most, b.again([]string{"create", "-q", "-f", "qcow2", "-o", "compat=0.10", "out", "4G"}), "amend", "-f", "qcow2", "-o", "compat=1.1", "out")
	b.add("resize", 20, most, b.again([]string{"create", "-q", "-f", "qcow2", "out", "4G"}), "resize", "-q", "out", "8G")
}

// installJobs are virt-install's. The stock tool has the driver inside libvirt's
// library, which is the least that it can have: no daemon is asked anything.
func (b *bench) installJobs() {
	b.add("virt-install --print-xml", 10, 0.1, nil, "--print-xml", "--dry-run", "--name", "web", "--osinfo", "debian11", "--import", "--disk", "none", "--memory", "1024")
	j := &b.jobs[len(b.jobs)-1]
	j.ours = []string{b.lamina, "install"}
	j.theirs = []string{"/usr/bin/virt-install", "--connect", "test:///default"}
}
