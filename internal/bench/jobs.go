package main

import (
	"bytes"
	"compress/zlib"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
)

// The data image: diskSize bytes with dataSize bytes written, in runs with
// holes between them, of a compressibility like that of an OS disk.
const (
	diskSize = 1 << 30
	dataSize = 256 << 20
)

// prepare makes the inputs in dir and returns the jobs.
func prepare(dir, lamina, stock string) ([]job, error) {
	if err := writeDisk(filepath.Join(dir, "disk.raw")); err != nil {
		return nil, err
	}
	for _, args := range [][]string{
		{"create", "-q", "-f", "qcow2", "empty.qcow2", "10G"},
		{"convert", "-f", "raw", "-O", "qcow2", "disk.raw", "disk.qcow2"},
		{"convert", "-f", "raw", "-O", "qcow2", "-c", "disk.raw", "zlib.qcow2"},
		{"convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd", "disk.raw", "zstd.qcow2"},
	} {
		cmd := exec.Command(stock, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("qemu-img %v: %w: %s", args, err, out)
		}
	}
	remove := func() error {
		err := os.Remove(filepath.Join(dir, "out"))
		if os.IsNotExist(err) {
			return nil
		}
		return err
	}
	var jobs []job
	add := func(name string, runs int, limit float64, reset func() error, args ...string) {
		jobs = append(jobs, job{name: name, runs: runs, limit: limit, reset: reset,
			ours: append([]string{lamina, "img"}, args...), theirs: append([]string{stock}, args...)})
	}
	add("create qcow2 10G", 200, 0.6, remove, "create", "-q", "-f", "qcow2", "out", "10G")
	add("create overlay", 200, 0, remove, "create", "-q", "-f", "qcow2", "-b", "empty.qcow2", "-F", "qcow2", "out")
	add("info qcow2", 200, 0.8, nil, "info", "empty.qcow2")
	add("info --output=json", 200, 0.8, nil, "info", "--output=json", "empty.qcow2")
	add("check qcow2", 20, 0, nil, "check", "-q", "disk.qcow2")
	add("map qcow2", 20, 0, nil, "map", "--output=json", "disk.qcow2")
	add("convert raw to qcow2", 5, 0, remove, "convert", "-f", "raw", "-O", "qcow2", "disk.raw", "out")
	add("convert qcow2 to raw", 5, 0, remove, "convert", "-f", "qcow2", "-O", "raw", "disk.qcow2", "out")
	add("convert zlib qcow2 to raw", 3, 0, remove, "convert", "-f", "qcow2", "-O", "raw", "zlib.qcow2", "out")
	add("convert zstd qcow2 to raw", 3, 0, remove, "convert", "-f", "qcow2", "-O", "raw", "zstd.qcow2", "out")
	add("convert raw to zlib qcow2 (-c)", 2, 0, remove, "convert", "-c", "-f", "raw", "-O", "qcow2", "disk.raw", "out")
	add("convert raw to zstd qcow2 (-c)", 2, 0, remove, "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd", "disk.raw", "out")
	return jobs, nil
}

// writeDisk makes a sparse raw disk whose content is the same in every run.
func writeDisk(path string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}()
	if err := f.Truncate(diskSize); err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	const run = 1 << 20
	chunk := make([]byte, run)
	for i := range dataSize / run {
		for filled := 0; filled < run; {
			// Words from a small dictionary between noise: zlib halves it.
			if rnd.IntN(3) == 0 {
				for range 64 {
					if filled < run {
						chunk[filled] = byte(rnd.Uint32())
						filled++
					}
				}
				continue
			}
			filled += copy(chunk[filled:], fmt.Sprintf("/usr/share/doc/package-%04d/copyright\x00", rnd.IntN(2000)))
		}
		if _, err := f.WriteAt(chunk, int64(i)*(diskSize/(dataSize/run))); err != nil {
			return err
		}
	}
	var z bytes.Buffer
	w := zlib.NewWriter(&z)
	if _, err := w.Write(chunk); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	if ratio := float64(z.Len()) / run; ratio < 0.2 || ratio > 0.8 {
		return fmt.Errorf("the bench disk compresses to %.2f: it should be like an OS disk", ratio)
	}
	return f.Sync()
}
