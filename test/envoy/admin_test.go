package envoy

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"gatehouse/internal/admin"
	"gatehouse/test/peers"
)

// adminRows talk to the operator's listener.
func adminRows() []row {
	const family = "admin"
	on := []string{"hardened"}
	return []row{
		{family: family, name: "listener refuses what is not an operator", on: on, play: adminRefuses},
		{family: family, name: "list and revoke", on: on, play: listAndRevoke},
		{family: family, name: "sessions have one id everywhere", on: on, play: oneSessionID},
		{family: family, name: "is not behind the gateway", as: user, target: "/v1/sessions", lines: []string{"X-Gatehouse-Admin: 1"}, both: passes(http.StatusNotFound)},
		{family: family, name: "telemetry has nothing else", on: on, play: telemetryOnly},
	}
}

func adminRefuses(t testing.TB, w *world, _ *edge) {
	base := "http://" + w.admin
	for _, c := range []struct {
		name, method, path string
		lines              []string
		want               int
	}{
		{"no header", "GET", "/v1/sessions", nil, 403},
		{"empty header", "GET", "/v1/sessions", []string{admin.Header + ": "}, 403},
		{"foreign host", "GET", "/v1/sessions", []string{admin.Header + ": 1", "Host: evil.example"}, 403},
		{"host that resolves to us", "GET", "/v1/sessions", []string{admin.Header + ": 1", "Host: localhost.evil.example:5559"}, 403},
		{"revoke without header", "DELETE", "/v1/sessions/x", nil, 403},
		{"profiles are off", "GET", "/debug/pprof/", []string{admin.Header + ": 1"}, 404},
		{"metrics are elsewhere", "GET", "/metrics", []string{admin.Header + ": 1"}, 404},
		{"revoke of nobody", "DELETE", "/v1/sessions/x", []string{admin.Header + ": 1"}, 404},
		{"list", "GET", "/v1/sessions", []string{admin.Header + ": 1"}, 200},
		{"list, by name", "GET", "/v1/sessions", []string{admin.Header + ": 1", "Host: localhost:1"}, 200},
	} {
		if p := must(t)(fetch(t.Context(), w.ports, c.method, base+c.path, "", c.lines...)); p.status != c.want {
			t.Errorf("%s: got %s, want %d", c.name, p, c.want)
		}
	}
}

// sessionOf finds the session of a browser by its user agent.
func (w *world) sessionOf(t testing.TB, agent string) admin.Session {
	t.Helper()
	var all []admin.Session
	if err := json.Unmarshal([]byte(gatehouse(t, "sessions", "list", "-o", "json", "--admin", w.admin)), &all); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(s admin.Session) bool { return s.UserAgent == agent })
	if i < 0 {
		t.Fatalf("no session of %q among %d", agent, len(all))
	}
	return all[i]
}

// signInAs signs a user in with a user agent of its own. The lines are further headers.
func (w *world) signInAs(t testing.TB, e *edge, mail, agent string, lines ...string) *browser {
	t.Helper()
	b := w.browser(e)
	p := must(t)(b.visit(t.Context(), "http://"+appHost+"/headers"))
	action, err := p.action()
	if err != nil {
		t.Fatal(err)
	}
	p = must(t)(b.step(t.Context(), http.MethodPost, action, w.credentials(mail), append(lines, "Origin: http://"+issuerHost, "User-Agent: "+agent)...))
	if p = must(t)(b.follow(t.Context(), p)); p.status != http.StatusOK {
		t.Fatal(p)
	}
	return b
}

func listAndRevoke(t testing.TB, w *world, e *edge) {
	const agent = "browser to revoke"
	b := w.signInAs(t, e, user, agent, "X-Real-IP: 192.0.2.7", "X-Forwarded-For: 192.0.2.7", "Forwarded: for=192.0.2.7", "X-Envoy-External-Address: 192.0.2.7")
	s := w.sessionOf(t, agent)
	if s.User != user || s.Connector != "local" || s.UserID != "id-user" || s.Address != e.clientAddress() || strings.Join(s.Groups, ",") != groupsOf(user) {
		t.Errorf("listed as %+v", s)
	}
	if list := gatehouse(t, "sessions", "list", "--admin", w.admin); !strings.Contains(list, s.ID) || !strings.Contains(list, user) {
		t.Errorf("the list for people lacks %s:\n%s", s.ID, list)
	}
	old := b.clone()
	gatehouse(t, "sessions", "revoke", s.ID, "--admin", w.admin)
	w.isOver(t, old)
}

