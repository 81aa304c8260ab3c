package authz

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"gatehouse/authz/policy"
	"gatehouse/authz/session"
	"gatehouse/internal/handoff"
	"gatehouse/internal/hosts"
	"gatehouse/test/whatwg"
)

// The model below is written from DESIGN.md and ATTACKS.md, and shares no code with what it judges but the parsers of
// package policy and the seals.

// A stage is one configuration with what the model knows of it.
type stage struct {
	*fixture

	rules    []policy.Rule
	fallback policy.Default
	origins  map[string]bool // scheme://host[:port] where a redirect may lead
	issued   map[string]issued
	cookies  []string            // parts of Cookie headers
	at       map[string][]string // those of one host
	paths    []string
	hosts    []string
	pre      handoff.PreCookie
	tickets  map[string]string // host by sealed ticket
	redeems  map[string]string // path that redeems one by host
}

// An issued is what a session cookie that was sealed in the set-up is good for.
type issued struct{ host, session string }

func newStage(f *testing.F, rules []policy.Rule, fallback policy.Default, list []string, change func(*Config)) *stage {
	f.Helper()
	p, err := policy.New(rules, fallback)
	if err != nil {
		f.Fatal(err)
	}
	set, err := hosts.Parse(list, "https")
	if err != nil {
		f.Fatal(err)
	}
	x := newFixture(f, func(c *Config) { c.Policy, c.Hosts = p, set }, change)
	x.Audit = nil
	s := &stage{
		fixture: x, rules: rules, fallback: fallback, origins: map[string]bool{x.config.Issuer.Origin: true}, issued: map[string]issued{},
		pre: handoff.NewPreCookie(epoch), tickets: map[string]string{}, redeems: map[string]string{}, at: map[string][]string{},
	}
	x.signIn("bob", func(b *session.Session) { b.Identity.Groups = []string{"admins", "", "a,b", "c\r\nx: y", "100%", "é"} })
	x.signIn("odd", func(o *session.Session) {
		o.Identity.Email, o.Identity.Name, o.Identity.Groups = "", " Zoë\r\n\x00\xff% ", nil
	})
	x.signIn("over", func(o *session.Session) { o.Identity.Expiry = epoch })
	x.sessions.err["down"] = errors.New("the store is down")
	s.hosts = []string{appHost, "a.apps.example.com", "b.a.apps.example.com", "plain.example.com", issuerHost, "open.example.com", "evil.com"}
	s.prepare()
	return s
}

// prepare seals what clients present.
func (s *stage) prepare() {
	for _, host := range s.hosts {
		https, listed := s.config.Hosts.Lookup(host)
		names := handoff.Names(https)
		if origin, ok := s.config.Hosts.Origin(host); ok {
			s.origins[origin] = true
		}
		for _, id := range []string{"alice", "bob", "odd", "over", "down", "gone"} {
			v := handoff.SealCookie(s.ring, host, id, epoch)
			s.issued[v] = issued{host, id}
			s.at[host] = append(s.at[host], names.Session+"="+v)
		}
		if listed {
			k := handoff.Ticket{Session: "alice", Host: host, Return: "/a", Bind: s.pre.Bind(), Expiry: epoch.Add(handoff.TicketLifetime)}.Seal(s.ring)
			s.tickets[k] = host
			s.redeems[host] = "/_gatehouse/session?t=" + k
			s.paths = append(s.paths, s.redeems[host])
		}
		s.at[host] = append(s.at[host], names.Login+"="+s.pre.String(), names.Login+"="+handoff.NewPreCookie(epoch).String(), names.IssuerLogin+"="+s.pre.String(),
			names.Session+"=", names.Session, "a=1")
		s.cookies = append(s.cookies, s.at[host]...)
	}
	s.cookies = append(s.cookies, "gatehouse-sso=x", "a=1", "__host-gatehouse=1", "__Host-gatehouse2=1", " __Host-gatehouse = x ", `"__Host-gatehouse=x"`, "=", "", "\t", "__Host-gatehouse-login=x")
	s.paths = append(s.paths,
		"/", "/public/x", "/public", "/publicly", "/public/../admin", "/admin/x?y=/public/", "/adm%69n", "/open/a", "/open/a/b", "/post", "/dex", "/dex/keys",
		"/dexter", "/_gatehouse", "/_gatehouse/whoami", "/_gatehouse/sign-in?rd=//evil.com", "/_gatehouse/sign-in?rd=/%5cevil.com", "/_gatehouse/sign-in?rd=https:evil.com",
		"/_gatehouse/sign-out", "/oauth2/start?rd=/a", "/oauth2/sign_out", "/oauth2/userinfo", "//evil.com", "/\\evil.com", "/a%20b", "/a;b", "/a%2f..%2fadmin", "*", "",
	)
}

