package render

import (
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

// TestAlerts has Prometheus' own reader read the rules, and looks for each metric, label and value that they name in the program, for values
// in docs/operations.md too: a rule about what does not exist is silent for ever.
func TestAlerts(t *testing.T) {
	promql := parser.NewParser(parser.Options{})
	file, errs := rulefmt.ParseFile(deploy("alerts.yaml"), false, model.UTF8Validation, promql)
	for _, err := range errs {
		t.Error(err)
	}
	if t.Failed() {
		return
	}
	program, seen := sources(t), map[string]bool{}
	for _, group := range file.Groups {
		for _, rule := range group.Rules {
			if rule.Labels["severity"] != "critical" && rule.Labels["severity"] != "warning" || rule.Annotations["summary"] == "" {
				t.Errorf("%s has labels %v and annotations %v, want a severity and a summary", rule.Alert, rule.Labels, rule.Annotations)
			}
			expr, err := promql.ParseExpr(rule.Expr)
			if err != nil {
				t.Fatal(err)
			}
			parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
				switch n := n.(type) {
				case *parser.VectorSelector:
					for _, m := range n.LabelMatchers {
						known(t, program, rule.Alert, m)
						seen[m.Value] = true
					}
				case *parser.AggregateExpr:
					for _, label := range n.Grouping {
						if label == "instance" || label == "le" { // which Prometheus, and its library, add
							continue
						}
						literal(t, program, rule.Alert, label)
					}
				}
				return nil
			})
			for _, m := range regexp.MustCompile(`\$labels\.([a-z]+)`).FindAllStringSubmatch(rule.Annotations["summary"], -1) {
				if m[1] != "instance" { // which Prometheus adds
					literal(t, program, rule.Alert, m[1])
				}
			}
		}
	}
	for _, metric := range []string{
		"gatehouse_checks_total", "gatehouse_feed_age_seconds", "gatehouse_config_last_reload_successful",
		"gatehouse_tls_certificate_expiry_timestamp_seconds", "gatehouse_sign_ins_total", "gatehouse_revalidations_total",
		"gatehouse_store_write_failures_total", "gatehouse_outbox_pending", "gatehouse_outbox_failed_total", "gatehouse_feed_delay_seconds_bucket",
	} {
		if !seen[metric] {
			t.Errorf("no alert looks at %s", metric)
		}
	}
}

// known looks for a metric, or for a label and each of its values.
func known(t *testing.T, program, alert string, m *labels.Matcher) {
	t.Helper()
	values := []string{m.Value}
	if m.Type == labels.MatchRegexp || m.Type == labels.MatchNotRegexp {
		values = strings.Split(m.Value, "|")
	}
	if m.Name != model.MetricNameLabel {
		values = append(values, m.Name)
	}
	document := string(read(t, deploy("..", "docs", "operations.md")))
	for _, v := range values {
		if m.Name == model.MetricNameLabel { // of a histogram
			v = strings.TrimSuffix(strings.TrimSuffix(v, "_bucket"), "_count")
		}
		literal(t, program, alert, v)
		if m.Name != model.MetricNameLabel && v != m.Name && !strings.Contains(document, "`"+v+"`") {
			t.Errorf("%s: docs/operations.md does not have `%s`", alert, v)
		}
	}
}

func literal(t *testing.T, program, alert, word string) {
	t.Helper()
	if !strings.Contains(program, `"`+word+`"`) {
		t.Errorf("%s: the program has no %q", alert, word)
	}
}

// sources is the text of the product.
func sources(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, folder := range []string{"authz", "cmd", "connectors", "internal", "provider"} {
		err := filepath.WalkDir(deploy("..", folder), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			all.Write(read(t, path))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all.String()
}
