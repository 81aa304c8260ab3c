// Package directory signs people in at real directories, OpenLDAP and Active Directory, with the built Gatehouse behind a real Envoy.
package directory

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"gatehouse/internal/demo"
	"gatehouse/test/peers"
)

// maxLines is how long a connector's configuration may be that works.
const maxLines = 10

// table is a part of a config file.
type table map[string]any

// documented returns the connector of a preset as docs/ldap.md has it, with the values that differ from place to place: change.
func documented(t *testing.T, preset string, change table) table {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(peers.Root(t), "docs", "ldap.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range regexp.MustCompile("(?s)```yaml\n(connectors:.*?)```").FindAllStringSubmatch(string(text), -1) {
		var file struct{ Connectors []table }
		if err := yaml.Unmarshal([]byte(block[1]), &file); err != nil {
			t.Fatalf("docs/ldap.md: %v in\n%s", err, block[1])
		}
		config, _ := file.Connectors[0]["config"].(table)
		if config["preset"] != preset {
			continue
		}
		if n := strings.Count(block[1], "\n"); n > maxLines {
			t.Errorf("docs/ldap.md: the connector for %s has %d lines, want at most %d", preset, n, maxLines)
		}
		maps.Copy(config, change)
		return file.Connectors[0]
	}
	t.Fatalf("docs/ldap.md has no connector with the preset %s", preset)
	return nil
}

// A stack is Gatehouse with a sample app behind Envoy.
type stack struct {
	app       string // origin
	connector string // id
	port      string // of all hosts
	envoy     *peers.EnvoyServer
	gatehouse *peers.GatehouseServer
}

// serve starts a stack with one connector. session is the config's gateway.session.
func serve(t *testing.T, connector, session table) *stack {
	t.Helper()
	listen, web, grpc := peers.FreeAddr(t), peers.FreeAddr(t), peers.FreeAddr(t)
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		t.Fatal(err)
	}
	issuer := "http://auth.example.test:" + port + "/dex"
	s := &stack{app: "http://app.other.test:" + port, connector: fmt.Sprint(connector["id"]), port: port}
	config, err := yaml.Marshal(table{
		"issuer": issuer, "storage": table{"type": "memory"}, "web": table{"http": web}, "telemetry": table{"http": peers.FreeAddr(t)},
		"connectors": []table{connector},
		"gateway": table{
			"grpc": grpc, "admin": peers.FreeAddr(t), "hosts": []string{s.app, "http://*.second.test:" + port}, "default": "signed-in", "session": session,
			"identity": table{"headers": table{"kubeflow-userid": "email", "kubeflow-groups": "groups", "x-name": "preferred_username"}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.gatehouse = peers.Gatehouse(t, string(config))
	app := httptest.NewServer(demo.SampleApp())
	t.Cleanup(app.Close)
	s.envoy = peers.Envoy(t, demo.Edge{Listen: listen, Check: grpc, Hosts: []demo.VirtualHost{
		{Name: "auth", Domains: []string{"auth.example.test", "auth.example.test:*"}, Routes: []demo.Route{{Prefix: "/dex", Upstream: web}}},
		{Name: "apps", Domains: []string{"*"}, Routes: []demo.Route{{Prefix: "/", Upstream: app.Listener.Addr().String()}}},
	}})
	return s
}

// A person is a browser with its cookies.
type person struct {
	s        *stack
	client   http.Client
	language string
}

// A page is what the browser shows in the end.
type page struct {
	url    *url.URL
	status int
	body   string
}

func (s *stack) newPerson(t *testing.T, language string) *person {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &person{s: s, language: language, client: http.Client{Jar: jar, Transport: s.envoy.Transport(t), Timeout: time.Minute}}
}

func (p *person) do(t *testing.T, method, address string, form url.Values) page {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, address, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/html")
	req.Header.Set("Accept-Language", p.language)
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	res, err := p.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	return page{url: res.Request.URL, status: res.StatusCode, body: string(body)}
}

// action is where the form of a page leads.
func (pg page) action(t *testing.T) string {
	t.Helper()
	m := regexp.MustCompile(`<form method="post" action="([^"]*)"`).FindStringSubmatch(pg.body)
	if m == nil {
		t.Fatalf("no form on the page at %s, status %d: %s", pg.url, pg.status, pg.body)
	}
	u, err := pg.url.Parse(strings.ReplaceAll(m[1], "&amp;", "&"))
	if err != nil {
		t.Fatal(err)
	}
	return u.String()
}

// fill opens the app, and fills in the sign-in form that comes.
func (p *person) fill(t *testing.T, name, password string) page {
	t.Helper()
	form := p.do(t, http.MethodGet, p.s.app+"/headers", nil)
	return p.do(t, http.MethodPost, form.action(t), url.Values{"login": {name}, "password": {password}})
}

// signIn signs in with a new browser and returns it.
func (s *stack) signIn(t *testing.T, name, password string) *person {
	t.Helper()
	p := s.newPerson(t, "en")
	if pg := p.fill(t, name, password); pg.status != http.StatusOK || pg.url.String() != s.app+"/headers" {
		t.Fatalf("%s: got status %d at %s, want the app: %s", name, pg.status, pg.url, pg.body)
	}
	return p
}

// seen returns the headers that reach the app, nil if the browser does not reach it.
func (p *person) seen(t *testing.T) (headers map[string]string) {
	t.Helper()
	pg := p.do(t, http.MethodGet, p.s.app+"/headers", nil)
	if pg.url.String() != p.s.app+"/headers" || pg.status != http.StatusOK {
		return nil
	}
	if err := json.Unmarshal([]byte(pg.body), &headers); err != nil {
		t.Fatalf("the app's headers: %v: %s", err, pg.body)
	}
	return headers
}

// audited waits for a sign-in of the audit log after the first skip bytes of the log, with this result.
func (s *stack) audited(t *testing.T, skip int, result string) {
	t.Helper()
	var last string
	if !waitFor(t, func() bool {
		lines := bufio.NewScanner(strings.NewReader(s.gatehouse.Log()[skip:]))
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var e struct{ Msg, Log, Result, Connector string }
			if json.NewDecoder(bytes.NewReader(lines.Bytes())).Decode(&e) == nil && e.Log == "audit" && e.Msg == "sign-in" {
				last = lines.Text()
				if e.Result == result && e.Connector == s.connector {
					return true
				}
			}
		}
		return false
	}) {
		t.Errorf("no sign-in with the result %s at %s in the audit log; the last is %s", result, s.connector, last)
	}
}

// waitFor waits until ok says yes, for a minute.
func waitFor(t *testing.T, ok func() bool) bool {
	t.Helper()
	tick, deadline := time.NewTicker(20*time.Millisecond), time.After(time.Minute)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			return ok()
		}
	}
	return true
}

// metric returns the sum of the samples whose name and labels begin with name.
func (s *stack) metric(t *testing.T, name string) (sum float64) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.gatehouse.Telemetry+"/metrics", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		var v float64
		if rest, ok := strings.CutPrefix(lines.Text(), name); ok {
			if _, err := fmt.Sscan(rest[strings.LastIndexByte(rest, ' ')+1:], &v); err != nil {
				t.Fatal(err)
			}
			sum += v
		}
	}
	return sum
}

// strange is what a page says without what differs from one to the next: the sealed request, the id and the name typed.
func (pg page) strange() string {
	return regexp.MustCompile(`req=[^"]*"|<dd class="mono">[^<]*|name="login"[^>]*value="[^"]*"`).ReplaceAllString(pg.body, "")
}