func newStages(f *testing.F) []*stage {
	f.Helper()
	public := policy.Rule{Name: "public", Line: 1, Paths: []string{"/public/**"}, Anyone: true}
	admin := policy.Rule{Name: "admin", Line: 2, Hosts: []string{appHost}, Paths: []string{"/admin/**"}, Groups: []string{"admins"}}
	one := policy.Rule{Name: "one", Line: 3, Paths: []string{"/open/*"}, Methods: []string{"GET", "OPTIONS"}, Anyone: true}
	users := policy.Rule{Name: "users", Line: 4, Hosts: []string{"*.apps.example.com"}, Users: []string{"local:u-odd", "ALICE@example.com"}}
	open := policy.Rule{Name: "open", Line: 5, Hosts: []string{"open.example.com"}, Anyone: true}
	list := []string{appHost, "*.apps.example.com", "http://plain.example.com:8080", "open.example.com:8443"}
	return []*stage{
		newStage(f, []policy.Rule{public, admin, one}, policy.DefaultSignedIn, list, func(*Config) {}),
		newStage(f, []policy.Rule{admin, users, open, one}, policy.DefaultDeny, list, func(c *Config) {
			c.Issuer = Issuer{Host: appHost, Path: "/dex", Origin: appOrigin}
			c.SameSite, c.Clients = http.SameSiteStrictMode, ClientsKubeflow
			c.IdentityHeaders = []IdentityHeader{{"X_Auth.User", ClaimUserID}, {"remote-user", ClaimName}, {"x-auth-groups", ClaimGroups}}
		}),
		newStage(f, []policy.Rule{users, public, open}, policy.DefaultSignedIn, list, func(c *Config) {
			c.Issuer.Path, c.IdentityHeaders = "", []IdentityHeader{{"x-email", ClaimEmail}, {"x-email-2", ClaimConnector}}
		}),
		newStage(f, []policy.Rule{{Name: "all", Line: 1, Anyone: true}}, policy.DefaultDeny, list, func(c *Config) { c.IdentityHeaders = nil }),
	}
}

// A chooser turns bytes into choices.
type chooser struct{ data []byte }

func (c *chooser) pick(n int) int {
	if len(c.data) == 0 {
		return 0
	}
	b := c.data[0]
	c.data = c.data[1:]
	return int(b) % n
}

// of returns one of list, or raw.
func (c *chooser) of(list []string, raw string) string {
	if i := c.pick(len(list) + 1); i < len(list) {
		return list[i]
	}
	return raw
}

// A shot is one request as it is fired, with what the model needs to know of it.
type shot struct {
	method, host, path string
	headers            map[string]string // lower-case names
	encoded            bool              // sent as encode_raw_headers does
}

func (s *stage) shoot(c *chooser, host, path, name, value, cookie string) shot {
	x := shot{headers: map[string]string{}}
	x.method = c.of([]string{"GET", "POST", "HEAD", "OPTIONS", "PROPFIND", "get"}, "TRACE")
	listed := c.of(s.hosts, host)
	x.host = listed + []string{"", "", "", ":443", ".", ","}[c.pick(6)]
	x.path = c.of(s.paths, path)
	cookies := s.cookies
	if at := s.at[listed]; at != nil && c.pick(2) == 0 {
		cookies = at
	}
	if t := s.redeems[listed]; t != "" && c.pick(8) == 7 {
		x.path = t
	}
	x.encoded = c.pick(3) == 0
	var parts strings.Builder
	for range c.pick(6) {
		parts.WriteString(c.of(cookies, cookie) + []string{"; ", ";", ",", " , "}[c.pick(4)])
	}
	x.set("cookie", parts.String())
	for range c.pick(5) {
		h := s.header(c)
		x.set(h.Name, string(h.Claim))
	}
	x.set(name, value)
	if !x.encoded { // what is no UTF-8 never arrives in these fields
		x.headers = valid(x.headers)
	}
	x.method, x.host, x.path = strings.ToValidUTF8(x.method, "!"), strings.ToValidUTF8(x.host, "!"), strings.ToValidUTF8(x.path, "!")
	return x
}

