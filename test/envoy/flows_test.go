package envoy

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// clientRows are kinds of clients without a session: only a person's navigation is redirected.
func clientRows() (all []row) {
	const family = "clients"
	for _, c := range []struct {
		name, method string
		lines        []string
		want         int
	}{
		{"navigation", "GET", []string{"Accept: text/html,application/xhtml+xml", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"}, 302},
		{"navigation of an old browser", "GET", []string{"Accept: text/html"}, 302},
		{"navigation by HEAD", "HEAD", []string{"Accept: text/html"}, 302},
		{"frame", "GET", []string{"Accept: text/html", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe"}, 302},
		{"fetch", "GET", []string{"Accept: */*", "Sec-Fetch-Mode: cors", "Sec-Fetch-Dest: empty"}, 401},
		{"fetch of a page", "GET", []string{"Accept: text/html", "Sec-Fetch-Mode: cors"}, 401},
		{"fetch, same origin", "GET", []string{"Accept: */*", "Sec-Fetch-Mode: same-origin"}, 401},
		{"image", "GET", []string{"Accept: image/*", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image"}, 401},
		{"XMLHttpRequest", "GET", []string{"Accept: text/html", "X-Requested-With: XMLHttpRequest"}, 401},
		{"JSON", "GET", []string{"Accept: application/json"}, 401},
		{"event stream", "GET", []string{"Accept: text/event-stream"}, 401},
		{"WebSocket", "GET", []string{"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-Fetch-Mode: websocket"}, 401},
		{"WebSocket, by Sec-Fetch-Mode", "GET", []string{"Accept: text/html", "Sec-Fetch-Mode: websocket"}, 401},
		{"unknown", "GET", []string{"Accept: */*"}, 401},
		{"says nothing", "GET", nil, 401},
		{"unknown, POST", "POST", nil, 401},
	} {
		r := row{family: family, name: c.name, method: c.method, lines: c.lines, bare: true, both: refused(c.want), check: asksToSignIn}
		if c.want == http.StatusFound {
			r.check = leadsToIssuer
		}
		all = append(all, r)
		denied := r
		denied.name, denied.as, denied.target, denied.check = c.name+", who may not", user, "/admin/x", leadsTo("")
		denied.both = refused(http.StatusForbidden)
		all = append(all, denied)
	}
	return append(all,
		row{family: family, name: "posted form", method: "POST", lines: []string{"Accept: text/html", "Sec-Fetch-Mode: navigate", "Content-Length: 0"}, both: refused(http.StatusUnauthorized), check: leadsTo("")},
		row{family: family, name: "gRPC", method: "POST", target: "/pkg.Service/Method", lines: []string{"Content-Type: application/grpc", "TE: trailers"}, both: refused(http.StatusOK), check: grpcStatus("16")},
		row{family: family, name: "gRPC, who may not", as: user, method: "POST", target: "/admin/x", lines: []string{"Content-Type: application/grpc"}, both: refused(http.StatusOK), check: grpcStatus("7")},
		row{family: family, name: "denial is told in JSON to a program", as: user, target: "/admin/x", lines: []string{"Accept: application/json"}, both: refused(http.StatusForbidden), check: isDenied},
		row{family: family, name: "denial is a page for a person", as: user, target: "/admin/x", both: refused(http.StatusForbidden), check: isExplained},
		row{family: family, name: "script injection in a denied path", as: user, target: "/admin/%3Cscript%3Ealert(1)%3C/script%3E", both: refused(http.StatusForbidden), check: hasNoScript},
	)
}

// asksToSignIn checks a 401 for programs: a challenge, and where a person can sign in.
func asksToSignIn(t testing.TB, _ *world, p *page) {
	t.Helper()
	if got := p.header.Get("WWW-Authenticate"); !strings.HasPrefix(got, "Bearer ") {
		t.Errorf("challenge %q, want Bearer", got)
	}
	var body struct {
		Error     string `json:"error"`
		LoginURL  string `json:"login_url"`
		RequestID string `json:"request_id"`
	}
	jsonBody(t, p, &body)
	if body.LoginURL != "http://"+appHost+"/_gatehouse/sign-in" || body.Error == "" || body.RequestID == "" || body.RequestID != p.header.Get("X-Request-Id") {
		t.Errorf("body %+v", body)
	}
	if len(p.header.Values("Set-Cookie")) != 0 || p.location() != "" {
		t.Errorf("a program gets cookies or a redirect: %v", p.header)
	}
}

func asksForToken(t testing.TB, _ *world, p *page) {
	t.Helper()
	if got := p.header.Get("WWW-Authenticate"); !strings.Contains(got, `error="invalid_token"`) {
		t.Errorf("challenge %q, want invalid_token", got)
	}
}

func isDenied(t testing.TB, _ *world, p *page) {
	t.Helper()
	var body map[string]string
	jsonBody(t, p, &body)
	if body["error"] != "denied" || body["rule"] != "admin" || body["request_id"] == "" {
		t.Errorf("body %v", body)
	}
}

func grpcStatus(want string) func(testing.TB, *world, *page) {
	return func(t testing.TB, _ *world, p *page) {
		t.Helper()
		if got := p.header.Get("Grpc-Status"); got != want {
			t.Errorf("grpc-status %q, want %s", got, want)
		}
	}
}

func hasNoScript(t testing.TB, _ *world, p *page) {
	t.Helper()
	csp := p.header.Get("Content-Security-Policy")
	if strings.Contains(p.body, "<script") || strings.Contains(csp, "script-src") || !strings.Contains(csp, "default-src 'none'") {
		t.Errorf("policy %q, %s", csp, p)
	}
}

// flowRows are what users do all day.
func flowRows() []row {
	const family = "flow"
	both := []string{"hardened", "relaxed"}
	return []row{
		{family: family, name: "4 requests on one host", on: both, play: signInRequests(issuerHost, 4)},
		{family: family, name: "5 requests on two hosts", on: both, play: signInRequests(appHost, 5)},
		{family: family, name: "5 requests on two sites", on: both, play: signInRequests(otherHost, 5)},
		{family: family, name: "single sign-on", on: both, play: singleSignOn},
		{family: family, name: "many tabs", play: manyTabs},
		{family: family, name: "whoami", play: whoAmI},
		{family: family, name: "whoami of nobody", target: "/_gatehouse/whoami", lines: []string{"Accept: application/json"}, both: refused(http.StatusUnauthorized), check: asksToSignIn},
		{family: family, name: "cookies are as they should be", play: cookieAttributes},
	}
}

func signInRequests(host string, want int) func(testing.TB, *world, *edge) {
	return func(t testing.TB, w *world, e *edge) {
		b := w.browser(e)
		p := must(t)(b.signIn(t.Context(), "http://"+host+"/headers?first=asked", user))
		if p.status != http.StatusOK || p.url.String() != "http://"+host+"/headers?first=asked" {
			t.Fatalf("ended at %s", p)
		}
		if len(b.trail) != want {
			t.Errorf("%d requests, want %d:\n%s", len(b.trail), want, strings.Join(b.trail, "\n"))
		}
		h, err := seenByApp(t.Context(), b, "http://"+host+"/headers")
		if err != nil {
			t.Fatal(err)
		}
		if h["kubeflow-userid"] != user || h["kubeflow-groups"] != groupsOf(user) || h["cookie"] != "" {
			t.Errorf("the app sees %v", h)
		}
	}
}

func singleSignOn(t testing.TB, w *world, e *edge) {
	b := w.knownBrowser(t, e)
	for _, host := range []string{appHost, wildHost, "deep.down.apps.example.test", otherHost} {
		b.trail = nil
		p := must(t)(b.visit(t.Context(), "http://"+host+"/headers"))
		if p.status != http.StatusOK || !strings.Contains(p.body, user) || len(b.trail) != 4 {
			t.Errorf("%s: %s after %v", host, p, b.trail)
		}
		b.trail = nil
		must(t)(b.visit(t.Context(), "http://"+host+"/headers"))
		if len(b.trail) != 1 {
			t.Errorf("%s: signed in, and yet %v", host, b.trail)
		}
	}
}

// manyTabs opens five sign-in pages in one browser and completes them all, in another order.
func manyTabs(t testing.TB, w *world, e *edge) {
	b := w.browser(e)
	pages := make([]*page, 5)
	for i := range pages {
		pages[i] = must(t)(b.visit(t.Context(), fmt.Sprintf("http://%s/headers?tab=%d", appHost, i)))
	}
	for _, i := range []int{3, 0, 4, 1, 2} {
		p := must(t)(b.submit(t.Context(), pages[i], w.credentials(user)))
		p = must(t)(b.follow(t.Context(), p))
		if want := fmt.Sprintf("http://%s/headers?tab=%d", appHost, i); p.status != http.StatusOK || p.url.String() != want {
			t.Errorf("tab %d ended at %s", i, p)
		}
	}
}

func whoAmI(t testing.TB, w *world, e *edge) {
	started := time.Now().Add(-time.Minute)
	b := w.signedIn(t, e, administrator)
	p := must(t)(b.step(t.Context(), http.MethodGet, "http://"+appHost+"/_gatehouse/whoami", nil))
	var who struct {
		User, Email, Name, Connector string
		Groups                       []string
		Session                      struct {
			IDHash     string    `json:"id_hash"`
			SignedInAt time.Time `json:"signed_in_at"`
			ExpiresAt  time.Time `json:"expires_at"`
		}
	}
	jsonBody(t, p, &who)
	if p.status != http.StatusOK || who.User != "id-admin" || who.Email != administrator || who.Name != "Ada Admin" || who.Connector != "local" || strings.Join(who.Groups, ",") != groupsOf(administrator) {
		t.Errorf("whoami: %s", p)
	}
	s := who.Session
	if s.IDHash == "" || s.SignedInAt.Before(started) || s.SignedInAt.After(time.Now().Add(time.Minute)) || !s.ExpiresAt.After(time.Now()) {
		t.Errorf("whoami's session: %+v", s)
	}
	if p.header.Get("Cache-Control") != "no-store" {
		t.Errorf("whoami may be cached: %v", p.header)
	}
}

func cookieAttributes(t testing.TB, w *world, e *edge) {
	b := w.browser(e)
	first := must(t)(b.step(t.Context(), http.MethodGet, "http://"+appHost+"/headers", nil))
	form := must(t)(b.step(t.Context(), http.MethodGet, first.location(), nil))
	signedIn := must(t)(b.submit(t.Context(), form, w.credentials(user)))
	redeemed := must(t)(b.step(t.Context(), http.MethodGet, signedIn.location(), nil))
	seen := map[string]bool{}
	for _, p := range []*page{first, form, signedIn, redeemed} {
		for _, c := range (&http.Response{Header: p.header}).Cookies() {
			seen[c.Name] = true
			path := "/"
			if c.Name == ssoCookie {
				path = "/dex"
			}
			if !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Domain != "" || c.Path != path || len(c.Value) > 200 {
				t.Errorf("cookie %s of %d bytes: %+v", c.Name, len(c.Value), c)
			}
		}
	}
	for _, name := range []string{sessionCookie, loginCookie, issuerCookie, ssoCookie} {
		if !seen[name] {
			t.Errorf("no cookie %s was set", name)
		}
	}
}

// signOutRows end sessions, or try to from elsewhere.
func signOutRows() []row {
	const family = "sign-out"
	return []row{
		{family: family, name: "form", play: signOutByForm},
		{family: family, name: "GET within the app", play: signOutByGet},
		{family: family, name: "everywhere at once", play: signOutEverywhere},
		{family: family, name: "from another site", play: signOutFromElsewhere},
		{family: family, name: "of nobody", target: "/oauth2/sign_out", both: refused(http.StatusOK)},
		{family: family, name: "of nobody, from elsewhere, clears nothing", method: "POST", target: "/oauth2/sign_out", lines: []string{"Origin: http://evil.example"}, both: refused(http.StatusForbidden), check: clearsNothing},
		{family: family, name: "GET from elsewhere without cookies clears nothing", target: "/oauth2/sign_out", lines: []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"}, both: refused(http.StatusOK), check: clearsNothing},
	}
}

func clearsNothing(t testing.TB, _ *world, p *page) {
	t.Helper()
	if got := p.header.Values("Set-Cookie"); len(got) != 0 {
		t.Errorf("sets cookies: %q", got)
	}
}

// signOut signs a browser out at a host, by the page that asks.
func (w *world) signOut(t testing.TB, b *browser, host string) {
	t.Helper()
	p := must(t)(b.step(t.Context(), http.MethodGet, "http://"+host+"/oauth2/sign_out", nil))
	p = must(t)(b.submit(t.Context(), p, url.Values{}))
	if p = must(t)(b.follow(t.Context(), p)); p.status != http.StatusOK {
		t.Fatalf("sign-out: %s", p)
	}
}

// isOver checks that nothing of what a browser had before its sign-out works any more.
func (w *world) isOver(t testing.TB, old *browser) {
	t.Helper()
	hosts := 0
	for _, origin := range w.origins() {
		if old.cookie(origin+"/", sessionCookie) == "" {
			continue
		}
		hosts++
		cookie := "Cookie: " + sessionCookie + "=" + old.cookie(origin+"/", sessionCookie)
		p := must(t)(fetch(t.Context(), old.edge.http, http.MethodGet, origin+"/headers", "", cookie, "Accept: text/html"))
		if p.status != http.StatusFound {
			t.Errorf("the old cookie of %s: got %s, want 302", origin, p)
		}
		p = must(t)(fetch(t.Context(), old.edge.http, http.MethodGet, origin+"/_gatehouse/whoami", "", cookie))
		if p.status != http.StatusUnauthorized {
			t.Errorf("the old cookie of %s at whoami: got %s, want 401", origin, p)
		}
	}
	if hosts == 0 {
		t.Error("the browser had no session cookie")
	}
	fresh := w.browser(old.edge)
	fresh.jar.SetCookies(parse(issuer+"/"), []*http.Cookie{{Name: ssoCookie, Value: old.cookie(issuer+"/", ssoCookie), Path: "/dex"}})
	p := must(t)(fresh.visit(t.Context(), "http://"+appHost+"/headers"))
	if _, err := p.action(); err != nil || p.status != http.StatusOK || p.url.Host != issuerHost {
		t.Errorf("the old cookie of the issuer: got %s, want the sign-in page", p)
	}
}

func signOutByForm(t testing.TB, w *world, e *edge) {
	b := w.signedIn(t, e, user)
	old := b.clone()
	w.signOut(t, b, appHost)
	w.isOver(t, old)
	if got := b.cookie("http://"+appHost+"/", sessionCookie); got != "" {
		t.Error("the browser keeps its cookie")
	}
	if p := must(t)(b.signIn(t.Context(), "http://"+appHost+"/headers", user)); p.status != http.StatusOK {
		t.Errorf("no new sign-in: %s", p)
	}
}

// signOutByGet is how Kubeflow's dashboard does it: a link within the app.
func signOutByGet(t testing.TB, w *world, e *edge) {
	b := w.signedIn(t, e, user)
	old := b.clone()
	p := must(t)(b.step(t.Context(), http.MethodGet, "http://"+appHost+"/oauth2/sign_out", nil,
		"Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"))
	if p = must(t)(b.follow(t.Context(), p)); p.status != http.StatusOK {
		t.Errorf("got %s", p)
	}
	w.isOver(t, old)
}

func signOutEverywhere(t testing.TB, w *world, e *edge) {
	b := w.signedIn(t, e, user)
	for _, host := range []string{otherHost, wildHost, issuerHost} {
		must(t)(b.visit(t.Context(), "http://"+host+"/headers"))
	}
	old := b.clone()
	w.signOut(t, b, wildHost)
	w.isOver(t, old)
}

func signOutFromElsewhere(t testing.TB, w *world, e *edge) {
	b := w.signedIn(t, e, user)
	other := w.signedIn(t, e, administrator)
	target := "http://" + appHost + "/oauth2/sign_out"
	form := must(t)(b.step(t.Context(), http.MethodGet, target, nil))
	action, err := form.action()
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := must(t)(other.step(t.Context(), http.MethodGet, target, nil)).action()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, method, target string
		lines                []string
	}{
		{"form of another site", "POST", action, []string{"Origin: http://evil.example"}},
		{"form without origin", "POST", action, []string{"Origin: null"}},
		{"form of another of our hosts", "POST", action, []string{"Origin: http://" + otherHost}},
		{"form of the same site", "POST", action, []string{"Sec-Fetch-Site: same-site"}},
		{"form of another site, by Sec-Fetch", "POST", action, []string{"Sec-Fetch-Site: cross-site"}},
		{"no token", "POST", target, []string{"Origin: http://" + appHost}},
		{"damaged token", "POST", target + "?k=" + damage(parse(action).Query().Get("k")), []string{"Origin: http://" + appHost}},
		{"token of another session", "POST", foreign, []string{"Origin: http://" + appHost}},
		{"a cookie for a token", "POST", target + "?k=" + b.cookie(target, sessionCookie), []string{"Origin: http://" + appHost}},
		{"image", "GET", target, []string{"Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image"}},
		{"frame", "GET", target, []string{"Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe"}},
		{"link of another site", "GET", target, []string{"Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"}},
		{"link of the same site", "GET", target, []string{"Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"}},
		{"typed", "GET", target, []string{"Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"}},
		{"HEAD", "HEAD", target, []string{"Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"}},
	} {
		p := must(t)(b.clone().step(t.Context(), c.method, c.target, nil, c.lines...))
		if c.method == "POST" && p.status != http.StatusForbidden {
			t.Errorf("%s: got %s, want 403", c.name, p)
		}
		if p := must(t)(b.step(t.Context(), http.MethodGet, "http://"+appHost+"/headers", nil)); p.status != http.StatusOK {
			t.Fatalf("%s: the user was signed out", c.name)
		}
	}
}

// providerRows attack the issuer as a provider for others; most of that is tested beside package provider.
func providerRows() (all []row) {
	const family = "provider"
	all = []row{
		{family: family, name: "code replayed", on: []string{"hardened", "issuer"}, play: replayCode},
		{family: family, name: "refresh three times", on: []string{"hardened", "issuer"}, play: refreshThrice},
		{family: family, name: "post-logout to a registered place", play: postLogout},
	}
	for name, c := range inOrder(map[string]struct {
		path, query, form string
		basic             string // user name
	}{
		"token, in the form":        {"/token", "", "grant_type=authorization_code&code=x&client_id=gatehouse&client_secret=", ""},
		"token, in the query":       {"/token", "?client_id=gatehouse", "grant_type=authorization_code&code=x", ""},
		"token, basic":              {"/token", "", "grant_type=authorization_code&code=x", "gatehouse"},
		"token, basic, escaped":     {"/token", "", "grant_type=authorization_code&code=x", "g%61tehouse"},
		"token, two clients":        {"/token", "", "grant_type=authorization_code&code=x&client_id=outside&client_id=gatehouse", ""},
		"refresh":                   {"/token", "", "grant_type=refresh_token&refresh_token=x&client_id=gatehouse", ""},
		"client credentials":        {"/token", "", "grant_type=client_credentials&scope=openid", "gatehouse"},
		"password":                  {"/token", "", "grant_type=password&username=x&password=y&scope=openid", "gatehouse"},
		"token exchange":            {"/token", "", "grant_type=urn:ietf:params:oauth:grant-type:token-exchange&subject_token=x&subject_token_type=urn:ietf:params:oauth:token-type:id_token&connector_id=local", "gatehouse"},
		"device token":              {"/token", "", "grant_type=urn:ietf:params:oauth:grant-type:device_code&device_code=x&client_id=gatehouse", ""},
		"device code":               {"/device/code", "", "client_id=gatehouse&scope=openid", ""},
		"introspection":             {"/token/introspect", "", "token=x", "gatehouse"},
		"introspection, in a form":  {"/token/introspect", "", "token=x&client_id=gatehouse&client_secret=x", ""},
		"introspection, by nobody":  {"/token/introspect", "", "token=x", ""},
		"authorization":             {"/auth", "?client_id=gatehouse&response_type=code&scope=openid&redirect_uri=" + url.QueryEscape(issuer+"/gatehouse/callback"), "", ""},
		"authorization, connector":  {"/auth/local", "?client_id=gatehouse&response_type=code&scope=openid&redirect_uri=" + url.QueryEscape(issuer+"/gatehouse/callback"), "", ""},
		"authorization, other URI":  {"/auth", "?client_id=gatehouse&response_type=code&scope=openid&redirect_uri=http://evil.example/", "", ""},
		"callback without a state":  {"/gatehouse/callback", "?code=x&state=y", "", ""},
		"callback with an error":    {"/gatehouse/callback", "?error=x&error_description=%3Cscript%3E", "", ""},
		"Dex's callback":            {"/callback", "?state=x&code=y", "", ""},
		"approval":                  {"/approval", "?req=x&hmac=y", "", ""},
		"implicit":                  {"/auth", "?client_id=outside&response_type=token&scope=openid&nonce=x&redirect_uri=http://client.example.test/cb", "", ""},
		"redirect URI of another":   {"/auth", "?client_id=outside&response_type=code&scope=openid&redirect_uri=http://client.example.test/elsewhere", "", ""},
		"redirect URI, longer":      {"/auth", "?client_id=outside&response_type=code&scope=openid&redirect_uri=http://client.example.test/cb/x", "", ""},
		"redirect URI, foreign":     {"/auth", "?client_id=outside&response_type=code&scope=openid&redirect_uri=http://evil.example/cb", "", ""},
		"redirect URI, with a user": {"/auth", "?client_id=outside&response_type=code&scope=openid&redirect_uri=http://client.example.test@evil.example/cb", "", ""},
	}) {
		all = append(all, row{family: family, name: "refused: " + name, on: []string{"hardened", "issuer"}, play: func(t testing.TB, w *world, e *edge) {
			w.isRefused(t, e, c.path+c.query, c.form, c.basic)
		}})
	}
	return all
}

// isRefused sends a request to the issuer that must get neither a token nor a code nor a place to sign in.
func (w *world) isRefused(t testing.TB, e *edge, target, form, basic string) {
	t.Helper()
	method, lines := http.MethodGet, []string{"Host: " + issuerHost}
	if form != "" {
		method = http.MethodPost
		lines = append(lines, "Content-Type: application/x-www-form-urlencoded")
	}
	if basic != "" {
		r := &http.Request{Header: http.Header{}}
		r.SetBasicAuth(basic, rand.Text())
		lines = append(lines, "Authorization: "+r.Header.Get("Authorization"))
	}
	p := must(t)(fetch(t.Context(), e.http, method, issuer+target, form, lines...))
	if p.status < 400 || p.status > 499 {
		// RFC 6749 section 4.1.2.1: what is wrong with a request, and nothing else, is told to its own redirect URI.
		if u := parse(p.location()); !strings.HasPrefix(p.location(), clientOrigin+"/cb?") || u.Query().Get("error") == "" || u.Query().Get("code") != "" {
			t.Errorf("got %s, want a refusal", p)
		}
	}
	if strings.Contains(p.body, "access_token") || strings.Contains(p.body, `"active":true`) || strings.Contains(p.body, "device_code\":") {
		t.Errorf("got %s", p)
	}
	if strings.Contains(p.body, "<script>") {
		t.Errorf("the page holds what was sent: %s", p)
	}
}

// outside signs a user in to the outside client and returns the code.
func (w *world) outside(t testing.TB, e *edge, scope string) (b *browser, code string) {
	t.Helper()
	return w.outsideAs(t, e, user, scope)
}

func (w *world) outsideAs(t testing.TB, e *edge, mail, scope string) (b *browser, code string) {
	t.Helper()
	b = w.browser(e)
	target := issuer + "/auth?" + url.Values{
		"client_id": {w.client.id}, "response_type": {"code"}, "scope": {scope}, "redirect_uri": {clientOrigin + "/cb"}, "state": {"a-state"}, "nonce": {rand.Text()},
	}.Encode()
	p := must(t)(b.signIn(t.Context(), target, mail))
	code = parse(p.location()).Query().Get("code")
	if !strings.HasPrefix(p.location(), clientOrigin+"/cb?") || code == "" {
		t.Fatalf("no code: %s", p)
	}
	return b, code
}

// token asks the token endpoint.
func (w *world) token(t testing.TB, e *edge, client string, form url.Values) (status int, got map[string]any) {
	t.Helper()
	r := &http.Request{Header: http.Header{}}
	r.SetBasicAuth(client, w.client.secret)
	p := must(t)(fetch(t.Context(), e.http, http.MethodPost, issuer+"/token", form.Encode(), "Content-Type: application/x-www-form-urlencoded",
		"Authorization: "+r.Header.Get("Authorization")))
	jsonBody(t, p, &got)
	for _, k := range []string{"access_token", "id_token", "refresh_token"} {
		if v, ok := got[k].(string); ok {
			w.secrets.add(v)
		}
	}
	return p.status, got
}

func codeForm(code string) url.Values {
	return url.Values{"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {clientOrigin + "/cb"}}
}

func replayCode(t testing.TB, w *world, e *edge) {
	_, code := w.outside(t, e, "openid email offline_access")
	if status, got := w.token(t, e, "elsewhere", codeForm(code)); status != http.StatusBadRequest {
		t.Errorf("by another client: %d %v", status, got)
	}
	_, code = w.outside(t, e, "openid email offline_access")
	status, first := w.token(t, e, w.client.id, codeForm(code))
	if status != http.StatusOK {
		t.Fatalf("the code: %d %v", status, first)
	}
	if status, got := w.token(t, e, w.client.id, codeForm(code)); status != http.StatusBadRequest || got["error"] != "invalid_grant" {
		t.Errorf("replayed: %d %v", status, got)
	}
}

func refreshThrice(t testing.TB, w *world, e *edge) {
	_, code := w.outside(t, e, "openid email groups offline_access")
	status, got := w.token(t, e, w.client.id, codeForm(code))
	if status != http.StatusOK {
		t.Fatalf("the code: %d %v", status, got)
	}
	old := ""
	for i := range 3 {
		refresh, _ := got["refresh_token"].(string)
		if refresh == "" || refresh == old {
			t.Fatalf("round %d: no new refresh token: %v", i, got)
		}
		old = refresh
		if status, got = w.token(t, e, w.client.id, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh}}); status != http.StatusOK {
			t.Fatalf("round %d: %d %v", i, status, got)
		}
	}
	if status, got := w.token(t, e, "elsewhere", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {old}}); status != http.StatusBadRequest {
		t.Errorf("by another client: %d %v", status, got)
	}
}

func postLogout(t testing.TB, w *world, e *edge) {
	b, code := w.outside(t, e, "openid email")
	_, got := w.token(t, e, w.client.id, codeForm(code))
	hint, _ := got["id_token"].(string)
	logout := func(uri string) *page {
		return must(t)(b.step(t.Context(), http.MethodGet, issuer+"/logout?"+url.Values{"id_token_hint": {hint}, "post_logout_redirect_uri": {uri}, "state": {"s"}}.Encode(), nil))
	}
	for _, uri := range []string{"http://evil.example/", clientOrigin + "/bye/x", clientOrigin + ".evil.example/bye", "//evil.example/bye", clientOrigin + "/bye?x=1"} {
		if p := logout(uri); p.location() != "" && !w.own(p.location()) {
			t.Errorf("%s: leads to %q", uri, p.location())
		}
	}
	p := must(t)(b.follow(t.Context(), logout(clientOrigin+"/bye")))
	if want := clientOrigin + "/bye?state=s"; p.location() != want {
		if action, err := p.action(); err == nil { // it asks first
			p = must(t)(b.step(t.Context(), http.MethodPost, action, url.Values{}, "Origin: http://"+issuerHost))
		}
		if p.location() != want {
			t.Errorf("leads to %q, want %q: %s", p.location(), want, p)
		}
	}
}
