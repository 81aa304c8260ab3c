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

// Stats are what a connector has done so far, and the connections that it has now.
type Stats struct {
	ServiceDials, UserDials int64 // connections made for searches, and for the binds of users
	Binds                   int64 // of users
	Searches                int64
	Failovers               int64 // connections and searches that went to another host than the first choice
	Open, InUse             int   // connections
	Hosts                   []HostStats
}

// HostStats are about one host.
type HostStats struct {
	Address       string // host:port
	Dials, Failed int64
	Aside         bool // it does not work, as far as is known
}

// Stats returns what the connector has done. A separate account for changes of passwords is not counted.
func (c *Connector) Stats() Stats {
	s := c.client.counted()
	out := Stats{
		ServiceDials: s.serviceDials, UserDials: s.userDials, Binds: s.binds, Searches: s.searches, Failovers: s.failovers, Open: s.open, InUse: s.inUse,
	}
	for _, h := range s.hosts {
		out.Hosts = append(out.Hosts, HostStats{Address: h.addr, Dials: h.dials, Failed: h.failed, Aside: h.aside})
	}
	return out
}
