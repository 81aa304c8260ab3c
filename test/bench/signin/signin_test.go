package signin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"gatehouse/internal/inproc"
)

// Of the load: each user has a connector of its own, since Dex's password connector without a hash has one user. They are few, since our page
// has a link to each.
const (
	users    = 8  // at a time
	round    = 16 // sign-ins of one contender before it is the next one's turn
	issuer   = "https://auth.example.test/dex"
	callback = "https://client.example.test/callback"
	secret   = "a-secret-of-the-bench-5591"
	password = "a-password-of-the-bench-5591"
)

// A contender is an OpenID Provider in this process.
type contender struct {
	name    string
	handler http.Handler
	took    time.Duration
	done    int
	failed  atomic.Int64
	rounds  []time.Duration
}

// BenchmarkWholeSignIn signs users in on the provider's own pages, with a client that exchanges the code and gets an ID token: plain Dex with
// its own storage, the same with sessions as ours has them, and Gatehouse, in turns, with the same number of browsers at a time. It reports
// sign-ins per second as ratios to Dex with sessions; the first of them is what Dex does that forgets who has signed in.
func BenchmarkWholeSignIn(b *testing.B) {
	for _, at := range backends() {
		b.Run(at.name, func(b *testing.B) {
			ours, theirs := at.open(b)
			all := []*contender{
				{name: "gatehouse", handler: gatehouse(b, ours)},
				{name: "dex", handler: plainDex(b, theirs, true)},
				{name: "dex-without-sessions", handler: plainDex(b, theirs, false)},
			}
			for _, c := range all { // warm: every user has signed in before
				c.signInAll(b, users)
				if n := c.failed.Swap(0); n > 0 {
					b.Fatalf("%s: %d of %d sign-ins failed", c.name, n, users)
				}
			}
			n := 0
			for b.Loop() {
				for i := range all { // in an order that rotates
					all[(i+n)%len(all)].turn(b)
				}
				n++
			}
			report(b, all)
		})
	}
}

func report(b *testing.B, all []*contender) {
	b.Helper()
	dex := all[1]
	for _, c := range all {
		b.Logf("%s: %.0f sign-ins/s, %d of %d failed", c.name, float64(c.done)/c.took.Seconds(), c.failed.Load(), c.done)
	}
	ratios := func(c *contender) []float64 {
		var r []float64
		for i, d := range c.rounds {
			r = append(r, dex.rounds[i].Seconds()/d.Seconds())
		}
		slices.Sort(r)
		return r
	}
	ours := ratios(all[0])
	b.ReportMetric(dex.took.Seconds()/all[0].took.Seconds(), "x-dex")
	b.ReportMetric(ours[len(ours)/4], "x-dex-q1")
	b.ReportMetric(ours[len(ours)/2], "x-dex-median")
	b.ReportMetric(ours[len(ours)*3/4], "x-dex-q3")
	b.ReportMetric(all[2].took.Seconds()/all[0].took.Seconds(), "x-dex-without-sessions")
	b.ReportMetric(float64(all[0].done)/all[0].took.Seconds(), "sign-ins/s")
	b.ReportMetric(float64(dex.failed.Load())/float64(dex.done), "dex-failed/sign-in")
	b.ReportMetric(0, "ns/op")
	if n := all[0].failed.Load(); n > 0 {
		b.Errorf("%d of %d sign-ins at Gatehouse failed", n, all[0].done)
	}
}

// turn is one round of a contender.
func (c *contender) turn(b *testing.B) {
	start := time.Now()
	// A profile tells them apart: go tool pprof -tagfocus contender=gatehouse.
	pprof.Do(b.Context(), pprof.Labels("contender", c.name), func(context.Context) { c.signInAll(b, round) })
	d := time.Since(start)
	c.took, c.done, c.rounds = c.took+d, c.done+round, append(c.rounds, d)
}

func (c *contender) signInAll(b *testing.B, n int) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for user := range users {
		wg.Go(func() {
			for next.Add(1) <= int64(n) {
				if err := c.signIn(b.Context(), user); err != nil && c.failed.Add(1) == 1 {
					b.Logf("%s: user %d: %v", c.name, user, err)
				}
			}
		})
	}
	wg.Wait()
}

var formRE = regexp.MustCompile(`<form[^>]* action="([^"]*)"`)

func connectorID(user int) string { return fmt.Sprintf("c%d", user) }

// signIn is that of a new browser with a user of the number: request, page, form, code, ID token.
func (c *contender) signIn(ctx context.Context, user int) error {
	jar, err := cookiejar.New(nil)
	if err != nil {
		return err
	}
	browser := &http.Client{Jar: jar, Transport: inproc.Transport{Handler: c.handler}, CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(r.URL.String(), callback) {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	client := oauth2.Config{
		ClientID: "app", ClientSecret: secret, RedirectURL: callback, Scopes: []string{"openid", "email"},
		Endpoint: oauth2.Endpoint{AuthURL: issuer + "/auth/" + connectorID(user), TokenURL: issuer + "/token", AuthStyle: oauth2.AuthStyleInHeader},
	}
	verifier := oauth2.GenerateVerifier()
	page, at, err := send(ctx, browser, client.AuthCodeURL("state", oauth2.S256ChallengeOption(verifier)), nil)
	if err != nil {
		return err
	}
	m := formRE.FindStringSubmatch(page)
	if m == nil {
		return fmt.Errorf("no form at %s: %s", at, page)
	}
	action, err := at.Parse(html.UnescapeString(m[1]))
	if err != nil {
		return err
	}
	_, at, err = send(ctx, browser, action.String(), url.Values{"login": {"user"}, "password": {password}})
	if err != nil {
		return err
	}
	token, err := client.Exchange(context.WithValue(ctx, oauth2.HTTPClient, browser), at.Query().Get("code"), oauth2.VerifierOption(verifier))
	if err != nil {
		return err
	}
	if raw, ok := token.Extra("id_token").(string); !ok || raw == "" {
		return errors.New("no ID token")
	}
	return nil
}

// send follows redirects as far as the client's, and returns the page and the place at their end.
func send(ctx context.Context, browser *http.Client, target string, form url.Values) (page string, at *url.URL, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, target, http.NoBody)
	if form != nil {
		r, err = http.NewRequestWithContext(ctx, http.MethodPost, target, strings.NewReader(form.Encode()))
	}
	if err != nil {
		return "", nil, err
	}
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Origin", "https://auth.example.test")
	}
	resp, err := browser.Do(r)
	if err != nil {
		return "", nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", nil, err
	}
	if to, err := resp.Location(); err == nil {
		return "", to, nil
	}
	if resp.StatusCode != http.StatusOK {
		return "", nil, fmt.Errorf("%s: got %d: %s", resp.Request.URL.Path, resp.StatusCode, body)
	}
	return string(body), resp.Request.URL, nil
}

// connectorConfig is that of every user's connector.
func connectorConfig() []byte {
	raw, _ := json.Marshal(map[string]string{"username": "user", "password": password}) // of texts
	return raw
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
