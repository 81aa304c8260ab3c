package provider

import (
	"context"
	"errors"
	"fmt"
	"html"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/connectors"
	"gatehouse/internal/audit"
	"gatehouse/internal/handoff"
	"gatehouse/internal/seal"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/connector"
	"github.com/dexidp/dex/connector/mock"
	"github.com/dexidp/dex/storage"
)

const account = issuer + "/account"

var (
	tokenRE = regexp.MustCompile(`name="token" type="hidden" value="([^"]+)"`)
	endRE   = regexp.MustCompile(`name="end" value="([0-9a-f]{12})"`)
	own     = http.Header{"Origin": {"https://sso.example.com"}}
)

// member returns a browser of a user who has signed in at the account page.
func (w *world) member(user string, header ...string) *browser {
	w.t.Helper()
	b := w.browser()
	if len(header) > 0 {
		inner := b.c.Transport
		b.c.Transport = roundTripper(func(r *http.Request) (*http.Response, error) {
			r.Header.Set("User-Agent", header[0])
			return inner.RoundTrip(r)
		})
	}
	b.get(account)
	b.signIn(user, "password")
	if b.last.String() != account || b.code != http.StatusOK {
		w.t.Fatalf("the sign-in for the account page led to %d at %s: %s", b.code, b.last, b.page)
	}
	return b
}

// token is that of the page's form.
func (b *browser) token() string {
	b.w.t.Helper()
	m := tokenRE.FindStringSubmatch(b.page)
	if m == nil {
		b.w.t.Fatalf("no form of the account page on %d %s", b.code, b.page)
	}
	return m[1]
}

// refs are the sessions on the page, in its order.
func (b *browser) refs() (all []string) {
	for _, m := range endRE.FindAllStringSubmatch(b.page, -1) {
		all = append(all, m[1])
	}
	return all
}

// end presses a button of the account page.
func (b *browser) end(what string) *browser {
	b.w.t.Helper()
	return b.do(http.MethodPost, account, url.Values{"token": {b.get(account).token()}, "end": {what}}, own)
}

// in reports whether the browser is still signed in: at the app, and by single sign-on.
func (b *browser) in() bool {
	b.w.t.Helper()
	return strings.HasPrefix(b.get("https://app.example.com/").page, "hello ")
}