func (x *shot) set(name, value string) {
	name = strings.ToLower(strings.ToValidUTF8(name, "!"))
	if _, there := x.headers[name]; !there && (name != "cookie" || value != "") {
		x.headers[name] = value
	}
}

func valid(in map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range in {
		out[k] = strings.ToValidUTF8(v, "!")
	}
	return out
}

// header returns a header that attackers or browsers send: an identity header under one of its aliases, mostly.
func (s *stage) header(c *chooser) IdentityHeader {
	fixed := []IdentityHeader{
		{"authorization", "Bearer x"},
		{"authorization", "Basic YTpi"},
		{"authorization", "Basic x,bearer y"},
		{"sec-fetch-mode", "navigate"},
		{"sec-fetch-mode", "cors"},
		{"accept", "text/html"},
		{"connection", "kubeflow-userid, x"},
		{"connection", "X_EMAIL"},
		{"x-forwarded-host", "evil.com"},
		{"x-envoy-original-path", "/public/x"},
		{"origin", "https://evil.com"},
		{"sec-fetch-site", "same-origin"},
		{"x-request-id", "rid-1"},
		{"x-request-id", "a\r\nb"},
		{"accept-language", "<script>"},
	}
	if i := c.pick(2 * len(fixed)); i < len(fixed) || len(s.config.IdentityHeaders) == 0 {
		return fixed[i%len(fixed)]
	}
	name := s.config.IdentityHeaders[c.pick(len(s.config.IdentityHeaders))].Name
	for range c.pick(3) {
		from, to := string("-_."[c.pick(3)]), string("-_.~!"[c.pick(5)])
		name = strings.Replace(name, from, to, 1+c.pick(2))
	}
	return IdentityHeader{name, "evil"}
}

func (x *shot) proto() *authv3.CheckRequest {
	r := &authv3.AttributeContext_HttpRequest{Method: x.method, Host: x.host, Path: x.path}
	if x.encoded {
		r.HeaderMap = &corev3.HeaderMap{}
		for k, v := range x.headers {
			r.HeaderMap.Headers = append(r.HeaderMap.Headers, &corev3.HeaderValue{Key: k, RawValue: []byte(v)})
		}
	} else {
		r.Headers = x.headers
	}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{Http: r}}}
}

// FuzzInvariants holds, for requests that attackers could send to four gateways: an anonymous request is allowed only by a
// rule that says anyone, and another only as the model decides; every allow sets or removes each identity header and drops its
// aliases, our cookies and Authorization; a redirect leads to a listed host; a session cookie is set for a hand-off only.
func FuzzInvariants(f *testing.F) {
	stages := newStages(f)
	random := rand.New(rand.NewPCG(5, 6)) // the same seeds each time
	for i := range 400 {
		choices := make([]byte, 32)
		for i := range choices {
			choices[i] = byte(random.Uint32())
		}
		f.Add(uint8(i), choices, "APP.example.com.", "/%61dmin", "kubeflow_userid", "evil", "__Host-gatehouse=x")
	}
	f.Fuzz(func(t *testing.T, which uint8, choices []byte, host, path, name, value, cookie string) {
		s := stages[int(which)%len(stages)]
		x := s.shoot(&chooser{choices}, host, path, name, value, cookie)
		answer, err := s.Check(context.Background(), x.proto()) //nolint:usetesting // the context of a fuzz target is not made for 100,000 runs a second
		if err != nil {
			t.Fatalf("Check returned an error: %v", err)
		}
		r, err := envoy(x.headers, answer)
		if err != nil {
			t.Fatalf("%+v: %v", x, err)
		}
		if r.upstream == nil {
			s.checkRefusal(t, x, r)
			return
		}
		req, err := policy.ParseRequest(x.method, x.host, x.path)
		if err != nil {
			t.Fatalf("%+v could be read in two ways and is allowed", x)
		}
		if s.issuers(req) {
			s.checkPassed(t, x, r)
			return
		}
		s.checkAllowed(t, x, req, r)
	})
}

// issuers reports whether a request is for the issuer itself.
func (s *stage) issuers(r policy.Request) bool {
	i := s.config.Issuer
	return r.Host == i.Host && (i.Path == "" || r.Path == i.Path || strings.HasPrefix(r.Path, i.Path+"/"))
}

