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
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"gatehouse/internal/inproc"
)

// Of the load: each user has a connector of its own, since Dex's password connector without a hash has one user, and a client that allows no other
// connector: else our page would have a link to each.
const (
	users    = 8  // at a time
	round    = 16 // sign-ins of one contender before it is the next one's turn
	issuer   = "https://auth.example.test/dex"
	app      = "https://auth.example.test/app"
	hello    = "hello"
	callback = "https://client.example.test/callback"
	secret   = "a-secret-of-the-bench-5591"
	password = "a-password-of-the-bench-5591"
)

// A contender is an OpenID Provider in this process.
type contender struct {
	name    string
	handler http.Handler
	app     bool // it signs in to an app behind the gateway; else to an OpenID client
	took    time.Duration
	cpu     time.Duration // of this process, with the load and its share of collecting garbage; a database is another process
	done    int
	failed  atomic.Int64
	rounds  []time.Duration
}

// cpuTime is what this process has used so far.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkWholeSignIn signs users in on the provider's own pages, with a client that exchanges the code and gets an ID token: plain Dex with
// its own storage, the same with sessions as ours has them, and Gatehouse, in turns, with the same number of browsers at a time. It reports
// sign-ins per second as ratios to Dex with sessions; the first of them is what Dex does that forgets who has signed in. Gatehouse also has a turn with an
// app behind its gateway, which needs no client: from the first request to the app until it is let in. With Dex, what stands in front of an app is a client.
func BenchmarkWholeSignIn(b *testing.B) {
	for _, at := range backends() {
		b.Run(at.name, func(b *testing.B) {
			ours, theirs := at.open(b)
			provider := gatehouse(b, ours)
			all := []*contender{
				{name: "gatehouse", handler: provider},
				{name: "dex", handler: plainDex(b, theirs, true)},
				{name: "dex-without-sessions", handler: plainDex(b, theirs, false)},
				{name: "gatehouse-app", handler: provider, app: true},
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
		b.Logf("%s: %.0f sign-ins/s, %.2f ms of CPU each, %d of %d failed", c.name, float64(c.done)/c.took.Seconds(), c.cpu.Seconds()*1000/float64(c.done), c.failed.Load(), c.done)
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
	b.ReportMetric(dex.cpu.Seconds()/all[0].cpu.Seconds(), "x-dex-cpu")
	b.ReportMetric(dex.cpu.Seconds()/all[3].cpu.Seconds(), "app-x-dex-cpu")
	atApp := ratios(all[3])
	b.ReportMetric(dex.took.Seconds()/all[3].took.Seconds(), "app-x-dex")
	b.ReportMetric(atApp[len(atApp)/4], "app-x-dex-q1")
	b.ReportMetric(atApp[len(atApp)/2], "app-x-dex-median")
	b.ReportMetric(atApp[len(atApp)*3/4], "app-x-dex-q3")
	b.ReportMetric(float64(all[0].done)/all[0].took.Seconds(), "sign-ins/s")
	b.ReportMetric(float64(dex.failed.Load())/float64(dex.done), "dex-failed/sign-in")
	b.ReportMetric(0, "ns/op")
	for _, c := range []*contender{all[0], all[3]} {
		if n := c.failed.Load(); n > 0 {
			b.Errorf("%d of %d sign-ins of %s failed", n, c.done, c.name)
		}
	}
}

// turn is one round of a contender.
func (c *contender) turn(b *testing.B) {
	start, cpu := time.Now(), cpuTime(b)
	// A profile tells them apart: go tool pprof -tagfocus contender=gatehouse.
	pprof.Do(b.Context(), pprof.Labels("contender", c.name), func(context.Context) { c.signInAll(b, round) })
	d := time.Since(start)
	c.cpu += cpuTime(b) - cpu
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

// actionOf returns where the first form of a page posts to. It is no parser, and no regular expression: what it takes counts as the provider's.
func actionOf(page string) (string, bool) {
	_, form, ok := strings.Cut(page, "<form ")
	form, _, closed := strings.Cut(form, ">")
	_, action, has := strings.Cut(form, ` action="`)
	action, _, quoted := strings.Cut(action, `"`)
	return html.UnescapeString(action), ok && closed && has && quoted
}

func clientID(user int) string { return fmt.Sprintf("app%d", user) }

func connectorID(user int) string { return fmt.Sprintf("c%d", user) }

// signIn is that of a new browser with a user of the number: request, page, form, and what follows.
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
	if c.app {
		return signInAtApp(ctx, browser, user)
	}
	return signInAtClient(ctx, browser, user)
}

// signInAtApp begins at the app and ends when it is let in.
func signInAtApp(ctx context.Context, browser *http.Client, user int) error {
	page, _, err := signInOn(ctx, browser, fmt.Sprintf("%s?user=%d", app, user))
	if err == nil && page != hello {
		err = fmt.Errorf("the app is not reached: %s", page)
	}
	return err
}

// signInAtClient begins with a client's authorization request and ends when it has an ID Token.
func signInAtClient(ctx context.Context, browser *http.Client, user int) error {
	client := oauth2.Config{
		ClientID: clientID(user), ClientSecret: secret, RedirectURL: callback, Scopes: []string{"openid", "email"},
		Endpoint: oauth2.Endpoint{AuthURL: issuer + "/auth/" + connectorID(user), TokenURL: issuer + "/token", AuthStyle: oauth2.AuthStyleInHeader},
	}
	verifier := oauth2.GenerateVerifier()
	_, at, err := signInOn(ctx, browser, client.AuthCodeURL("state", oauth2.S256ChallengeOption(verifier)))
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

// signInOn gets the page that begins, and sends the form that it leads to.
func signInOn(ctx context.Context, browser *http.Client, begin string) (page string, at *url.URL, err error) {
	page, at, err = send(ctx, browser, begin, nil)
	if err != nil {
		return "", nil, err
	}
	target, ok := actionOf(page)
	if !ok {
		return "", nil, fmt.Errorf("no form at %s: %s", at, page)
	}
	action, err := at.Parse(target)
	if err != nil {
		return "", nil, err
	}
	return send(ctx, browser, action.String(), url.Values{"login": {"user"}, "password": {password}})
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
	body := make([]byte, resp.ContentLength) // in memory already
	if _, err := io.ReadFull(resp.Body, body); err != nil {
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
