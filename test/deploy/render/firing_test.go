package render

import (
	"context"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

// A line is a series that is scraped every 15 seconds: what it begins with, and by how much it grows in a minute from the tenth minute on, when
// things begin to go wrong.
type line struct {
	from, grows float64
}

// series are lines by their names, as /metrics has them.
type series map[string]line

const (
	scrape   = 15 * time.Second
	watched  = 60 * time.Minute
	goesAway = 10 * time.Minute // when things begin to go wrong
)

// TestAlertsFire has Prometheus' own engine look at an hour of each kind: every alert comes when it should, and stays away on an ordinary day.
func TestAlertsFire(t *testing.T) {
	day := func(more series) series {
		all := series{
			`gatehouse_build_info{instance="a",version="1"}`:                                   {1, 0},
			`gatehouse_checks_total{decision="allow",reason="identity"}`:                       {0, 6000},
			`gatehouse_checks_total{decision="unavailable",reason="x"}`:                        {0, 0},
			`gatehouse_feed_age_seconds{instance="a"}`:                                         {2, 0},
			`gatehouse_store_write_failures_total{instance="a"}`:                               {3, 0},
			`gatehouse_feed_delay_seconds_bucket{instance="a",le="0.05"}`:                      {0, 30},
			`gatehouse_feed_delay_seconds_bucket{instance="a",le="5"}`:                         {0, 30},
			`gatehouse_feed_delay_seconds_bucket{instance="a",le="30"}`:                        {0, 30},
			`gatehouse_feed_delay_seconds_bucket{instance="a",le="+Inf"}`:                      {0, 30},
			`gatehouse_feed_delay_seconds_count{instance="a"}`:                                 {0, 30},
			`gatehouse_revalidations_total{connector="ldap",result="same"}`:                    {0, 100},
			`gatehouse_revalidations_total{connector="ldap",result="unavailable"}`:             {0, 1},
			`gatehouse_sign_ins_total{connector="ldap",result="ok"}`:                           {0, 10},
			`gatehouse_sign_ins_total{connector="ldap",result="wrong-credentials"}`:            {0, 2},
			`gatehouse_directory_host_aside{connector="ldap",host="dc1"}`:                      {0, 0},
			`gatehouse_sign_in_queue_refused_total{}`:                                          {0, 0},
			`gatehouse_directory_queue_refused_total{}`:                                        {0, 0},
			`gatehouse_config_last_reload_successful{instance="a"}`:                            {1, 0},
			`gatehouse_tls_certificate_expiry_timestamp_seconds{listener="web.https"}`:         {30 * 86400, 0},
			`gatehouse_tls_client_ca_expiry_timestamp_seconds{listener="gateway.grpc"}`:        {90 * 86400, 0},
			`gatehouse_tls_handshake_failures_total{listener="gateway.grpc",reason="timeout"}`: {0, 2},
			`gatehouse_audit_dropped_total{}`:                                                  {0, 0},
			`gatehouse_check_panics_total{}`:                                                   {0, 0},
			`gatehouse_outbox_pending{}`:                                                       {0, 0},
			`gatehouse_outbox_failed_total{}`:                                                  {0, 0},
		}
		maps.Copy(all, more)
		return all
	}
	bad := map[string]series{
		"GatehouseDown":              {`gatehouse_build_info{instance="a",version="1"}`: {}},
		"GatehouseChecksFail":        {`gatehouse_checks_total{decision="unavailable",reason="x"}`: {0, 100}},
		"GatehouseStorageStale":      {`gatehouse_feed_age_seconds{instance="a"}`: {2, 60}},
		"GatehouseStorageWritesFail": {`gatehouse_store_write_failures_total{instance="a"}`: {3, 4}},
		"GatehouseChangesLate": {
			`gatehouse_feed_delay_seconds_bucket{instance="a",le="0.05"}`: {0, 3}, `gatehouse_feed_delay_seconds_bucket{instance="a",le="5"}`: {0, 20},
		},
		"GatehouseDirectoryUnreachable": {
			`gatehouse_revalidations_total{connector="ldap",result="same"}`: {0, 0}, `gatehouse_revalidations_total{connector="ldap",result="unavailable"}`: {0, 4},
		},
		"GatehouseDirectoryHostAside": {`gatehouse_directory_host_aside{connector="ldap",host="dc1"}`: {1, 0}},
		"GatehouseSignInsRefused":     {`gatehouse_sign_ins_total{connector="ldap",result="wrong-credentials"}`: {0, 40}},
		"GatehouseSignInsTurnedAway":  {`gatehouse_sign_in_queue_refused_total{}`: {0, 1}},
		"GatehouseOutboxGrows":        {`gatehouse_outbox_pending{}`: {0, 2}},
		"GatehouseLogoutUntold":       {`gatehouse_outbox_failed_total{}`: {0, 0.1}},
		"GatehouseConfigRefused":      {`gatehouse_config_last_reload_successful{instance="a"}`: {0, 0}},
		"GatehouseCertificateExpires": {`gatehouse_tls_certificate_expiry_timestamp_seconds{listener="web.https"}`: {6 * 86400, 0}},
		"GatehouseGatewayRefused":     {`gatehouse_tls_handshake_failures_total{listener="gateway.grpc",reason="certificate"}`: {0, 1}},
		"GatehouseAuditIncomplete":    {`gatehouse_audit_dropped_total{}`: {0, 9}},
		"GatehousePanics":             {`gatehouse_check_panics_total{}`: {0, 1}},
	}
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute, Parser: parser.NewParser(parser.Options{})})
	file, errs := rulefmt.ParseFile(deploy("alerts.yaml"), false, model.UTF8Validation, parser.NewParser(parser.Options{}))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	var known []string
	for _, rule := range file.Groups[0].Rules {
		known = append(known, rule.Alert)
		if fires(t, engine, rule, day(nil)) {
			t.Errorf("%s comes on an ordinary day", rule.Alert)
		}
		if bad[rule.Alert] == nil {
			t.Errorf("%s: no series here brings it", rule.Alert)
		} else if !fires(t, engine, rule, day(bad[rule.Alert])) {
			t.Errorf("%s stays away", rule.Alert)
		}
	}
	for alert := range bad {
		if !slices.Contains(known, alert) {
			t.Errorf("deploy/alerts.yaml has no %s", alert)
		}
	}
}

