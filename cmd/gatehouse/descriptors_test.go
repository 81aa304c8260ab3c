package main

import (
	"bytes"
	"log/slog"
	"math"
	"strings"
	"testing"

	"gatehouse/internal/config"
)

// Whatever may be open, all full listeners leave files for the rest, and none goes without.
func TestFitConnections(t *testing.T) {
	wanted := []int{maxIssuerConnections, maxIssuerConnections, maxCheckConnections, maxTelemetryConnections, maxAdminConnections}
	sum := 0
	for _, n := range wanted {
		sum += n
	}
	for _, limit := range []uint64{48, 64, 128, 256, 1024, 4096, uint64(sum) + otherFiles - 1, uint64(sum) + otherFiles, 65536, math.MaxUint64} {
		total := 0
		for _, n := range wanted {
			got := fitConnections(n, sum, len(wanted), limit)
			if got < leastConnections || got > n {
				t.Errorf("%d files: got %d connections of %d", limit, got, n)
			}
			total += got
		}
		if room := limit - min(otherFiles, limit/2); uint64(total) > room {
			t.Errorf("%d files: got %d connections together, want at most %d", limit, total, room)
		}
		if enough := limit >= uint64(sum)+otherFiles; enough != (total == sum) {
			t.Errorf("%d files: got %d connections together, want %d only if there are files for all", limit, total, sum)
		}
	}
	if got := fitConnections(2048, 4192, 4, 1024); got < 400 {
		t.Errorf("1024 files: got %d connections, want at least 400", got)
	}
}

// The start says with numbers what too few files mean, and says nothing else.
func TestWarnOfFewFiles(t *testing.T) {
	var log bytes.Buffer
	s := &service{
		cfg: &config.Config{Web: config.Web{HTTP: "127.0.0.1:0"}, Telemetry: config.Telemetry{HTTP: "127.0.0.1:0"}, Gateway: &config.Gateway{}},
		log: slog.New(slog.NewTextHandler(&log, nil)),
	}
	s.warnOfFewFiles(t.Context(), 4292)
	if log.Len() > 0 {
		t.Errorf("got %s for enough files, want nothing", &log)
	}
	s.warnOfFewFiles(t.Context(), 1024)
	for _, want := range []string{"level=WARN", "files=1024", "wanted=4292", "checks=447", "instead_of=2048", "LimitNOFILE"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("got %s, want %s in it", &log, want)
		}
	}
}
