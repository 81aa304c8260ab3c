package main

import (
	"bytes"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
)

func TestContainerMemory(t *testing.T) {
	const unit = "system.slice/gatehouse.service"
	for _, tt := range []struct {
		rule, groups string
		files        map[string]string
		want         int64
		from         string
	}{
		{"version 2", "0::/\n", map[string]string{"memory.max": "134217728\n"}, 128 << 20, "memory.max"},
		{"version 2 without limit", "0::/\n", map[string]string{"memory.max": "max\n"}, 0, ""},
		{"systemd's MemoryMax", "0::/" + unit + "\n", map[string]string{unit + "/memory.max": "134217728\n"}, 128 << 20, unit + "/memory.max"},
		{"the group above has less", "0::/" + unit + "\n", map[string]string{unit + "/memory.max": "134217728\n", "system.slice/memory.max": "1048576\n"}, 1 << 20, "system.slice/memory.max"},
		{"the group above has more", "0::/" + unit + "\n", map[string]string{unit + "/memory.max": "134217728\n", "memory.max": "268435456\n"}, 128 << 20, unit + "/memory.max"},
		{"another unit's", "0::/" + unit + "\n", map[string]string{"system.slice/other.service/memory.max": "134217728\n"}, 0, ""},
		{"a path of the machine that the container does not see", "0::/docker/abc\n", map[string]string{"memory.max": "134217728\n"}, 128 << 20, "memory.max"},
		{"out of the container's namespace", "0::/../../x\n", map[string]string{"memory.max": "134217728\n"}, 128 << 20, "memory.max"},
		{"version 1", "", map[string]string{"memory/memory.limit_in_bytes": "134217728\n"}, 128 << 20, "memory/memory.limit_in_bytes"},
		{"version 1 in a group", "5:cpu,memory:/x\n0::/y\n", map[string]string{"memory/x/memory.limit_in_bytes": "134217728\n"}, 128 << 20, "memory/x/memory.limit_in_bytes"},
		{"version 1 without limit", "", map[string]string{"memory/memory.limit_in_bytes": "9223372036854771712\n"}, 0, ""},
		{"neither", "", map[string]string{"other": "1"}, 0, ""},
		{"nonsense", "x\n::::\n", map[string]string{"memory.max": "-1"}, 0, ""},
	} {
		t.Run(tt.rule, func(t *testing.T) {
			root := t.TempDir()
			list := filepath.Join(t.TempDir(), "cgroup")
			tt.files["../"+filepath.Base(filepath.Dir(list))+"/cgroup"] = tt.groups
			for name, text := range tt.files {
				file := filepath.Join(root, name)
				if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want := ""
			if tt.from != "" {
				want = filepath.Join(root, tt.from)
			}
			if got, from := containerMemory(root, list); got != tt.want || from != want {
				t.Errorf("got %d from %q, want %d from %q", got, from, tt.want, want)
			}
		})
	}
}

// What the environment says holds, and the log says what holds.
func TestTuneMemory(t *testing.T) {
	percent, limit := debug.SetGCPercent(100), debug.SetMemoryLimit(math.MaxInt64)
	t.Cleanup(func() { debug.SetGCPercent(percent); debug.SetMemoryLimit(limit) })
	var log bytes.Buffer
	t.Setenv("GOGC", "")
	t.Setenv("GOMEMLIMIT", "1GiB")
	debug.SetMemoryLimit(1 << 30) // as Go itself does at the start
	tuneMemory(t.Context(), slog.New(slog.NewTextHandler(&log, nil)))
	if got, want := log.String(), "gc_percent=400 gc_percent_from=gatehouse limit_from=GOMEMLIMIT limit_bytes=1073741824\n"; !strings.HasSuffix(got, want) {
		t.Errorf("got the log %s, want it to end in %s", got, want)
	}
	log.Reset()
	t.Setenv("GOGC", "150")
	debug.SetGCPercent(150)
	tuneMemory(t.Context(), slog.New(slog.NewTextHandler(&log, nil)))
	if got := log.String(); !strings.Contains(got, "gc_percent=150 gc_percent_from=GOGC ") {
		t.Errorf("got the log %s, want the 150 of GOGC", got)
	}
}
