package reach

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/test/peers"
)

func TestScopeOf(t *testing.T) {
	for name, want := range map[string]Scope{
		"auth.example.com": Anywhere, "svc.example.com": Anywhere, "dex.svc.example": Anywhere, "cluster.local.example.com": Anywhere, "localhost.example.com": Anywhere,
		"10.1.2.3": Anywhere, "[2001:db8::1]": Anywhere, "mycluster.local": Anywhere,
		"localhost": Machine, "app.localhost": Machine, "127.0.0.1": Machine, "127.8.0.1": Machine, "[::1]": Machine, "[::ffff:127.0.0.1]": Machine,
		"dex": Bare, "svc": Bare,
		"dex.auth.svc": Cluster, "dex.auth.svc.cluster.local": Cluster, "dex.auth.svc.corp.example.com": Cluster, "dex.cluster.local": Cluster,
	} {
		if got := ScopeOf(name); got != want {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}

// answer is a handler that sends one answer.
func answer(status int, contentType, body string, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// serve starts a server and returns the issuer that it would be.
func serve(t *testing.T, h http.HandlerFunc) *url.URL {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	u, err := url.Parse(s.URL + "/dex")
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// patient is a client for a machine that does much besides.
func patient() *http.Client {
	c := NewClient()
	c.Timeout = time.Minute
	return c
}

func TestTry(t *testing.T) {
	var lured atomic.Int64
	trap := serve(t, func(http.ResponseWriter, *http.Request) { lured.Add(1) })
	const text, data = "text/html", "application/json"
	for _, tc := range []struct {
		name     string
		h        http.HandlerFunc
		want     Verdict
		got, fix string // parts of the finding
	}{
		{"its own document", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/dex/.well-known/openid-configuration" || r.Header.Get("Cookie") != "" {
				http.NotFound(w, r)
				return
			}
			_, _ = fmt.Fprintf(w, `{"issuer":"http://%s/dex","jwks_uri":"x"}`, r.Host)
		}, Here, "200 OK", ""},
		{"the document of another", answer(200, data, `{"issuer":"http://dex.auth.svc.cluster.local:5556/dex"}`), Elsewhere, "the discovery document of http://dex.auth.svc", "another provider"},
		{"the issuer with a slash is another", func(w http.ResponseWriter, r *http.Request) {
			_, _ = fmt.Fprintf(w, `{"issuer":"http://%s/dex/"}`, r.Host)
		}, Elsewhere, "/dex/", "another provider"},
		{"an app's page", answer(200, text, "<!doctype html>"), Elsewhere, `200 OK with "text/html" and no discovery document`, "let the gateway send /dex of 127.0.0.1:"},
		{"JSON of something else", answer(200, data, `{"status":"ok"}`), Elsewhere, "no discovery document", "let the gateway send"},
		{"JSON that is no object", answer(200, data, `["issuer"]`), Elsewhere, "no discovery document", "let the gateway send"},
		{"not found", answer(404, text, ""), Elsewhere, "404 Not Found", "let the gateway send"},
		{"another login before it", answer(403, text, ""), Elsewhere, "403 Forbidden", "no other login before it"},
		{"misdirected", answer(421, text, ""), Elsewhere, "421", "let the gateway send"},
		{"a redirect elsewhere", answer(302, text, "", "Location", trap.String()), Elsewhere, `302 Found to "` + trap.String(), "do not follow redirects"},
		{"a redirect to https", answer(301, text, "", "Location", "https://127.0.0.1/dex/.well-known/openid-configuration"), Elsewhere, "301", "set issuer: https://127.0.0.1/dex"},
		{"a redirect to https of another", answer(301, text, "", "Location", "https://evil.example/"), Elsewhere, "301", "do not follow redirects"},
		{"a redirect to nowhere", answer(302, text, ""), Elsewhere, "302", "do not follow redirects"},
		{"a gateway without a backend", answer(503, text, "no healthy upstream"), Unknown, "503 Service Unavailable", ""},
		{"a gateway that is busy", answer(429, text, ""), Unknown, "429", ""},
		{"a long answer", answer(200, data, `{"issuer":"`+strings.Repeat("x", 1<<20)+`"}`), Elsewhere, "no discovery document", ""},
		{"a long issuer", answer(200, data, `{"issuer":"`+strings.Repeat("x", 10_000)+`"}`), Elsewhere, "xxx…", ""},
		{"a large header", answer(200, data, `{}`, "X-Large", strings.Repeat("x", 1<<20)), Unknown, "server response headers exceeded", ""},
		{"a broken connection", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, Unknown, "EOF", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := Try(t.Context(), patient(), serve(t, tc.h))
			if f.Verdict != tc.want || !strings.Contains(f.Got, tc.got) || !strings.Contains(f.Fix, tc.fix) {
				t.Errorf("got %+v, want verdict %v, got %q, fix %q", f, tc.want, tc.got, tc.fix)
			}
			if (f.Fix != "") != (tc.want == Elsewhere) || f.Got == "" || len(f.Got) > maxGot+len("…") {
				t.Errorf("got %+v: a fix only for what leads elsewhere, and no long text", f)
			}
		})
	}
	if lured.Load() != 0 {
		t.Error("a redirect was followed")
	}
}

// TestTryEndlessAnswer reads no more than a document may have.
func TestTryEndlessAnswer(t *testing.T) {
	var sent atomic.Int64
	issuer := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		for line := []byte(strings.Repeat(" ", 32<<10)); ; {
			n, err := w.Write(line)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	if f := Try(t.Context(), patient(), issuer); f.Verdict != Elsewhere {
		t.Errorf("got %+v, want Elsewhere", f)
	}
	if n := sent.Load(); n > 64<<20 { // what the kernel's buffers take, amply
		t.Errorf("%d bytes were taken", n)
	}
}

func TestTryUnreachable(t *testing.T) {
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // of the client that goes away
	secure.StartTLS()
	defer secure.Close()
	for name, target := range map[string]string{"refused": "http://" + peers.FreeAddr(t), "a certificate of nobody known": secure.URL, "no such name": "http://nobody.invalid"} {
		issuer, err := url.Parse(target + "/dex")
		if err != nil {
			t.Fatal(err)
		}
		if f := Try(t.Context(), NewClient(), issuer); f.Verdict != Unknown || f.Got == "" || f.Fix != "" {
			t.Errorf("%s: got %+v, want Unknown and the reason", name, f)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	hangs := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})
	if f := Try(ctx, NewClient(), hangs); f.Verdict != Unknown {
		t.Errorf("cancelled: got %+v, want Unknown", f)
	}
	if c := NewClient(); c.Timeout != tryTimeout {
		t.Errorf("the client waits %v, want %v", c.Timeout, tryTimeout)
	}
}
