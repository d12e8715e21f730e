package advice

import (
	"os"
	"runtime"
	"strconv"
	"strings"
)

func hostCPUs() int { return runtime.NumCPU() }

// memoryAvailable is MemAvailable of proc_meminfo(5).
func memoryAvailable() int64 {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return 0
			}
			return kib << 10
		}
	}
	return 0
}