// spelling is what an app may take a header's name for.
func spelling(name string) string {
	return strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			return c
		}
		return '-'
	}, strings.ToLower(name))
}

// checkHeaders holds what is true of every allow. It returns the identity headers that are set.
func (s *stage) checkHeaders(t *testing.T, x shot, r result) map[string]string {
	t.Helper()
	ok := r.response.GetOkResponse()
	set, set2 := map[string]string{}, map[string]bool{}
	for _, h := range ok.GetHeaders() {
		set2[h.GetHeader().GetKey()] = true
	}
	owned := map[string]string{} // name by spelling
	for _, h := range s.config.IdentityHeaders {
		name := strings.ToLower(h.Name)
		owned[spelling(name)] = name
		removed := slices.Contains(ok.GetHeadersToRemove(), name)
		if set2[name] == removed {
			t.Fatalf("%+v: header %q: set %v, removed %v", x, name, set2[name], removed)
		}
		if set2[name] {
			set[name] = r.upstream[name]
		}
		delete(set2, name)
	}
	if delete(set2, "cookie"); len(set2) > 0 {
		t.Fatalf("%+v: headers of no identity are set: %v", x, set2)
	}
	for name, value := range r.upstream {
		if ours, is := owned[spelling(name)]; is && (name != ours || set[name] != value) {
			t.Fatalf("%+v: header %q: %q reaches the app, which may take it for %q", x, name, value, ours)
		}
	}
	return set
}

// checkPassed holds what the issuer gets: cookies and credentials as they were, and no identity.
func (s *stage) checkPassed(t *testing.T, x shot, r result) {
	t.Helper()
	if set := s.checkHeaders(t, x, r); len(set) > 0 {
		t.Fatalf("%+v: the issuer is told of %v", x, set)
	}
	for _, name := range []string{"cookie", "authorization"} {
		got, there := r.upstream[name]
		want, was := x.headers[name]
		if got != want || there != was {
			t.Fatalf("%+v: the issuer gets %s %q, want %q", x, name, got, want)
		}
	}
}

func (s *stage) checkAllowed(t *testing.T, x shot, req policy.Request, r result) {
	t.Helper()
	if _, listed := s.config.Hosts.Lookup(req.Host); !listed {
		t.Fatalf("%+v is allowed on a host that is not listed", x)
	}
	if req.Path == s.config.Prefix || strings.HasPrefix(req.Path, s.config.Prefix+"/") || req.Path == "/oauth2/start" || req.Path == "/oauth2/sign_out" {
		t.Fatalf("%+v is allowed, a path of ours", x)
	}
	id, _ := s.caller(x, req)
	if !s.allows(req, id) {
		t.Fatalf("%+v of %+v is allowed", x, id)
	}
	set := s.checkHeaders(t, x, r)
	for _, h := range s.config.IdentityHeaders {
		checkValue(t, x, h.Claim, set[strings.ToLower(h.Name)], id)
	}
	if v, there := r.upstream["authorization"]; there {
		t.Fatalf("%+v: Authorization %q reaches the app", x, v)
	}
	var want, got []string // cookies of the app
	for _, p := range pieces(x.headers["cookie"]) {
		if !s.ours(p) {
			want = append(want, strings.ToValidUTF8(p, "!"))
		}
	}
	for _, p := range pieces(r.upstream["cookie"]) {
		if s.ours(p) {
			t.Fatalf("%+v: cookie %q reaches the app", x, p)
		}
		got = append(got, strings.ToValidUTF8(p, "!"))
	}
	if !slices.Equal(got, want) {
		t.Fatalf("%+v: the app gets the cookies %q, want %q", x, got, want)
	}
}

// pieces returns what is not empty between semicolons and commas, trimmed.
func pieces(cookie string) (out []string) {
	for _, p := range strings.FieldsFunc(cookie, func(c rune) bool { return c == ';' || c == ',' }) {
		if p = strings.Trim(p, " \t"); p != "" && strings.Trim(p, " \t=") != "" {
			out = append(out, p)
		}
	}
	return out
}

func cookieName(piece string) string {
	name, _, _ := strings.Cut(piece, "=")
	return strings.Trim(name, " \t")
}

func (s *stage) ours(piece string) bool {
	switch cookieName(piece) {
	case "__Host-gatehouse", "__Host-gatehouse-login", "__Host-gatehouse-issuer-login", "gatehouse-dev", "gatehouse-dev-login", "gatehouse-dev-issuer-login", "gatehouse-sso":
		return true
	}
	return false
}

