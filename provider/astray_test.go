package provider

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"gatehouse/internal/inproc"
	"gatehouse/internal/seal"
	"gatehouse/provider/store"
)

// A lost is a line of the log about a request that lost its way.
type lost struct {
	Level, Msg, Got, Want, Fix string
}

// astray returns what the log says so far about requests that lost their way.
func (w *world) astray() (all []lost) {
	w.t.Helper()
	for line := range strings.Lines(w.logs.String()) {
		var l lost
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			w.t.Fatal(err)
		}
		if l.Fix != "" {
			all = append(all, l)
		}
	}
	return all
}

// send asks the issuer for a page and returns the status. header holds pairs.
func (w *world) send(target string, header ...string) int {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, target, http.NoBody)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := inproc.Serve(w.provider.Handler(), r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// TestRequestsThatLoseTheirWay: what is wrong between a browser and the issuer is told with its fix, and counted.
func TestRequestsThatLoseTheirWay(t *testing.T) {
	const page, host421, cut = "/dex/auth/local/login?req=x", "a page was asked for under another host than the issuer's, and answered 421", "a request came without the issuer's path, and was answered 404"
	inCluster := []string{"https://sso.example.com/dex", "https://gatehouse.auth.svc.cluster.local/dex", "hosts: [sso.example.com, app", "hosts: [app"}
	plain := []string{"https://sso.example.com/dex", "http://sso.example.com/dex"}
	for _, tc := range []struct {
		name, target string
		edits        []string // of the configuration
		header       []string
		status       int
		reason       string // of the metric; empty: not counted
		want         lost   // the fix is a part of the line's
	}{
		{"an app's host", "https://app.example.com" + page, nil, nil, 421, "app-host", lost{"WARN", host421, "app.example.com", "sso.example.com", "let /dex lead here on sso.example.com only"}},
		{"an app's host, and an issuer in the cluster", "https://app.example.com:8443" + page, inCluster, nil, 421, "app-host", lost{"WARN", host421, "app.example.com:8443", "gatehouse.auth.svc.cluster.local", "browsers cannot reach gatehouse.auth.svc.cluster.local: set issuer to the URL"}},
		{"a Service's name", "http://gatehouse.auth.svc:5556" + page, nil, nil, 421, "near-host", lost{"WARN", host421, "gatehouse.auth.svc:5556", "sso.example.com", "no name for browsers: let whoever sends them here use https://sso.example.com/dex"}},
		{"another name", "https://login.example.com" + page, nil, nil, 421, "other-host", lost{"WARN", host421, "login.example.com", "sso.example.com", "let only sso.example.com lead here"}},
		{"no name at all", "https://a,b" + page, nil, nil, 421, "other-host", lost{"WARN", host421, "a,b", "sso.example.com", "let only sso.example.com lead here"}},
		{"a long name", "https://" + strings.Repeat("x", 2000) + page, nil, nil, 421, "other-host", lost{"WARN", host421, strings.Repeat("x", 256) + "…", "sso.example.com", "let only"}},
		{"a path that was cut", "https://sso.example.com/auth/local/login?req=x", nil, nil, 404, "path", lost{"WARN", cut, "/auth/local/login", "/dex/auth/local/login", "no rewrite"}},
		{"discovery by a path that was cut", "https://sso.example.com/.well-known/openid-configuration", nil, nil, 404, "path", lost{"WARN", cut, "/.well-known/openid-configuration", "/dex/.well-known/openid-configuration", "no rewrite"}},
		{"https before http", "http://sso.example.com" + page, plain, []string{"X-Forwarded-Proto", "https"}, 400, "", lost{"WARN", "browsers come over https, and the issuer is http: its cookies and links are made for http", "", "https://sso.example.com/dex", "set issuer to that URL"}},

		{"the issuer's page", "https://sso.example.com" + page, nil, []string{"X-Forwarded-Proto", "http"}, 400, "", lost{}},
		{"http as it should be", "http://sso.example.com" + page, plain, []string{"X-Forwarded-Proto", "http"}, 400, "", lost{}},
		{"what programs call, under any name", "http://gatehouse.auth.svc:5556/dex/.well-known/openid-configuration", nil, nil, 200, "", lost{}},
		{"a path of nobody", "https://sso.example.com/robots.txt", nil, nil, 404, "", lost{}},
		{"a path of nobody below the issuer", "https://sso.example.com/dex/dex/auth", nil, nil, 404, "", lost{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			clk := &clock{}
			w := newWorld(t, edited(t, testConfig, tc.edits...), store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk)
			for range 3 {
				if got := w.send(tc.target, tc.header...); got != tc.status {
					t.Fatalf("status %d, want %d", got, tc.status)
				}
			}
			clk.add(time.Minute + time.Second)
			w.send(tc.target, tc.header...)
			counted := counters(t, w.metrics)
			for _, reason := range []string{"app-host", "near-host", "other-host", "path"} {
				want := 0.0
				if reason == tc.reason {
					want = 4
				}
				if got := counted["gatehouse_issuer_misdirected_total reason\x00"+reason+"\x00"]; got != want {
					t.Errorf("counted %v for %s, want %v", got, reason, want)
				}
			}
			said := w.astray()
			if tc.want.Msg == "" {
				if len(said) != 0 {
					t.Errorf("the log says %+v", said)
				}
				return
			}
			if len(said) != 2 { // in each of two minutes once
				t.Fatalf("the log says %+v, want the same twice", said)
			}
			got := said[1]
			if !strings.Contains(got.Fix, tc.want.Fix) {
				t.Errorf("fix %q, want %q in it", got.Fix, tc.want.Fix)
			}
			got.Fix = tc.want.Fix
			if got != tc.want {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

// TestMisdirectedAreCountedAcrossReloads: a later configuration goes on with the counter that is registered.
func TestMisdirectedAreCountedAcrossReloads(t *testing.T) {
	w, _ := memoryWorld(t)
	const target = "https://login.example.com/dex/auth/local/login?req=x"
	w.send(target)
	w.reload(edited(t, testConfig, "default: signed-in", "default: deny"))
	w.send(target)
	w.browser().get("https://app.example.com/").signIn("admin@example.com", "password")
	counted := counters(t, w.metrics)
	if got := counted["gatehouse_issuer_misdirected_total reason\x00other-host\x00"]; got != 2 {
		t.Errorf("counted %v, want 2", got)
	}
	if got := counted["gatehouse_sign_ins_total connector\x00local\x00result\x00ok\x00"]; got != 1 {
		t.Errorf("counted %v sign-ins, want 1", got)
	}
}
