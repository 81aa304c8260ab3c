package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/internal/reach"
)

// TestTryIssuer: one line of the log says where the issuer's URL leads, and a gateway is given time to learn of the process.
func TestTryIssuer(t *testing.T) {
	own := func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, `{"issuer":"http://%s/dex"}`, r.Host)
	}
	other := func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`{"issuer":"http://dex.auth.svc:5556/dex"}`))
	}
	notYet := func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "no healthy upstream", http.StatusServiceUnavailable)
	}
	for _, tc := range []struct {
		name    string
		answers []http.HandlerFunc // the last one for good
		asked   int64
		want    []string // level and parts of the line
	}{
		{"right at once", []http.HandlerFunc{own}, 1, []string{`"INFO"`, "leads here"}},
		{"right once the gateway knows", []http.HandlerFunc{notYet, own}, 2, []string{`"INFO"`, "leads here"}},
		{"the one before until then", []http.HandlerFunc{other, own}, 2, []string{`"INFO"`, "leads here"}},
		{"another's", []http.HandlerFunc{other}, 2, []string{`"WARN"`, "leads elsewhere", `"got":"the discovery document of http://dex.auth.svc:5556/dex"`, `"want":"the discovery document of this issuer"`, `"fix":"another provider answers there`}},
		{"no answer that tells", []http.HandlerFunc{notYet}, 2, []string{`"INFO"`, "could not be tried", "503 Service Unavailable", "browsers must reach it"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var asked atomic.Int64
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				tc.answers[min(int(asked.Add(1)), len(tc.answers))-1](w, r)
			}))
			defer s.Close()
			var logged bytes.Buffer
			client := reach.NewClient()
			client.Timeout = time.Minute // a machine that stops for a moment is not a server that does not answer
			tryIssuer(t.Context(), slog.New(slog.NewJSONHandler(&logged, nil)), client, issuerOf(t, s), time.Millisecond)
			if got := asked.Load(); got != tc.asked {
				t.Errorf("asked %d times, want %d", got, tc.asked)
			}
			checkLine(t, logged.String(), tc.want)
		})
	}
}

func issuerOf(t *testing.T, s *httptest.Server) *url.URL {
	t.Helper()
	u, err := url.Parse(s.URL + "/dex")
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func checkLine(t *testing.T, logged string, want []string) {
	t.Helper()
	if strings.Count(logged, "\n") != 1 || !json.Valid([]byte(logged)) {
		t.Fatalf("the log has %q, want one line", logged)
	}
	for _, part := range want {
		if !strings.Contains(logged, part) {
			t.Errorf("%s: want %q in it", logged, part)
		}
	}
}

// TestTryIssuerEndsWithTheProcess: neither a server that never answers nor the second try holds up the end, and nothing is
// said of a try that the end has cut off.
func TestTryIssuerEndsWithTheProcess(t *testing.T) {
	notYet := func(w http.ResponseWriter) { w.WriteHeader(http.StatusServiceUnavailable) }
	hang := func(end func(), r *http.Request) {
		end()
		<-r.Context().Done()
	}
	for name, tc := range map[string]struct {
		delay time.Duration
		h     func(end func(), try int64, w http.ResponseWriter, r *http.Request)
	}{
		"while it waits for an answer": {24 * time.Hour, func(end func(), _ int64, _ http.ResponseWriter, r *http.Request) { hang(end, r) }},
		"before the second try": {24 * time.Hour, func(end func(), _ int64, w http.ResponseWriter, _ *http.Request) {
			notYet(w)
			time.AfterFunc(50*time.Millisecond, end)
		}},
		"within the second try": {0, func(end func(), try int64, w http.ResponseWriter, r *http.Request) {
			if try == 1 {
				notYet(w)
				return
			}
			hang(end, r)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			var tries atomic.Int64
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { tc.h(cancel, tries.Add(1), w, r) }))
			defer s.Close()
			var logged bytes.Buffer
			tryIssuer(ctx, slog.New(slog.NewJSONHandler(&logged, nil)), reach.NewClient(), issuerOf(t, s), tc.delay)
			if logged.Len() != 0 || ctx.Err() == nil {
				t.Errorf("the log says %q, and the end came: %v", logged.String(), ctx.Err())
			}
		})
	}
}
