package main

import (
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
)

// gcPercent trades memory for less work on the check path: what a check costs most, after system calls, is the garbage of the
// gRPC transport. The heap that lives is small; a limit of the container brings the collector back in time.
const gcPercent = 400

// limitShare is which part of a container's memory Go may use before it collects more often. The rest is for what Go does not
// count, such as SQLite's pages.
const limitShare = 0.8

// tuneMemory sets the collector, unless the environment (GOGC, GOMEMLIMIT) has.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		if limit := containerMemory("/sys/fs/cgroup"); limit > 0 {
			debug.SetMemoryLimit(int64(float64(limit) * limitShare))
		}
	}
}

// containerMemory returns the memory limit of the container in bytes, by cgroup version 2 or 1; 0 if there is none.
func containerMemory(root string) int64 {
	for _, name := range []string{"memory.max", "memory/memory.limit_in_bytes"} {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			continue
		}
		limit, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		if err == nil && limit > 0 && limit < math.MaxInt64/2 { // version 1 writes "no limit" as a very large number
			return limit
		}
	}
	return 0
}