// caller returns who the model says sent a request, nil for nobody, and whether that cannot be found out.
func (s *stage) caller(x shot, req policy.Request) (id *policy.Identity, unknown bool) {
	for c := range strings.SplitSeq(x.headers["authorization"], ",") {
		if scheme, _, _ := strings.Cut(strings.Trim(c, " \t"), " "); strings.EqualFold(strings.Trim(scheme, " \t"), "bearer") {
			return nil, false
		}
	}
	return s.bySession(x, req)
}

// bySession is caller by cookies alone, as it is on our own paths.
func (s *stage) bySession(x shot, req policy.Request) (id *policy.Identity, unknown bool) {
	name := "gatehouse-dev"
	if https, _ := s.config.Hosts.Lookup(req.Host); https {
		name = "__Host-gatehouse"
	}
	var live []*policy.Identity
	n := 0
	for _, p := range pieces(x.headers["cookie"]) {
		if cookieName(p) != name {
			continue
		}
		n++
		_, value, _ := strings.Cut(p, "=")
		switch i := s.issued[value]; {
		case i.host != req.Host:
		case s.sessions.err[i.session] != nil:
			unknown = true
		case s.sessions.live[i.session] != nil && epoch.Before(s.sessions.live[i.session].Identity.Expiry):
			live = append(live, &s.sessions.live[i.session].Identity)
		}
	}
	if n > maxCandidates {
		return nil, false
	}
	if unknown || len(live) != 1 {
		return nil, unknown
	}
	return live[0], false
}

// allows decides as the documentation of policy.Rule says.
func (s *stage) allows(r policy.Request, id *policy.Identity) bool {
	for _, rule := range s.rules {
		if !anyOf(rule.Hosts, r.Host, matchHost) || !anyOf(rule.Paths, r.Path, matchPath) || len(rule.Methods) > 0 && !slices.Contains(rule.Methods, r.Method) {
			continue
		}
		if rule.Anyone || id == nil {
			return rule.Anyone
		}
		return slices.ContainsFunc(id.Groups, func(g string) bool { return slices.Contains(rule.Groups, g) }) ||
			slices.ContainsFunc(rule.Users, func(u string) bool {
				return u == id.Connector+":"+id.UserID || id.Email != "" && strings.EqualFold(u, id.Email)
			})
	}
	return id != nil && s.fallback == policy.DefaultSignedIn
}

func anyOf(patterns []string, s string, match func(pattern, s string) bool) bool {
	return len(patterns) == 0 || slices.ContainsFunc(patterns, func(p string) bool { return match(p, s) })
}

func matchHost(pattern, host string) bool {
	if suffix, wild := strings.CutPrefix(pattern, "*"); wild {
		return strings.HasSuffix(host, suffix)
	}
	return host == pattern
}

func matchPath(pattern, path string) bool {
	if above, deep := strings.CutSuffix(pattern, "/**"); deep {
		return path == above || strings.HasPrefix(path, above+"/")
	}
	return slices.EqualFunc(strings.Split(pattern, "/"), strings.Split(path, "/"), func(p, s string) bool { return p == s || p == "*" && s != "" })
}

// checkValue holds that an identity header is printable ASCII and decodes to the claim of the caller, and to nobody else's.
func checkValue(t *testing.T, x shot, claim Claim, value string, id *policy.Identity) {
	t.Helper()
	if strings.ContainsFunc(value, func(c rune) bool { return c < ' ' || c > '~' }) {
		t.Fatalf("%+v: %s is %q", x, claim, value)
	}
	if id == nil {
		if value != "" {
			t.Fatalf("%+v: nobody is %s %q", x, claim, value)
		}
		return
	}
	decode := func(s string) string {
		out, err := url.PathUnescape(s)
		if err != nil {
			t.Fatalf("%+v: %s is %q: %v", x, claim, value, err)
		}
		return out
	}
	if claim == ClaimGroups {
		for _, g := range strings.FieldsFunc(value, func(c rune) bool { return c == ',' }) {
			if !slices.Contains(id.Groups, decode(g)) {
				t.Fatalf("%+v: group %q of %q", x, decode(g), id.Groups)
			}
		}
		return
	}
	want := map[Claim]string{ClaimEmail: id.Email, ClaimName: id.Name, ClaimUserID: id.UserID, ClaimConnector: id.Connector}[claim]
	if decode(value) != want {
		t.Fatalf("%+v: %s is %q, want %q", x, claim, decode(value), want)
	}
}

