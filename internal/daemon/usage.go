package daemon

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// residentShare returns the proportional set size of a process in bytes: its
// own pages, and its share of those that it has in common with others
// (proc_pid_smaps_rollup(5)). 0 where the kernel does not tell.
func residentShare(pid int) int64 {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0
	}
	defer func() { _ = f.Close() }()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if rest, ok := strings.CutPrefix(sc.Text(), "Pss:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return 0
			}
			return kib << 10
		}
	}
	return 0
}
