package store

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestWriteSparse(t *testing.T) {
	dir := t.TempDir()
	for i, c := range []struct {
		runs []int // lengths of zeros, data, zeros, ...
		most int64 // bytes on disk
	}{
		{nil, 0},
		{[]int{1}, 0},
		{[]int{0, 1}, 4096},
		{[]int{100 << 10}, 0},
		{[]int{64 << 10, 5000, 64 << 10}, 8192},
		{[]int{64 << 10, 5000, 64 << 10, 1}, 12288},
		{[]int{4095, 1, 4096, 4096}, 8192},
	} {
		var content []byte
		for j, n := range c.runs {
			content = append(content, bytes.Repeat([]byte{byte(j % 2)}, n)...)
		}
		path := filepath.Join(dir, string(rune('a'+i)))
		if err := writeSparse(path, content); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%v: %d bytes, %v", c.runs, len(got), err)
		}
		if err := syncPath(path); err != nil {
			t.Error(err)
		}
		if n := allocated(path); n > c.most {
			t.Errorf("%v: takes %d bytes, want %d at most", c.runs, n, c.most)
		}
		if err := writeSparse(path, content); err == nil {
			t.Error("an existing file was overwritten")
		}
	}
}
