package identity

import (
	"strings"

	"gatehouse/connectors/ldap"

	"github.com/prometheus/client_golang/prometheus"
)

// measured is a connector that counts what it does at its directory.
type measured interface{ Stats() ldap.Stats }

// directoryMetrics are those of the directories of the current doors. Their labels are connectors of the configuration, and the hosts that a
// connector knows now, which are few; nothing that a user types is among them. Counters begin anew with a connector that was changed.
type directoryMetrics struct {
	current                                  func() *Doors
	dials, failed, aside                     *prometheus.Desc // by host
	open, inUse, binds, searches, failedOver *prometheus.Desc
}

// DirectoryCollector returns the metrics of the directories of the current doors. current may return nil.
func DirectoryCollector(current func() *Doors) prometheus.Collector {
	by, byHost := []string{"connector"}, []string{"connector", "host"}
	desc := prometheus.NewDesc
	return &directoryMetrics{
		current:  current,
		dials:    desc("gatehouse_directory_dials_total", "Attempts to connect to a directory's server.", byHost, nil),
		failed:   desc("gatehouse_directory_failed_dials_total", "Of them, those that did not succeed.", byHost, nil),
		aside:    desc("gatehouse_directory_host_aside", "1 while a server is put aside, since it did not answer.", byHost, nil),
		open:     desc("gatehouse_directory_connections", "Connections to the directory that are open.", by, nil),
		inUse:    desc("gatehouse_directory_connections_in_use", "Of them, those that somebody uses.", by, nil),
		binds:    desc("gatehouse_directory_binds_total", "Binds of users at the directory.", by, nil),
		searches: desc("gatehouse_directory_searches_total", "Searches in the directory.", by, nil),
		failedOver: desc("gatehouse_directory_failovers_total",
			"Connections and searches that went to another server than the first choice.", by, nil),
	}
}

// Describe implements prometheus.Collector.
func (m *directoryMetrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.dials, m.failed, m.aside, m.open, m.inUse, m.binds, m.searches, m.failedOver} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (m *directoryMetrics) Collect(out chan<- prometheus.Metric) {
	d := m.current()
	if d == nil {
		return
	}
	for _, door := range d.All() {
		if c, ok := door.inner.(measured); ok {
			m.collect(out, door.ID, c.Stats())
		}
	}
}

func (m *directoryMetrics) collect(out chan<- prometheus.Metric, connector string, s ldap.Stats) {
	send := func(d *prometheus.Desc, kind prometheus.ValueType, v int64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, kind, float64(v), labels...)
	}
	send(m.open, prometheus.GaugeValue, int64(s.Open), connector)
	send(m.inUse, prometheus.GaugeValue, int64(s.InUse), connector)
	send(m.binds, prometheus.CounterValue, s.Binds, connector)
	send(m.searches, prometheus.CounterValue, s.Searches, connector)
	send(m.failedOver, prometheus.CounterValue, s.Failovers, connector)
	seen := map[string]bool{} // a host that comes twice would make the whole scrape fail, as would one that is no UTF-8: names come from DNS, too
	for _, h := range s.Hosts {
		host := strings.ToValidUTF8(h.Address, "?")
		if seen[host] {
			continue
		}
		seen[host] = true
		aside := int64(0)
		if h.Aside {
			aside = 1
		}
		send(m.dials, prometheus.CounterValue, h.Dials, connector, host)
		send(m.failed, prometheus.CounterValue, h.Failed, connector, host)
		send(m.aside, prometheus.GaugeValue, aside, connector, host)
	}
}
