package main

import (
	"context"
	"log/slog"
	"math"
	"os"
	"path"
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

// tuneMemory sets the collector, unless the environment (GOGC, GOMEMLIMIT) has, and says what holds.
func tuneMemory(ctx context.Context, log *slog.Logger) {
	percent := "gatehouse"
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	} else {
		percent = "GOGC"
	}
	source := "none"
	if os.Getenv("GOMEMLIMIT") != "" {
		source = "GOMEMLIMIT"
	} else if limit, file := containerMemory("/sys/fs/cgroup", "/proc/self/cgroup"); limit > 0 {
		debug.SetMemoryLimit(int64(float64(limit) * limitShare))
		source = "80% of " + file
	}
	now := debug.SetGCPercent(-1) // there is no other way to read it
	debug.SetGCPercent(now)
	attrs := []any{"gc_percent", now, "gc_percent_from", percent, "limit_from", source}
	if limit := debug.SetMemoryLimit(-1); limit < math.MaxInt64 {
		attrs = append(attrs, "limit_bytes", limit)
	}
	log.InfoContext(ctx, "memory", attrs...)
}

// containerMemory returns the memory limit that is set for the process in bytes, by cgroup version 2 or 1, and the file that has
// it; 0 if there is none. Every group above that of the process counts (cgroups(7)). root is where they are mounted; list names
// that of the process. A container may see its own group as root and its path as that of the machine, which is not there.
func containerMemory(root, list string) (limit int64, file string) {
	for _, version := range []struct{ controller, dir, name string }{{"", "", "memory.max"}, {"memory", "memory", "memory.limit_in_bytes"}} {
		group := ownGroup(list, version.controller)
		for {
			f := filepath.Join(root, version.dir, group, version.name)
			if n := readLimit(f); n > 0 && (limit == 0 || n < limit) {
				limit, file = n, f
			}
			if group == "/" {
				break
			}
			group = path.Dir(group)
		}
	}
	return limit, file
}

// ownGroup returns the path of the process's group from lines of ID:CONTROLLERS:PATH, without controllers in version 2; "/" if
// there is none.
func ownGroup(list, controller string) string {
	b, _ := os.ReadFile(list)
	for line := range strings.Lines(string(b)) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		controllers, group, _ := strings.Cut(rest, ":")
		for c := range strings.SplitSeq(controllers, ",") {
			if c == controller {
				return path.Clean("/" + group)
			}
		}
	}
	return "/"
}

// readLimit returns the limit in a file of a group's, 0 if it has none.
func readLimit(file string) int64 {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	limit, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || limit < 0 || limit >= math.MaxInt64/2 { // version 1 writes "no limit" as a very large number
		return 0
	}
	return limit
}