// fires reports whether a rule is true for its time at the end of the hour.
func fires(t *testing.T, engine *promql.Engine, rule rulefmt.Rule, s series) bool {
	t.Helper()
	end := time.Unix(0, 0).Add(watched)
	for at := end.Add(-time.Duration(rule.For)); !at.After(end); at = at.Add(scrape) {
		q, err := engine.NewInstantQuery(t.Context(), s, nil, rule.Expr, at)
		if err != nil {
			t.Fatalf("%s: %v", rule.Alert, err)
		}
		v, err := q.Exec(t.Context()).Vector()
		if err != nil {
			t.Fatalf("%s: %v", rule.Alert, err)
		}
		q.Close()
		if len(v) == 0 {
			return false
		}
	}
	return true
}

// Querier implements storage.Queryable.
func (s series) Querier(mint, maxt int64) (storage.Querier, error) { return hour{s, mint, maxt}, nil }

// An hour is a storage.Querier of what was scraped.
type hour struct {
	series

	mint, maxt int64
}

// Select implements storage.Querier. A line of zero is one that is scraped no more.
func (h hour) Select(_ context.Context, _ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	p := parser.NewParser(parser.Options{})
	var found []storage.Series
	for name, l := range h.series {
		set, err := p.ParseMetric(name)
		if err != nil {
			return storage.ErrSeriesSet(err)
		}
		if slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(set.Get(m.Name)) }) {
			continue
		}
		var samples []chunks.Sample
		for at := time.Duration(0); at <= watched; at += scrape {
			gone := l == line{} && name == `gatehouse_build_info{instance="a",version="1"}` && at >= goesAway
			if ms := at.Milliseconds(); ms >= h.mint && ms <= h.maxt && !gone {
				samples = append(samples, sample{t: ms, f: l.from + l.grows*max(0, (at-goesAway).Minutes())})
			}
		}
		found = append(found, storage.NewListSeries(set, samples))
	}
	slices.SortFunc(found, func(a, b storage.Series) int { return labels.Compare(a.Labels(), b.Labels()) })
	return &set{found: found}
}

// LabelValues implements storage.Querier.
func (hour) LabelValues(context.Context, string, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

// LabelNames implements storage.Querier.
func (hour) LabelNames(context.Context, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

// Close implements storage.Querier.
func (hour) Close() error { return nil }

// A sample is a chunks.Sample of a number.
type sample struct {
	t int64
	f float64
}

func (s sample) T() int64                    { return s.t }
func (sample) ST() int64                     { return 0 }
func (s sample) F() float64                  { return s.f }
func (sample) H() *histogram.Histogram       { return nil }
func (sample) FH() *histogram.FloatHistogram { return nil }
func (sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample         { return s }

// A set is a storage.SeriesSet of a list.
type set struct {
	found []storage.Series
	at    int
}

func (s *set) Next() bool                        { s.at++; return s.at <= len(s.found) }
func (s *set) At() storage.Series                { return s.found[s.at-1] }
func (s *set) Err() error                        { return nil }
func (s *set) Warnings() annotations.Annotations { return nil }