// checkRefusal holds where an answer of our own leads, and what it sets.
func (s *stage) checkRefusal(t *testing.T, x shot, r result) {
	t.Helper()
	req, err := policy.ParseRequest(x.method, x.host, x.path)
	if r.code == 503 {
		if _, unknown := s.bySession(x, req); err != nil || !unknown {
			t.Fatalf("%+v: 503, a panic: %s", x, s.log)
		}
		return
	}
	if err != nil && r.code != 400 {
		t.Fatalf("%+v could be read in two ways, got %d", x, r.code)
	}
	https, _ := s.config.Hosts.Lookup(req.Host)
	here := whatwg.Place{Scheme: map[bool]string{true: "https", false: "http"}[https], Host: req.Host}
	for _, target := range append(r.headers["location"], strings.TrimPrefix(r.header("refresh"), "0; url=")) {
		if target == "" {
			continue
		}
		if p := whatwg.Resolve(here, target); p.User || !s.origins[p.Scheme+"://"+p.Host] {
			t.Fatalf("%+v is sent to %q, which is at %+v", x, target, p)
		}
	}
	if v := r.set(handoff.Names(https).Session); v != "" {
		s.checkHandoff(t, x, req, v)
	}
}

// checkHandoff holds that a session cookie is of this host and of a hand-off for it, in the browser that asked for it.
func (s *stage) checkHandoff(t *testing.T, x shot, req policy.Request, value string) {
	t.Helper()
	_, query, _ := strings.Cut(x.path, "?")
	q, err := url.ParseQuery(query)
	bound := slices.ContainsFunc(pieces(x.headers["cookie"]), func(p string) bool {
		return strings.HasSuffix(cookieName(p), "-login") && strings.HasSuffix(p, "="+s.pre.String())
	})
	if err != nil || req.Path != s.config.Prefix+"/session" || req.Host == "" || s.tickets[q.Get("t")] != req.Host || !bound || x.method != "GET" {
		t.Fatalf("%+v: a session cookie without a hand-off", x)
	}
	if id, when, err := handoff.OpenCookie(nil, s.ring, req.Host, value); err != nil || string(id) != "alice" || !when.Equal(epoch.Truncate(time.Second)) {
		t.Fatalf("%+v: the cookie is of %q at %v, %v", x, id, when, err)
	}
}

// FuzzReturn holds where a browser goes that is sent back to what a client asked for, as browsers read it.
func FuzzReturn(f *testing.F) {
	for _, tt := range targets {
		f.Add(tt.target, appHost)
	}
	f.Add("/a", "x.apps.example.com")
	f.Add("http://plain.example.com:8080/\t/evil.com", "plain.example.com")
	f.Add("https://app.example.com/\n/evil.com", appHost)
	f.Add("/ /evil.com", appHost)
	f.Add("/a?javascript:alert(1)", appHost)
	x := newFixture(f)
	g := x.current.Load()
	f.Fuzz(func(t *testing.T, target, host string) {
		back, ok := g.returnPath(target, host)
		origin, listed := x.config.Hosts.Origin(host)
		if !ok {
			if back != "" {
				t.Fatalf("%q: got %q without ok", target, back)
			}
			return
		}
		if c, canonical := hosts.Canonical(host); !listed || !canonical || c != host {
			return // never asked: a request's host is canonical
		}
		scheme, name, _ := strings.Cut(origin, "://")
		here := whatwg.Place{Scheme: scheme, Host: name}
		for _, location := range []string{back, origin + back} {
			if got := whatwg.Resolve(here, location); got != here {
				t.Fatalf("%q on %s: %q leads to %+v", target, origin, location, got)
			}
		}
		if len(back) < 1 || back[0] != '/' || len(back) > 1 && strings.ContainsAny(back[1:2], `/\`) || len(back) > maxTarget {
			t.Fatalf("%q on %s: %q could be read as another host's", target, origin, back)
		}
		if strings.ContainsFunc(back, func(c rune) bool { return c <= ' ' || c > '~' || strings.ContainsRune(`\"<>`, c) }) {
			t.Fatalf("%q on %s: %q cannot stand in a header or a page", target, origin, back)
		}
		if again, ok := g.returnPath(back, host); !ok || again != back {
			t.Fatalf("%q is %q, and that is %q, %v", target, back, again, ok)
		}
	})
}
