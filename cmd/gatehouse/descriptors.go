package main

import "context"

// otherFiles are the descriptors that no listener may use up: those of the database, of files that are read again, of upstream
// identity providers and directories, and of the process for passwords.
const otherFiles = 100

// leastConnections is what each listener keeps even where very few files may be open: a probe, Prometheus and an operator.
const leastConnections = 4

// fitConnections returns how many connections a listener may have that should have wanted, when all listeners should have sum and
// the process may open limit files. With fewer all shrink in proportion, so that together they leave otherFiles, or half of a
// limit that is below twice of that.
func fitConnections(wanted, sum, listeners int, limit uint64) int {
	room := int(min(limit, 1<<30))
	room -= min(otherFiles, room/2)
	if sum <= room {
		return wanted
	}
	return min(wanted, leastConnections+wanted*max(0, room-listeners*leastConnections)/sum)
}

// wantedConnections returns how many connections the listeners of the configuration should have together, and how many
// listeners there are.
func (s *service) wantedConnections() (sum, listeners int) {
	for _, l := range []struct {
		open bool
		most int
	}{
		{s.cfg.Web.HTTP != "", maxIssuerConnections},
		{s.cfg.Web.HTTPS != "", maxIssuerConnections},
		{s.cfg.Telemetry.HTTP != "", maxTelemetryConnections},
		{s.cfg.Gateway != nil, maxCheckConnections},
		{s.cfg.Gateway != nil, maxAdminConnections},
	} {
		if l.open {
			sum += l.most
			listeners++
		}
	}
	return sum, listeners
}

// fitted is how many connections a listener may have that should have wanted.
func (s *service) fitted(wanted int) int {
	sum, listeners := s.wantedConnections()
	return fitConnections(wanted, sum, listeners, openFiles())
}

// warnOfFewFiles says when the listeners have to do with fewer connections. Out of descriptors no connection is taken at all, not
// even the probe's.
func (s *service) warnOfFewFiles(ctx context.Context, limit uint64) {
	sum, listeners := s.wantedConnections()
	if fitConnections(sum, sum, listeners, limit) == sum {
		return
	}
	s.log.WarnContext(ctx, "few files may be open: the listeners take fewer connections", "files", limit, "wanted", sum+otherFiles,
		"checks", fitConnections(maxCheckConnections, sum, listeners, limit), "instead_of", maxCheckConnections,
		"fix", "raise the limit (systemd: LimitNOFILE=65536; a shell: ulimit -n)")
}
