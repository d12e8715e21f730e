package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// osDisk is a disk of 4 GiB on which an operating system takes 1.5 GiB.
var osDisk = layout{diskSize: 4 << 30, dataSize: 3 << 29, minRun: 4, maxRun: 2048}

// most is the ratio that every verb must keep on the OS disk.
const most = 1.2

// bench is the folder with the inputs, and the two programs.
type bench struct {
	ctx                context.Context // of all that it runs
	dir, lamina, stock string
	jobs               []job
}

// stockRun runs the stock tool on the inputs.
func (b *bench) stockRun(args ...string) error {
	cmd := exec.CommandContext(b.ctx, b.stock, args...)
	cmd.Dir = b.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("qemu-img %v: %w: %s", args, err, out)
	}
	return nil
}

// add adds a job that both programs do with the same words.
func (b *bench) add(name string, runs int, limit float64, reset func() error, args ...string) {
	b.jobs = append(b.jobs, job{name: name, runs: runs, limit: limit, reset: reset,
		ours: append([]string{b.lamina, "img"}, args...), theirs: append([]string{b.stock}, args...)})
}

// addWriting adds a job that writes much into a file that it makes.
func (b *bench) addWriting(name string, runs int, args ...string) {
	b.add(name, runs, most, b.remove, args...)
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

// smallJobs are over before a person notices.
func (b *bench) smallJobs() error {
	if err := b.stockRun("create", "-q", "-f", "qcow2", "empty.qcow2", "10G"); err != nil {
		return err
	}
	b.add("create qcow2 10G", 200, 0.6, b.remove, "create", "-q", "-f", "qcow2", "out", "10G")
	b.add("create overlay", 200, most, b.remove, "create", "-q", "-f", "qcow2", "-b", "empty.qcow2", "-F", "qcow2", "out")
	b.add("info qcow2", 200, 0.8, nil, "info", "empty.qcow2")
	b.add("info --output=json", 200, 0.8, nil, "info", "--output=json", "empty.qcow2")
	b.add("snapshot -c", 50, most, b.again([]string{"create", "-q", "-f", "qcow2", "out", "10G"}), "snapshot", "-c", "one", "out")
	return nil
}

// diskJobs are those on the OS disk.
func (b *bench) diskJobs() error {
	if err := writeDisk(filepath.Join(b.dir, "disk.raw"), osDisk); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"convert", "-f", "raw", "-O", "qcow2", "disk.raw", "disk.qcow2"},
		{"convert", "-f", "raw", "-O", "qcow2", "-W", "-c", "disk.raw", "zlib.qcow2"},
		{"convert", "-f", "raw", "-O", "qcow2", "-W", "-c", "-o", "compression_type=zstd", "disk.raw", "zstd.qcow2"},
	} {
		if err := b.stockRun(args...); err != nil {
			return err
		}
	}
	b.readJobs()
	b.convertJobs()
	b.changeJobs()
	return nil
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
	b.add("compare raw with qcow2", 3, most, nil, "compare", "-f", "raw", "disk.raw", "disk.qcow2")
	b.add("compare qcow2 with zlib", 0, most, nil, "compare", "disk.qcow2", "zlib.qcow2")
	b.add("compare zstd with raw", 0, most, nil, "compare", "-F", "raw", "zstd.qcow2", "disk.raw")
	for _, image := range []string{"disk.raw", "disk.qcow2", "zlib.qcow2"} {
		b.add("bench reads of "+image, 3, most, nil, "bench", "-c", "30000", image)
	}
	b.add("bench, 64 KiB reads of qcow2", 7, most, nil, "bench", "-c", "10000", "-s", "64k", "disk.qcow2")
}

// convertJobs copy the disk.
func (b *bench) convertJobs() {
	convert := func(name string, runs int, args ...string) {
		b.addWriting("convert "+name, runs, append([]string{"convert"}, args...)...)
	}
	convert("raw to qcow2", 3, "-f", "raw", "-O", "qcow2", "disk.raw", "out")
	convert("qcow2 to raw", 3, "-f", "qcow2", "-O", "raw", "disk.qcow2", "out")
	convert("qcow2 to qcow2", 3, "-f", "qcow2", "-O", "qcow2", "disk.qcow2", "out")
	convert("zlib qcow2 to raw", 0, "-f", "qcow2", "-O", "raw", "zlib.qcow2", "out")
	convert("zstd qcow2 to raw", 0, "-f", "qcow2", "-O", "raw", "zstd.qcow2", "out")
	convert("raw to zlib qcow2", 0, "-c", "-f", "raw", "-O", "qcow2", "disk.raw", "out")
	convert("raw to zstd qcow2", 0, "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", "disk.raw", "out")
	b.addWriting("dd of 1 GiB, qcow2 to raw", 3, "dd", "-f", "qcow2", "-O", "raw", "bs=1M", "count=1024", "if=disk.qcow2", "of=out")
}

// changeJobs change an image.
func (b *bench) changeJobs() {
	b.add("bench writes to qcow2", 3, most, b.again([]string{"create", "-q", "-f", "qcow2", "out", "4G"}), "bench", "-w", "-c", "30000", "out")
	overlay := [][]string{
		{"create", "-q", "-f", "qcow2", "base.qcow2", "4G"},
		{"create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "out"},
		{"bench", "-w", "-c", "2000", "-s", "64k", "-S", "256k", "--pattern", "65", "out"},
	}
	b.add("commit", 3, most, b.again(overlay...), "commit", "-q", "out")
	b.add("rebase", 3, most, b.again([]string{"create", "-q", "-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2", "out"}), "rebase", "-f", "qcow2", "-b", "disk.raw", "-F", "raw", "out")
	b.add("rebase -u", 20, most, b.again([]string{"create", "-q", "-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2", "out"}), "rebase", "-u", "-f", "qcow2", "-b", "disk.raw", "-F", "raw", "out")
	b.add("amend", 20, most, b.again([]string{"create", "-q", "-f", "qcow2", "-o", "compat=0.10", "out", "4G"}), "amend", "-f", "qcow2", "-o", "compat=1.1", "out")
	b.add("resize", 20, most, b.again([]string{"create", "-q", "-f", "qcow2", "out", "4G"}), "resize", "-q", "out", "8G")
}
