package qcow2

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/lamina-vm/lamina/format"
	"github.com/lamina-vm/lamina/protocol/file"
)

// openBench opens an image file for writing.
func openBench(b *testing.B, path string) *Image {
	b.Helper()
	f, err := file.Open(path, file.Options{Writable: true, Growable: true})
	if err != nil {
		b.Fatal(err)
	}
	n, err := (Driver{}).Open(context.Background(), f, format.OpenOptions{Writable: true, Filename: path})
	if err != nil {
		b.Fatal(err)
	}
	return n.(*Image)
}

const benchSize = 256 << 20

func BenchmarkSequential(b *testing.B) {
	for _, mode := range []string{"write-new", "write-again", "read"} {
		b.Run(mode, func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "disk.qcow2")
			createFile(b, path, benchSize, nil, "", "")
			img := openBench(b, path)
			defer func() { _ = img.Close() }()
			p := make([]byte, 1<<20)
			fill := func(io func([]byte, int64) (int, error)) {
				for off := int64(0); off < benchSize; off += int64(len(p)) {
					if _, err := io(p, off); err != nil {
						b.Fatal(err)
					}
				}
			}
			if mode != "write-new" {
				fill(img.WriteAt)
			}
			b.SetBytes(benchSize)
			for b.Loop() {
				switch mode {
				case "read":
					fill(img.ReadAt)
				case "write-again":
					fill(img.WriteAt)
				default:
					b.StopTimer()
					if err := img.Discard(0, benchSize); err != nil {
						b.Fatal(err)
					}
					if err := img.Flush(); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
					fill(img.WriteAt)
				}
			}
		})
	}
}

// BenchmarkRandomRead reads 4 KiB at a time.
func BenchmarkRandomRead(b *testing.B) {
	path := filepath.Join(b.TempDir(), "disk.qcow2")
	createFile(b, path, benchSize, nil, "", "")
	img := openBench(b, path)
	defer func() { _ = img.Close() }()
	if _, err := img.WriteAt(make([]byte, benchSize), 0); err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 4096)
	b.ReportAllocs()
	i := int64(0)
	for b.Loop() {
		i = (i*1103515245 + 12345) & (benchSize/4096 - 1)
		if _, err := img.ReadAt(p, i*4096); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCompressed compresses and decompresses clusters of half noise.
func BenchmarkCompressed(b *testing.B) {
	src := make([]byte, 64<<10)
	for i := range src {
		src[i] = byte(i * i >> 3 & 0x3f)
	}
	for _, method := range []uint8{compressionZlib, compressionZstd} {
		name := [...]string{"zlib", "zstd"}[method]
		c := new(compressor)
		packed, err := c.compress(src, method)
		if err != nil || packed == nil {
			b.Fatal(err)
		}
		packed = append([]byte(nil), packed...)
		b.Run(name+"/pack", func(b *testing.B) {
			b.SetBytes(int64(len(src)))
			for b.Loop() {
				if _, err := c.compress(src, method); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/unpack", func(b *testing.B) {
			b.SetBytes(int64(len(src)))
			b.ReportMetric(float64(len(packed)), "packed")
			dst := make([]byte, len(src))
			for b.Loop() {
				if err := decompress(dst, packed, method); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkCreate makes images of 1 GiB.
func BenchmarkCreate(b *testing.B) {
	dir := b.TempDir()
	path := filepath.Join(dir, "disk.qcow2")
	for b.Loop() {
		createFile(b, path, 1<<30, nil, "", "")
	}
}

// BenchmarkLookup finds what the disk is: long runs, and 4 KiB at a time.
func BenchmarkLookup(b *testing.B) {
	path := filepath.Join(b.TempDir(), "disk.qcow2")
	createFile(b, path, benchSize, nil, "", "")
	img := openBench(b, path)
	defer func() { _ = img.Close() }()
	if _, err := img.WriteAt(make([]byte, benchSize), 0); err != nil {
		b.Fatal(err)
	}
	for _, n := range []int64{4096, 32 << 20} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			i := int64(0)
			for b.Loop() {
				i = (i*1103515245 + 12345) & (benchSize/4096 - 1)
				off := min(i*4096, benchSize-n)
				if _, err := img.lookup(off, n); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