func (w *world) sessionIDs(email string) (ids []string) {
	w.t.Helper()
	all, err := w.provider.Sessions(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, s := range all {
		if s.Email == email {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

func TestAccountPageComesAfterTheSignIn(t *testing.T) {
	clk, counting := &clock{}, &countingDriver{}
	w := newWorld(t, testConfig, counting.wrap(t, clk), seal.NewKey(), clk)
	counting.reset()
	b := w.browser()
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPost, http.MethodPut, "TRACE"} {
		b.do(method, account, nil, nil)
	}
	b.get(account + "?n=x")
	if b.get(account); b.last.Path != "/dex/auth/local/login" || b.code != 200 {
		t.Fatalf("led to %d at %s", b.code, b.last)
	}
	if n := counting.count(); n != 0 {
		t.Errorf("%d writes for somebody who is not signed in", n)
	}
	if csp := b.head.Get("Content-Security-Policy"); !strings.Contains(csp, "form-action 'self';") {
		t.Errorf("the sign-in for the account page may lead elsewhere: %s", csp)
	}
	b.requests()
	b.signIn("admin@example.com", "password")
	if got, want := fmt.Sprint(b.requests()), "[POST sso.example.com/dex/auth/local/login GET sso.example.com/dex/account]"; got != want {
		t.Errorf("requests: %s, want %s", got, want)
	}
	for _, want := range []string{"admin@example.com", "<bdi>admins</bdi>", "<bdi>staff</bdi>", "This browser"} {
		if !strings.Contains(b.page, want) {
			t.Errorf("the page lacks %s: %s", want, b.page)
		}
	}
	if ids := w.sessionIDs("admin@example.com"); len(ids) != 1 || strings.Contains(b.page, ids[0]) {
		t.Errorf("%d sessions, want one, whose id is not on the page", len(ids))
	}
	counting.reset()
	for name, want := range map[string]string{
		"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", "Vary": "Accept-Language",
	} {
		if got := b.get(account).head.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	if csp := b.head.Get("Content-Security-Policy"); !strings.Contains(csp, "frame-ancestors 'none'") || !strings.Contains(csp, "default-src 'none'") {
		t.Errorf("policy %s", csp)
	}
	if b.do(http.MethodHead, account, nil, nil); b.code != 200 || b.page != "" {
		t.Errorf("HEAD: %d with %d bytes", b.code, len(b.page))
	}
	if n := counting.count(); n != 0 {
		t.Errorf("%d writes for looking at the page", n)
	}
	if !b.in() { // by single sign-on
		t.Errorf("the session of the account page does not sign on at an app: %d %s", b.code, b.page)
	}
	if !strings.Contains(w.audit.String(), `"client":"account"`) {
		t.Error("the sign-in event does not tell what it was for")
	}
}

// A script cannot sign in: it is told so, and not led to a page.
func TestAccountPageForAScript(t *testing.T) {
	w, _ := memoryWorld(t)
	if b := w.browser().do(http.MethodGet, account, nil, http.Header{"Sec-Fetch-Mode": {"cors"}}); b.code != 401 || b.last.String() != account {
		t.Errorf("got %d at %s", b.code, b.last)
	}
}

func TestAccountPageOfAProviderWithoutGateway(t *testing.T) {
	clk := &clock{}
	text, _, _ := strings.Cut(testConfig, "gateway:\n")
	w := newWorld(t, text+withTOTP, store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk)
	b := w.browser().get(account)
	b.signIn("admin@example.com", "password")
	if csp := b.head.Get("Content-Security-Policy"); b.code != 200 || !strings.Contains(csp, "form-action 'self';") {
		t.Errorf("the second factor's page: %d with %s", b.code, csp)
	}
	b.do(http.MethodPost, b.last.String(), url.Values{"totp": {w.code("u1", clk.now())}}, nil)
	if b.last.String() != account {
		t.Fatalf("got %d at %s: %s", b.code, b.last, b.page)
	}
	if b.end("all"); b.last.Path != "/dex/logout/callback" {
		t.Errorf("got %d at %s: %s", b.code, b.last, b.page)
	}
	if ids := w.sessionIDs("admin@example.com"); len(ids) != 0 {
		t.Errorf("%d sessions are left", len(ids))
	}
}

func TestAccountPageAfterAnUpstreamSignIn(t *testing.T) {
	w, _ := variant(t, upstream)
	b := w.browser().get(account)
	b.get(b.link())
	if b.last.String() != account || !strings.Contains(b.page, "kilgore@kilgore.trout") || !strings.Contains(b.page, "<bdi>Upstream</bdi>") {
		t.Errorf("got %d at %s: %s", b.code, b.last, b.page)
	}
}

func TestAccountPageAfterASAMLSignIn(t *testing.T) {
	w, _ := variant(t, withSAML)
	b := w.browser().get(account)
	b.get(b.link())
	relay := relayRE.FindStringSubmatch(b.page)
	if relay == nil {
		t.Fatalf("got %d %s", b.code, b.page)
	}
	b.do(http.MethodPost, issuer+"/callback", url.Values{"RelayState": {relay[1]}, "SAMLResponse": {samlResponse(relay[1], "kim")}}, nil)
	if b.last.String() != account || !strings.Contains(b.page, "kim@example.org") {
		t.Errorf("got %d at %s: %s", b.code, b.last, b.page)
	}
}

// Who knows the password alone neither sees where the user is signed in nor ends anything.
func TestAccountPageAsksForTheSecondFactor(t *testing.T) {
	w, clk := variant(t, withTOTP)
	half := w.browser().get(account)
	half.signIn("admin@example.com", "password")
	factor := half.last.String()
	if !strings.Contains(factor, "/dex/mfa/totp") {
		t.Fatalf("at %s", factor)
	}
	if half.get(account); !strings.Contains(half.last.Path, "/mfa/totp") {
		t.Errorf("with the password alone: %d at %s: %s", half.code, half.last, half.page)
	}
	if half.do(http.MethodPost, account, url.Values{"end": {"all"}}, own); half.code != 401 {
		t.Errorf("a form with the password alone: %d", half.code)
	}
	half.get(account)
	half.do(http.MethodPost, half.last.String(), url.Values{"totp": {w.code("u1", clk.now())}}, nil)
	if half.last.String() != account || !strings.Contains(half.page, "This browser") {
		t.Errorf("with both: %d at %s: %s", half.code, half.last, half.page)
	}
}

func TestAccountPageByTicket(t *testing.T) {
	k := kerberosWorld(t, false, ldapWorldConfig("staff"))
	b := k.browser().get(account)
	if b.code != 401 {
		t.Fatalf("got %d at %s, want to be asked for a ticket", b.code, b.last)
	}
	if b.answer(k.ticket("alice")); b.last.String() != account || !strings.Contains(b.page, "alice@example.test") {
		t.Fatalf("got %d at %s: %s", b.code, b.last, b.page)
	}
	if b.end(b.refs()[0]); b.last.Path != "/dex/logout/callback" {
		t.Errorf("got %d at %s", b.code, b.last)
	}
	if b.get(account); b.code != 200 || !b.form() { // or the ticket would sign in again at once
		t.Errorf("after the sign-out: %d at %s", b.code, b.last)
	}
}

func TestAccountEndsOneSession(t *testing.T) {
	w, _ := memoryWorld(t)
	first, other := w.member("admin@example.com", "Mozilla/5.0 (Windows NT 10.0) Gecko/20100101 Firefox/133.0"), w.member("admin@example.com", "<script>alert(1)</script>")
	stranger := w.member("user@example.com")
	first.get(account)
	refs := first.refs()
	if len(refs) != 2 || !strings.Contains(first.page, "Firefox, Windows") {
		t.Fatalf("%d sessions on the page: %s", len(refs), first.page)
	}
	if strings.Contains(first.page, "<script") || !strings.Contains(first.page, "&lt;script&gt;alert(1)") {
		t.Errorf("the other browser's name is not shown as text: %s", first.page)
	}
	if !first.in() || !other.in() {
		t.Fatal("not signed in at the app")
	}
	if first.end(refs[1]); first.code != 200 || first.last.Path != "/dex/account" || !strings.Contains(first.page, "That session has ended.") {
		t.Errorf("got %d at %s: %s", first.code, first.last, first.page)
	}
	if got := first.refs(); !slices.Equal(got, refs[:1]) {
		t.Errorf("the page has %q, want only %q", got, refs[:1])
	}
	if other.in() || other.last.Path != "/dex/auth/local/login" {
		t.Errorf("the other browser is still signed in: %s", other.page)
	}
	if !first.in() || !stranger.in() {
		t.Error("somebody else was signed out too")
	}
	for _, want := range []string{
		`"msg":"sign-out","by":"user","connector":"local","user":"admin@example.com","user_id":"u1","session":"` + refs[1] + `"`,
		`"msg":"account-sign-out","result":"ok","end":"` + refs[1] + `","connector":"local","user":"admin@example.com","user_id":"u1","session":"` + refs[0] + `"`,
	} {
		if !strings.Contains(w.audit.String(), want) {
			t.Errorf("no event with %s in %s", want, w.audit)
		}
	}
	// A second click, from a page that is behind.
	if first.end(refs[1]); first.code != 404 || !strings.Contains(first.page, "There is no such session") {
		t.Errorf("the same once more: %d %s", first.code, first.page)
	}
	// And the notice is nobody else's, and not for ever.
	notice := account + "?n=" + url.QueryEscape("AAAA")
	if first.get(notice); strings.Contains(first.page, "has ended") {
		t.Error("a link can claim that a session has ended")
	}
}

func TestAccountNoticeIsOfThisSessionForAMinute(t *testing.T) {
	w, clk := memoryWorld(t)
	b, other := w.member("admin@example.com"), w.member("user@example.com")
	b.end("others")
	link := b.last.String()
	const said = "All your other sessions have ended."
	if !strings.Contains(b.page, said) {
		t.Fatalf("got %d %s", b.code, b.page)
	}
	if other.get(link); strings.Contains(other.page, said) {
		t.Error("the notice is shown to another user")
	}
	clk.add(time.Minute)
	if b.get(link); b.code != 200 || strings.Contains(b.page, said) {
		t.Errorf("after a minute: %d %s", b.code, b.page)
	}
}

func TestAccountEndsOthersAndAll(t *testing.T) {
	w, _ := memoryWorld(t)
	b := w.member("admin@example.com")
	others := []*browser{w.member("admin@example.com"), w.member("admin@example.com")}
	stranger := w.member("user@example.com")
	b.in()
	if b.end("others"); !strings.Contains(b.page, "All your other sessions have ended.") || len(b.refs()) != 1 {
		t.Errorf("got %d %s", b.code, b.page)
	}
	for i, o := range others {
		if o.in() {
			t.Errorf("other browser %d is still signed in", i)
		}
	}
	if !b.in() {
		t.Error("this browser was signed out too")
	}
	last := w.member("admin@example.com")
	if b.end("all"); b.last.Path != "/dex/logout/callback" || !strings.Contains(b.page, "You are signed out") {
		t.Errorf("got %d at %s: %s", b.code, b.last, b.page)
	}
	if len(b.ssoCookies()) != 0 {
		t.Error("the browser keeps the issuer's cookie")
	}
	if b.in() || last.in() {
		t.Error("somebody is still signed in")
	}
	if !stranger.in() {
		t.Error("another user was signed out")
	}
	if ids := w.sessionIDs("admin@example.com"); len(ids) != 0 {
		t.Errorf("%d sessions are left", len(ids))
	}
}

func TestAccountEndsThisSession(t *testing.T) {
	w, _ := memoryWorld(t)
	b, other := w.member("admin@example.com"), w.member("admin@example.com")
	b.get("https://sso.example.com/page") // an app on the issuer's host
	home, err := url.Parse("https://sso.example.com/")
	if err != nil {
		t.Fatal(err)
	}
	has := func() bool {
		return slices.ContainsFunc(b.c.Jar.Cookies(home), func(c *http.Cookie) bool { return c.Name == handoff.Names(true).Session })
	}
	if !has() {
		t.Fatal("no session of the app on the issuer's host")
	}
	ref := b.get(account).refs()[0]
	if b.end(ref); b.last.Path != "/dex/logout/callback" || b.code != 200 {
		t.Errorf("got %d at %s: %s", b.code, b.last, b.page)
	}
	if has() || len(b.ssoCookies()) != 0 {
		t.Error("cookies of the session are left")
	}
	if b.in() || !other.in() {
		t.Error("want this browser signed out, and the other not")
	}
}

// leavesUpstream is an identity provider with a page to sign out at.
type leavesUpstream struct{ *mock.Callback }

// LogoutURL implements connector.LogoutCallbackConnector.
func (leavesUpstream) LogoutURL(context.Context, string) (string, error) {
	return "https://up.example.org/logout?x=1", nil
}

// HandleLogoutCallback implements connector.LogoutCallbackConnector.
func (leavesUpstream) HandleLogoutCallback(context.Context, *http.Request) error { return nil }

func TestAccountSignOutLeadsUpstream(t *testing.T) {
	clk := &clock{}
	text := strings.Replace(testConfig, "gateway:\n", upstream+"gateway:\n", 1)
	w := newWorldWith(t, text, store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk, func(c storage.Connector) (connector.Connector, error) {
		if c.ID != "up" {
			return nil, errors.New("opened for " + c.ID)
		}
		return leavesUpstream{mock.NewCallbackConnector(slog.New(slog.DiscardHandler)).(*mock.Callback)}, nil
	})
	b := w.browser().get(account)
	b.get(b.link())
	if b.last.String() != account {
		t.Fatalf("got %d at %s: %s", b.code, b.last, b.page)
	}
	b.end(b.refs()[0])
	if got, want := b.head.Get("Refresh"), "0; url=https://up.example.org/logout?x=1"; got != want || !strings.Contains(b.page, `href="https://up.example.org/logout?x=1"`) {
		t.Errorf("got %d, Refresh %q, want %q: %s", b.code, got, want, b.page)
	}
	if len(b.ssoCookies()) != 0 {
		t.Error("the browser keeps the issuer's cookie")
	}
}

// A cast is who is there when the account page is attacked.
type cast struct {
	w                      *world
	victim, other, foreign *browser // other is another browser of the victim, foreign another user
}

// notice is what the page tells the victim, sealed.
func (c *cast) notice() string {
	c.w.member("admin@example.com")
	for _, ref := range c.victim.get(account).refs()[1:] {
		if ref != c.other.get(account).refs()[0] {
			return c.victim.end(ref).last.Query().Get("n")
		}
	}
	c.w.t.Fatal("no third session")
	return ""
}

// Whatever another site, another user or another program sends to the account page of a victim who is signed in, nothing ends.
func TestAccountFormIsRefused(t *testing.T) {
	form := func(token, end string) url.Values { return url.Values{"token": {token}, "end": {end}} }
	w, _ := memoryWorld(t)
	c := &cast{w: w, victim: w.member("admin@example.com"), other: w.member("admin@example.com"), foreign: w.member("user@example.com")}
	for name, tt := range map[string]struct {
		form   func(c *cast) url.Values
		header http.Header
		want   int
	}{
		"from another origin": {func(c *cast) url.Values { return form(c.victim.get(account).token(), "all") }, http.Header{"Origin": {"https://app.example.com"}}, 403},
		"from origin null":    {func(c *cast) url.Values { return form(c.victim.get(account).token(), "all") }, http.Header{"Origin": {"null"}}, 403},
		"from the issuer's host over http": {
			func(c *cast) url.Values { return form(c.victim.get(account).token(), "all") }, http.Header{"Origin": {"http://sso.example.com"}}, 403,
		},
		"with two origins":             {func(c *cast) url.Values { return form(c.victim.get(account).token(), "all") }, http.Header{"Origin": {"https://sso.example.com", "https://sso.example.com"}}, 403},
		"cross-site by Sec-Fetch-Site": {func(c *cast) url.Values { return form(c.victim.get(account).token(), "all") }, http.Header{"Sec-Fetch-Site": {"cross-site"}}, 403},
		"same-site by Sec-Fetch-Site":  {func(c *cast) url.Values { return form(c.victim.get(account).token(), "all") }, http.Header{"Sec-Fetch-Site": {"same-site"}}, 403},
		"without a token":              {func(*cast) url.Values { return url.Values{"end": {"all"}} }, own, 403},
		"with an empty token":          {func(*cast) url.Values { return form("", "all") }, own, 403},
		"with a damaged token":         {func(c *cast) url.Values { return form(c.victim.get(account).token()+"A", "all") }, own, 403},
		"with a token of 1 MB":         {func(*cast) url.Values { return form(strings.Repeat("A", 1<<20), "all") }, own, 413},
		"with another user's token":    {func(c *cast) url.Values { return form(c.foreign.get(account).token(), "all") }, own, 403},
		"with another session's token": {func(c *cast) url.Values { return form(c.other.get(account).token(), "all") }, own, 403},
		"with a notice for a token":    {func(c *cast) url.Values { return form(c.notice(), "all") }, own, 403},
		"with a sign-in for a token":   {func(c *cast) url.Values { return form(c.w.browser().get(account).last.Query().Get("req"), "all") }, own, 403},
		"for another user's session":   {func(c *cast) url.Values { return form(c.victim.get(account).token(), c.foreign.refs()[0]) }, own, 404},
		"for another user's session id": {func(c *cast) url.Values {
			return form(c.victim.get(account).token(), c.w.sessionIDs("user@example.com")[0])
		}, own, 404},
		"for its own session id": {func(c *cast) url.Values {
			return form(c.victim.get(account).token(), c.w.sessionIDs("admin@example.com")[0])
		}, own, 404},
		"for nothing":                 {func(c *cast) url.Values { return form(c.victim.get(account).token(), "") }, own, 404},
		"for what the page only says": {func(c *cast) url.Values { return form(c.victim.get(account).token(), "one") }, own, 404},
		"for markup":                  {func(c *cast) url.Values { return form(c.victim.get(account).token(), "<script>alert(1)</script>") }, own, 404},
	} {
		t.Run(name, func(t *testing.T) {
			sent := tt.form(c)
			before := len(w.sessionIDs("admin@example.com"))
			b := c.victim.do(http.MethodPost, account, sent, tt.header)
			if b.code != tt.want {
				t.Errorf("status %d, want %d: %s", b.code, tt.want, b.page)
			}
			if strings.Contains(b.page, "<script") {
				t.Errorf("the page repeats the form as markup: %s", b.page)
			}
			if admin, user := len(w.sessionIDs("admin@example.com")), len(w.sessionIDs("user@example.com")); admin != before || user != 1 {
				t.Errorf("%d and %d sessions are left, want %d and 1", admin, user, before)
			}
		})
	}
}

// The token in the query, or by another method, is none; and a form in another browser, with the victim's cookie but not its pre-cookie, is refused.
func TestAccountFormIsRefusedElsewhere(t *testing.T) {
	w, _ := memoryWorld(t)
	b := w.member("admin@example.com")
	token := b.token()
	query := "?" + url.Values{"token": {token}, "end": {"all"}}.Encode()
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPut, http.MethodDelete} {
		b.do(method, account+query, nil, own)
	}
	if b.do(http.MethodPost, account+query, url.Values{}, own); b.code != 403 {
		t.Errorf("a form in the query: %d", b.code)
	}
	stolen := w.browser()
	for _, c := range b.ssoCookies() {
		home, err := url.Parse("https://sso.example.com/")
		if err != nil {
			t.Fatal(err)
		}
		stolen.c.Jar.SetCookies(home, []*http.Cookie{{Name: c.Name, Value: c.Value, Path: "/", Secure: true}})
	}
	if stolen.do(http.MethodPost, account, url.Values{"token": {token}, "end": {"all"}}, own); stolen.code != 403 {
		t.Errorf("the token in another browser: %d", stolen.code)
	}
	if ids := w.sessionIDs("admin@example.com"); len(ids) != 1 {
		t.Errorf("%d sessions, want 1", len(ids))
	}
	if b.do(http.MethodPost, "https://app.example.com/dex/account", url.Values{"token": {token}, "end": {"all"}}, own); len(w.sessionIDs("admin@example.com")) != 1 {
		t.Error("a form that was sent to an app ended a session")
	}
}

// A form that was open in this browser while somebody else, or the same user anew, signed in there is not theirs.
func TestAccountFormOfAnEarlierSessionIsRefused(t *testing.T) {
	for _, next := range []string{"user@example.com", "admin@example.com"} {
		w, _ := memoryWorld(t)
		b := w.member("admin@example.com")
		w.member(next)
		token := b.get(account).token()
		b.end(b.refs()[0])
		b.get(account)
		b.signIn(next, "password")
		if b.last.String() != account {
			t.Fatalf("got %d at %s", b.code, b.last)
		}
		before := len(w.sessionIDs(next))
		if b.do(http.MethodPost, account, url.Values{"token": {token}, "end": {"others"}}, own); b.code != 403 || len(w.sessionIDs(next)) != before {
			t.Errorf("%s: got %d, and %d sessions, want 403 and %d", next, b.code, len(w.sessionIDs(next)), before)
		}
	}
}

// A sign-in for the account page leads nowhere else, and is good in the browser in which it began.
func TestAccountSignInIsOfItsBrowser(t *testing.T) {
	w, clk := memoryWorld(t)
	began := w.browser().get(account + "?next=//evil.example&rd=https://evil.example")
	link := began.last.String()
	victim := w.browser()
	if victim.get(link); victim.code != 400 {
		t.Errorf("the link in another browser: %d", victim.code)
	}
	if victim.do(http.MethodPost, link, url.Values{"login": {"user@example.com"}, "password": {"password"}}, own); victim.code != 400 || len(w.sessionIDs("user@example.com")) != 0 {
		t.Errorf("a victim's browser was signed in: %d", victim.code)
	}
	clk.add(handoff.RequestLifetime)
	if began.do(http.MethodPost, link, url.Values{"login": {"user@example.com"}, "password": {"password"}}, own); began.last.Path != "/dex/auth/local/login" || began.code != 200 {
		t.Fatalf("an expired page: %d at %s", began.code, began.last)
	}
	began.signIn("user@example.com", "password")
	if began.last.String() != account {
		t.Errorf("led to %s", began.last)
	}
	if got := strings.Count(strings.Join(began.log, " "), "evil"); got != 0 {
		t.Errorf("went to another site: %q", began.log)
	}
}

func TestAccountPageOfWhomeverMayNotGoOn(t *testing.T) {
	t.Run("blocked", func(t *testing.T) {
		w, clk := memoryWorld(t)
		b := w.member("admin@example.com")
		token := b.token()
		err := w.store.UpdateUserIdentity(t.Context(), "u1", "local", func(u storage.UserIdentity) (storage.UserIdentity, error) {
			u.BlockedUntil = clk.now().Add(time.Hour)
			return u, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if b.get(account); strings.Contains(b.page, "admin@example.com") || b.last.Path != "/dex/auth/local/login" {
			t.Errorf("got %d at %s: %s", b.code, b.last, b.page)
		}
		if b.do(http.MethodPost, account, url.Values{"token": {token}, "end": {"all"}}, own); b.code != 401 {
			t.Errorf("the form: %d", b.code)
		}
	})
	t.Run("ended on another replica", func(t *testing.T) {
		w, _ := memoryWorld(t)
		b := w.member("admin@example.com")
		if err := w.provider.Revoke(t.Context(), w.sessionIDs("admin@example.com")[0]); err != nil {
			t.Fatal(err)
		}
		if b.get(account); b.last.Path != "/dex/auth/local/login" {
			t.Errorf("got %d at %s", b.code, b.last)
		}
	})
	t.Run("gone from the directory", func(t *testing.T) {
		clk, dir := &clock{}, &oneUser{}
		w := newWorldWith(t, ldapWorldConfig("staff"), store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk, func(storage.Connector) (connector.Connector, error) {
			return dir, nil
		})
		b := w.member("kim")
		dir.gone.Store(true)
		clk.add(3 * time.Minute)
		if b.get(account); strings.Contains(b.page, "This browser") {
			t.Errorf("got %d at %s: %s", b.code, b.last, b.page)
		}
		if b.do(http.MethodPost, account, url.Values{"end": {"all"}}, own); b.code != 401 {
			t.Errorf("the form: %d", b.code)
		}
	})
}

// oneUser is a directory with the user kim.
type oneUser struct{ gone atomic.Bool }

func (*oneUser) Prompt() string { return "User" }

func (*oneUser) Login(context.Context, connector.Scopes, string, string) (connector.Identity, bool, error) {
	return connector.Identity{UserID: "kim", Username: "Kim", Email: "kim@example.com"}, true, nil
}

// Lookup implements identity.Asker.
func (d *oneUser) Lookup(_ context.Context, ids []string) ([]connectors.Answer, error) {
	answers := make([]connectors.Answer, len(ids))
	for i := range answers {
		answers[i].Identity = connectors.Identity{UserID: "kim", Name: "Kim", Email: "kim@example.com"}
		if d.gone.Load() {
			answers[i].Err = &connectors.Refusal{Reason: connectors.Gone}
		}
	}
	return answers, nil
}

// downDriver is a database that does not answer while it is down.
type downDriver struct {
	store.Driver

	down atomic.Bool
}

var errNoDatabase = errors.New("the database does not answer")

func (d *downDriver) Read(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	if d.down.Load() {
		return store.Record{}, errNoDatabase
	}
	return d.Driver.Read(ctx, kind, id)
}

func (d *downDriver) Write(ctx context.Context, ops []store.Op) (int64, error) {
	if d.down.Load() {
		return 0, errNoDatabase
	}
	return d.Driver.Write(ctx, ops)
}

// Whoever has thousands of sessions, as a program that signs in each time, gets a page all the same.
func TestAccountPageOfThousandsOfSessions(t *testing.T) {
	const n = 3000
	w, clk := memoryWorld(t)
	b := w.member("admin@example.com")
	now := clk.now()
	for i := range n {
		at := now.Add(-time.Duration(i) * time.Second)
		s := storage.AuthSession{
			ID: fmt.Sprintf("session-%04d", i), UserID: "u1", ConnectorID: "local", CreatedAt: at, LastActivity: at, IdleExpiry: now.Add(time.Hour), AbsoluteExpiry: now.Add(time.Hour),
			UserAgent: fmt.Sprintf("Tool %04d", i), ClientStates: map[string]*storage.ClientAuthState{},
		}
		if i == 5 {
			s.IdleExpiry = now // over
		}
		if err := w.store.CreateAuthSession(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	b.get(account)
	refs := b.refs()
	if len(refs) != 100 || refs[0] != audit.Hash(w.provider.mustOwn(t, b)) || refs[1] != audit.Hash("session-0000") {
		t.Errorf("%d sessions on the page, want this browser's and the 99 that were used last", len(refs))
	}
	if strings.Contains(b.page, "Tool 0005") || !strings.Contains(b.page, "There are "+fmt.Sprint(n-1+1-100)+" more") {
		t.Errorf("want no expired session, and the number of the others: %s", html.EscapeString(b.page))
	}
	if len(b.page) > 128<<10 {
		t.Errorf("the page has %d bytes", len(b.page))
	}
	if b.end(audit.Hash("session-2999")); b.code != 200 { // not on the page, but one of the user's
		t.Errorf("a session that the page does not show: %d", b.code)
	}
	b.end("others")
	if ids := w.sessionIDs("admin@example.com"); len(ids) != 1 || !b.in() {
		t.Errorf("%d sessions are left, want this one", len(ids))
	}
}

// mustOwn is the session of a browser.
func (p *Provider) mustOwn(t *testing.T, b *browser) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, account, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	r.AddCookie(&http.Cookie{Name: "gatehouse-sso", Value: b.ssoCookies()[0].Value})
	id, _, ok := p.frontOptions(p.current.Load()).Sessions.ParseCookie(r)
	if !ok {
		t.Fatal("no session cookie")
	}
	return id
}

// A browser that keeps no cookie goes round and round, and is told.
func TestAccountLoopIsTold(t *testing.T) {
	w, _ := memoryWorld(t)
	b := w.member("admin@example.com")
	home, err := url.Parse("https://sso.example.com/")
	if err != nil {
		t.Fatal(err)
	}
	for range handoff.MaxRounds - 1 {
		b.c.Jar.SetCookies(home, []*http.Cookie{{Name: "__Host-gatehouse-sso", Path: "/", MaxAge: -1, Secure: true}})
		b.get(account)
		b.signIn("admin@example.com", "password")
		if b.code != 200 {
			t.Fatalf("got %d %s", b.code, b.page)
		}
	}
	b.c.Jar.SetCookies(home, []*http.Cookie{{Name: "__Host-gatehouse-sso", Path: "/", MaxAge: -1, Secure: true}})
	b.get(account)
	if b.signIn("admin@example.com", "password"); b.code != 400 || !strings.Contains(b.page, "goes round in circles") {
		t.Errorf("got %d at %s: %s", b.code, b.last, b.page)
	}
}

// The account page is for people of this issuer; the store's failure is told as such, and nobody loses a cookie by it.
func TestAccountPageWithoutTheStore(t *testing.T) {
	clk := &clock{}
	d := &downDriver{Driver: store.MemoryDriver()}
	st, err := store.New(t.Context(), d, store.Options{Now: clk.now})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, testConfig, st, seal.NewKey(), clk)
	b, other := w.member("admin@example.com"), w.member("admin@example.com")
	token := b.get(account).token()
	d.down.Store(true)
	if b.get(account); b.code != 503 || len(b.ssoCookies()) != 1 {
		t.Errorf("got %d, and %d cookies", b.code, len(b.ssoCookies()))
	}
	if b.do(http.MethodPost, account, url.Values{"token": {token}, "end": {"all"}}, own); b.code != 503 || len(b.ssoCookies()) != 1 {
		t.Errorf("the form: got %d, and %d cookies", b.code, len(b.ssoCookies()))
	}
	d.down.Store(false)
	if !b.in() || !other.in() {
		t.Error("somebody was signed out by a failure")
	}
}
