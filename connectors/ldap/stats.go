package ldap

import "sync/atomic"

// counters count what a client does.
type counters struct {
	serviceDials, userDials, binds, searches, failovers atomic.Int64
}

// A clientStats is what a client has done so far, and what it has now.
type clientStats struct {
	serviceDials, userDials, binds, searches int64 // binds: of users
	failovers                                int64 // connections and searches that went to another host than the first choice
	open, inUse                              int   // connections
	hosts                                    []hostStats
}

// A hostStats is about one host.
type hostStats struct {
	addr          string
	dials, failed int64
	aside         bool
}

func (c *client) counted() clientStats {
	s := clientStats{
		serviceDials: c.stats.serviceDials.Load(), userDials: c.stats.userDials.Load(), binds: c.stats.binds.Load(), searches: c.stats.searches.Load(),
		failovers: c.stats.failovers.Load(), inUse: len(c.searches.slots) + len(c.users.slots) + len(c.own),
	}
	c.mu.Lock()
	s.open = len(c.live)
	c.mu.Unlock()
	c.hosts.mu.Lock()
	defer c.hosts.mu.Unlock()
	for _, e := range c.hosts.list {
		s.hosts = append(s.hosts, hostStats{addr: e.addr, dials: e.dials.Load(), failed: e.failed.Load(), aside: e.failures > 0})
	}
	return s
}