// oneSessionID follows a session through whoami, the operator's list and the audit log: "sessions revoke" takes the id that
// the log shows.
func oneSessionID(t testing.TB, w *world, e *edge) {
	const agent = "browser with one id"
	b := w.signInAs(t, e, user, agent)
	listed := w.sessionOf(t, agent).ID
	p := must(t)(b.step(t.Context(), http.MethodGet, "http://"+appHost+"/_gatehouse/whoami", nil))
	var who struct {
		Session struct {
			IDHash string `json:"id_hash"`
		}
	}
	jsonBody(t, p, &who)
	if who.Session.IDHash != listed {
		t.Errorf("whoami calls the session %s, the operator's list %s", who.Session.IDHash, listed)
	}
	peers.Eventually(t, within, "the sign-in and a decision under the id "+listed+" in the audit log", func() bool {
		logged := map[string]bool{}
		for _, ev := range w.audit() {
			if ev["session"] == listed {
				logged[fmt.Sprint(ev["msg"])] = true
			}
		}
		return logged["sign-in"] && logged["decision"]
	})
}

func telemetryOnly(t testing.TB, w *world, _ *edge) {
	for path, want := range inOrder(map[string]int{
		"/metrics": 200, "/healthz/live": 200, "/healthz/ready": 200, "/": 404, "/v1/sessions": 404, "/debug/pprof/": 404, "/dex/keys": 404, "/healthz/live/x": 404,
	}) {
		if p := must(t)(fetch(t.Context(), w.ports, http.MethodGet, "http://"+w.gatehouse.Telemetry+path, "", admin.Header+": 1")); p.status != want {
			t.Errorf("%s: got %s, want %d", path, p, want)
		}
	}
}

// floodRows send much, anonymously: nothing of it is kept.
func floodRows() []row {
	return []row{{family: "flood", name: "2,000 anonymous requests store nothing", on: []string{"hardened"}, play: floodStoresNothing}}
}

func floodStoresNothing(t testing.TB, w *world, e *edge) {
	before := w.rows(t)
	if before["auth_session"] == 0 {
		t.Fatalf("no sessions to be seen in the database: %v", before)
	}
	page := must(t)(w.browser(e).step(t.Context(), http.MethodGet, "http://"+appHost+"/headers", nil)).location()
	targets := []string{
		"http://" + appHost + "/headers", "http://" + otherHost + "/admin/x", "http://" + appHost + "/public/headers", "http://" + appHost + "/oauth2/start?rd=/x",
		"http://" + appHost + "/_gatehouse/session?t=x", page, issuer + "/auth?client_id=outside&response_type=code&scope=openid&redirect_uri=http://client.example.test/cb",
		issuer + "/logout", issuer + "/.well-known/openid-configuration", issuer + "/auth/local/login",
	}
	if err := flood(t.Context(), e, targets, 2000); err != nil {
		t.Fatal(err)
	}
	if after := w.rows(t); !maps.Equal(before, after) {
		t.Errorf("records before %v, after %v", before, after)
	}
	w.app.take()
}

// flood sends n requests, eight at a time.
func flood(ctx context.Context, e *edge, targets []string, n int) error {
	var wg sync.WaitGroup
	failed := make(chan error, 8)
	for worker := range cap(failed) {
		wg.Go(func() {
			for i := worker; i < n; i += cap(failed) {
				p, err := fetch(ctx, e.http, http.MethodGet, targets[i%len(targets)], "", "Accept: text/html", fmt.Sprintf("Cookie: gatehouse-dev=%d", i))
				if err == nil && p.status >= 500 {
					err = fmt.Errorf("%s", p)
				}
				if err != nil {
					failed <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(failed)
	return <-failed
}
