package catalog

import (
	"io/fs"
	"syscall"
)

// allocated is what a file takes on its disk, in bytes.
func allocated(st fs.FileInfo) int64 { return st.Sys().(*syscall.Stat_t).Blocks * 512 }
