package provider

import (
	"context"
	"encoding/base64"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"gatehouse/connectors"
	"gatehouse/connectors/spnego"
	"gatehouse/internal/seal"
	"gatehouse/provider/store"
	"gatehouse/test/spnegotest"

	"github.com/dexidp/dex/connector"
	"github.com/dexidp/dex/storage"
)

// ldapConnector is a valid one; nobody connects to it.
const ldapConnector = `- {type: ldap, id: %ID, name: Staff, config: {host: "ldap.example.test:636", bindDN: "cn=service,dc=example,dc=test", bindPW: secret-of-the-service,
    userSearch: {baseDN: "dc=example,dc=test", username: uid, idAttr: entryUUID, emailAttr: mail, nameAttr: cn}}}
`

func ldapWorldConfig(ids ...string) string {
	text := strings.ReplaceAll(strings.Replace(testConfig, "enablePasswordDB: true", "enablePasswordDB: false", 1), "passwordConnector: local", "passwordConnector: "+ids[0])
	text = text[:strings.Index(text, "staticPasswords:")] + text[strings.Index(text, "staticClients:"):]
	text += "connectors:\n"
	for _, id := range ids {
		text += strings.ReplaceAll(ldapConnector, "%ID", id)
	}
	return text
}

// A tickets is a directory that takes tickets. It has the users alice, bob and disabled; others are not for this connector.
type tickets struct {
	acceptor *spnego.Acceptor
	strict   bool         // no form
	down     atomic.Bool  // the directory does not answer
	asked    atomic.Int64 // by a token that was accepted
}

func (d *tickets) Prompt() string { return "User" }

func (d *tickets) Login(_ context.Context, _ connector.Scopes, user, password string) (connector.Identity, bool, error) {
	return connector.Identity{UserID: "id-" + user, Username: user, Email: user + "@example.test", Groups: []string{"typed"}}, password == "password", nil
}

func (d *tickets) Negotiates() bool  { return d.acceptor != nil }
func (d *tickets) NeedsTicket() bool { return d.strict }

func (d *tickets) Negotiate(_ context.Context, token []byte) (connectors.Identity, []byte, error) {
	p, reply, err := d.acceptor.Accept(token)
	switch {
	case err != nil:
		return connectors.Identity{}, nil, &connectors.Refusal{Reason: connectors.NegotiateRefused, Err: err}
	case d.down.Load():
		return connectors.Identity{}, nil, &connectors.Refusal{Reason: connectors.Unavailable, Err: errors.New("no directory server answers")}
	case p.Name == "disabled":
		return connectors.Identity{}, nil, &connectors.Refusal{Reason: connectors.AccountDisabled}
	case p.Name != "alice" && p.Name != "bob":
		return connectors.Identity{}, nil, &connectors.Refusal{Reason: connectors.NotAllowed}
	}
	d.asked.Add(1)
	return connectors.Identity{UserID: "id-" + p.Name, Name: p.Name, Email: p.Name + "@example.test", Groups: []string{"staff"}}, reply, nil
}

// kerberos is a world with a directory and its KDC.
type kerberos struct {
	*world
	clk *clock
	kdc *spnegotest.KDC
	dir *tickets
}

func kerberosWorld(t *testing.T, strict bool, text string) *kerberos {
	t.Helper()
	clk := &clock{}
	kdc := spnegotest.New(t)
	a, err := spnego.New(spnego.Config{KeytabPath: kdc.Keytab(), SPN: spnegotest.Service}, clk.now, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := &tickets{acceptor: a, strict: strict}
	testResolve := func(c storage.Connector) (connector.Connector, error) {
		if strings.HasPrefix(c.ID, "plain") {
			return &tickets{}, nil
		}
		return dir, nil
	}
	w := newWorldWith(t, text, store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk, testResolve)
	return &kerberos{w, clk, kdc, dir}
}

// ticket is the Authorization header with a new ticket of a user.
func (k *kerberos) ticket(user string) http.Header {
	r := spnegotest.Good(k.now())
	r.User = user
	return k.token(r)
}

func (k *kerberos) token(r spnegotest.Request) http.Header {
	return http.Header{"Authorization": {"Negotiate " + base64.StdEncoding.EncodeToString(k.kdc.Token(r).Bytes)}}
}

// answer sends the last page's request again, with more headers, as a browser does that was asked for a ticket.
func (b *browser) answer(h http.Header) *browser {
	b.w.t.Helper()
	return b.do(http.MethodGet, b.last.String(), nil, h)
}

func (b *browser) form() bool { return strings.Contains(b.page, `name="password"`) }

func TestTicketSignsIn(t *testing.T) {
	k := kerberosWorld(t, false, ldapWorldConfig("staff"))
	b := k.browser().get("https://app.example.com/page?x=1")
	if got := b.head.Values("Www-Authenticate"); b.code != 401 || !slices.Equal(got, []string{"Negotiate"}) || !b.form() {
		t.Fatalf("got %d, WWW-Authenticate %q, form %v; want to be asked, with the form as the page", b.code, got, b.form())
	}
	if got := b.head.Get("Cache-Control"); got != "no-store" {
		t.Errorf("the page may be kept: Cache-Control %q", got)
	}
	b.requests()
	b.answer(k.ticket("alice"))
	if want := "hello alice@example.test [staff] at /page?x=1"; b.page != want {
		t.Fatalf("got %d %q, want %q", b.code, b.page, want)
	}
	if got := b.requests(); len(got) != 3 { // the page, the hand-off, the app
		t.Errorf("%d requests, want 3: %v", len(got), got)
	}
	for _, want := range []string{`"msg":"sign-in"`, `"result":"ok"`, `"method":"kerberos"`, `"connector":"staff"`, `"user":"alice@example.test"`, `"session":"`} {
		if !strings.Contains(k.audit.String(), want) {
			t.Errorf("the audit log has no %s: %s", want, k.audit)
		}
	}
	// A session like any other: another host, without a ticket.
	if b.get("https://x.apps.example.com/"); !strings.HasPrefix(b.page, "hello alice") {
		t.Errorf("single sign-on: %d %q", b.code, b.page)
	}
	if n := k.dir.asked.Load(); n != 1 {
		t.Errorf("the directory was asked %d times, want 1", n)
	}
}

func TestFormWorksBesideTickets(t *testing.T) {
	k := kerberosWorld(t, false, ldapWorldConfig("staff"))
	b := k.browser().get("https://app.example.com/")
	b.signIn("bob", "password")
	if !strings.HasPrefix(b.page, "hello bob@example.test [typed]") || strings.Contains(k.audit.String(), "kerberos") {
		t.Errorf("got %d %q", b.code, b.page)
	}
	b = k.browser().get("https://app.example.com/")
	b.signIn("bob", "wrong")
	if b.code != 401 || b.head.Get("Www-Authenticate") != "" {
		t.Errorf("a wrong password: %d, WWW-Authenticate %q: the browser would ask for another one itself", b.code, b.head.Get("Www-Authenticate"))
	}
}

func TestTicketOfAnOutsideClient(t *testing.T) {
	k := kerberosWorld(t, false, ldapWorldConfig("staff"))
	verifier := oauth2.GenerateVerifier()
	b := k.browser().get(clientURL(verifier))
	if b.code != 401 {
		t.Fatalf("got %d", b.code)
	}
	if b.answer(k.ticket("alice")); b.last.Host != "web.example.com" || b.last.Query().Get("code") == "" {
		t.Fatalf("got %d at %s", b.code, b.last)
	}
	// Another browser has the link, and a ticket.
	victim, link := k.browser(), k.browser().get(clientURL(verifier)).last.String()
	victim.get(clientURL(verifier))
	if victim.do(http.MethodGet, link, nil, k.ticket("bob")); victim.code != 400 {
		t.Errorf("a link of another browser: %d at %s", victim.code, victim.last)
	}
}

// failures are the sign-ins that the audit log has with a result.
func (k *kerberos) results(result string) int {
	return strings.Count(k.audit.String(), `"result":"`+result+`"`)
}

func TestTicketThatIsRefusedLeadsToTheForm(t *testing.T) {
	for name, tt := range map[string]struct {
		header func(k *kerberos) http.Header
		result string
		says   string // on the page
		audit  string
	}{
		"garbage":   {func(*kerberos) http.Header { return negotiateHeader("Z2FyYmFnZQ==") }, "negotiate-refused", "", `"why":"malformed"`},
		"no base64": {func(*kerberos) http.Header { return negotiateHeader("!!") }, "negotiate-refused", "", `"why":"malformed"`},
		"nothing":   {func(*kerberos) http.Header { return negotiateHeader("") }, "negotiate-refused", "", `"why":"malformed"`},
		"NTLM": {func(*kerberos) http.Header {
			return negotiateHeader("TlRMTVNTUAABAAAAB4IIogAAAAAAAAAAAAAAAAAAAAAKAGFKAAAADw==")
		}, "negotiate-refused", "", `"why":"ntlm"`},
		"100 kB":     {func(*kerberos) http.Header { return negotiateHeader(strings.Repeat("!!!!", 25<<10)) }, "negotiate-refused", "", `"why":"too-long"`},
		"a megabyte": {func(*kerberos) http.Header { return negotiateHeader(strings.Repeat("YIIB", 256<<10)) }, "negotiate-refused", "", `"why":"too-long"`},
		"two tokens": {func(k *kerberos) http.Header {
			return http.Header{"Authorization": append(k.ticket("alice")["Authorization"], k.ticket("bob")["Authorization"]...)}
		}, "negotiate-refused", "", `"why":"malformed"`},
		"two in one line": {func(k *kerberos) http.Header {
			return http.Header{"Authorization": {k.ticket("alice").Get("Authorization") + "," + k.ticket("bob").Get("Authorization")}}
		}, "negotiate-refused", "", `"why":"malformed"`},
		"another realm":         {func(k *kerberos) http.Header { r := spnegotest.Good(k.now()); r.Realm = "EVIL.TEST"; return k.token(r) }, "negotiate-refused", "", `"why":"wrong-realm"`},
		"a disabled account":    {func(k *kerberos) http.Header { return k.ticket("disabled") }, "account-disabled", "may not sign in", `"method":"kerberos"`},
		"somebody else's user":  {func(k *kerberos) http.Header { return k.ticket("stranger") }, "not-allowed", "may not sign in", `"method":"kerberos"`},
		"without a page before": {func(k *kerberos) http.Header { return k.ticket("alice") }, "negotiate-refused", "", `another browser`},
	} {
		t.Run(name, func(t *testing.T) {
			k := kerberosWorld(t, false, ldapWorldConfig("staff"))
			b := k.browser().get("https://app.example.com/")
			if name == "without a page before" {
				link := b.last.String()
				b.forget()
				b.do(http.MethodGet, link, nil, tt.header(k))
			} else {
				b.answer(tt.header(k))
			}
			want := 200
			if tt.says != "" { // as by password
				want = 403
			}
			if b.code != want || b.head.Get("Www-Authenticate") != "" || !b.form() {
				t.Errorf("got %d, WWW-Authenticate %q, form %v; want the form and no question", b.code, b.head.Get("Www-Authenticate"), b.form())
			}
			if says := strings.Contains(b.page, "may not sign in"); says != (tt.says != "") || strings.Contains(b.page, "are not right") {
				t.Errorf("the page says too much or too little: %s", b.page)
			}
			if k.results(tt.result) != 1 || k.results("ok") != 0 || !strings.Contains(k.audit.String(), tt.audit) {
				t.Errorf("want one %s with %s in the audit log: %.2000s", tt.result, tt.audit, k.audit)
			}
			if k.dir.asked.Load() != 0 {
				t.Error("somebody was signed in")
			}
			// And the form that is there works.
			if name != "without a page before" {
				b.signIn("bob", "password")
				if !strings.HasPrefix(b.page, "hello bob") {
					t.Errorf("by the form: %d %q", b.code, b.page)
				}
			}
		})
	}
}

func negotiateHeader(value string) http.Header {
	return http.Header{"Authorization": {"Negotiate " + value}}
}

func TestTicketIsReplayed(t *testing.T) {
	k := kerberosWorld(t, false, ldapWorldConfig("staff"))
	h := k.ticket("alice")
	k.browser().get("https://app.example.com/").answer(h)
	b := k.browser().get("https://app.example.com/").answer(h)
	if b.code != 200 || !b.form() || k.results("ok") != 1 || !strings.Contains(k.audit.String(), `"why":"replayed"`) {
		t.Errorf("got %d at %s; audit %s", b.code, b.last, k.audit)
	}
}

func TestTicketOfABlockedUser(t *testing.T) {
	k := kerberosWorld(t, false, ldapWorldConfig("staff"))
	k.browser().get("https://app.example.com/").answer(k.ticket("alice"))
	if _, err := k.provider.Block(t.Context(), "staff", "id-alice", k.now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	b := k.browser().get("https://app.example.com/").answer(k.ticket("alice"))
	if b.code != 403 || !b.form() || k.results("blocked") != 1 || !strings.Contains(b.page, "may not sign in") {
		t.Errorf("got %d at %s %q; audit %s", b.code, b.last, b.page, k.audit)
	}
}

func TestTicketWhileTheDirectoryIsDown(t *testing.T) {
	k := kerberosWorld(t, false, ldapWorldConfig("staff"))
	k.dir.down.Store(true)
	b := k.browser().get("https://app.example.com/").answer(k.ticket("alice"))
	if b.code != 503 || b.head.Get("Retry-After") == "" || !b.form() || b.head.Get("Www-Authenticate") != "" {
		t.Errorf("got %d %v", b.code, b.head)
	}
}

func TestTicketReplacesTheSessionOfAnotherUser(t *testing.T) {
	k := kerberosWorld(t, false, ldapWorldConfig("staff", "plain"))
	b := k.browser().get("https://app.example.com/")
	b.signIn("bob", "password")
	if !strings.HasPrefix(b.page, "hello bob") {
		t.Fatalf("got %d %q", b.code, b.page)
	}
	old, err := k.store.ListAuthSessions(t.Context())
	if err != nil || len(old) != 1 {
		t.Fatalf("%d sessions, %v", len(old), err)
	}
	// As where the issuer's cookie belongs to a session that does not serve for the request.
	if err := k.store.UpdateAuthSession(t.Context(), old[0].ID, func(s storage.AuthSession) (storage.AuthSession, error) {
		s.ConnectorID = "plain"
		return s, nil
	}); err != nil {
		t.Fatal(err)
	}
	b.get(clientURL("v") + "&connector_id=staff")
	if b.answer(k.ticket("alice")); b.last.Host != "web.example.com" {
		t.Fatalf("got %d at %s", b.code, b.last)
	}
	now, err := k.store.ListAuthSessions(t.Context())
	if err != nil || len(now) != 1 || now[0].ID == old[0].ID || now[0].UserID != "id-alice" {
		t.Errorf("sessions %v, %v; want one new one of alice", now, err)
	}
}

func TestNobodyIsAskedForATicket(t *testing.T) {
	for name, tt := range map[string]struct {
		text   string
		target string
		header http.Header
	}{
		"who asks for the form":             {target: "https://app.example.com/", header: http.Header{"X-Form": {"1"}}},
		"of a client that wants a login":    {target: clientURL("v") + "&prompt=login"},
		"of a client that wants a choice":   {target: clientURL("v") + "&prompt=select_account"},
		"of a client that wants it fresh":   {target: clientURL("v") + "&max_age=60"},
		"in a frame":                        {target: "https://app.example.com/", header: http.Header{"Sec-Fetch-Dest": {"iframe"}}},
		"as a picture":                      {target: "https://app.example.com/", header: http.Header{"Sec-Fetch-Dest": {"image"}}},
		"of the connector that comes after": {text: ldapWorldConfig("plain", "staff"), target: clientURL("v") + "&connector_id=staff"},
		"of a connector without kerberos":   {text: ldapWorldConfig("plain"), target: "https://app.example.com/"},
		"over plain http":                   {text: strings.ReplaceAll(ldapWorldConfig("staff"), "issuer: https:", "issuer: http:"), target: strings.Replace(clientURL("v"), "https:", "http:", 1)},
	} {
		t.Run(name, func(t *testing.T) {
			text := tt.text
			if text == "" {
				text = ldapWorldConfig("staff")
			}
			k := kerberosWorld(t, false, text)
			b := k.browser().do(http.MethodGet, tt.target, nil, tt.header)
			if tt.header.Get("X-Form") != "" {
				b.get(b.last.String() + "&form=1")
			}
			if b.code != 200 || !b.form() || b.head.Get("Www-Authenticate") != "" {
				t.Fatalf("got %d, WWW-Authenticate %q, form %v at %s", b.code, b.head.Get("Www-Authenticate"), b.form(), b.last)
			}
			// Nor is a ticket taken that comes unasked.
			h := k.ticket("alice")
			maps.Copy(h, tt.header)
			if b.answer(h); b.code != 200 || !b.form() || k.dir.asked.Load() != 0 {
				t.Errorf("with a ticket: %d at %s", b.code, b.last)
			}
		})
	}
}

func TestTicketIsTakenByGetOnly(t *testing.T) {
	k := kerberosWorld(t, false, ldapWorldConfig("staff"))
	b := k.browser().get("https://app.example.com/")
	link := b.last.String()
	if b.do(http.MethodHead, link, nil, nil); b.code != 200 || b.head.Get("Www-Authenticate") != "" {
		t.Errorf("HEAD: %d, WWW-Authenticate %q", b.code, b.head.Get("Www-Authenticate"))
	}
	h := k.ticket("alice")
	h.Set("Origin", "https://sso.example.com")
	if b.do(http.MethodPost, link, url.Values{"login": {"bob"}, "password": {"wrong"}}, h); b.code != 401 || k.dir.asked.Load() != 0 {
		t.Errorf("POST with a ticket and a wrong password: %d", b.code)
	}
}

func TestSomebodyElseSignsInAfterASignOut(t *testing.T) {
	k := kerberosWorld(t, false, ldapWorldConfig("staff"))
	b := k.browser().get("https://app.example.com/").answer(k.ticket("alice"))
	all, err := k.store.ListAuthSessions(t.Context())
	if err != nil || len(all) != 1 {
		t.Fatalf("%d sessions, %v", len(all), err)
	}
	next, err := k.provider.SignOut(t.Context(), all[0].ID) // as the gateway does, which then leads to next
	if err != nil || next != issuer+"/logout/callback" {
		t.Fatalf("after a sign-out the browser goes to %q, %v", next, err)
	}
	if b.get(next); b.code != 200 {
		t.Fatalf("got %d", b.code)
	}
	if b.get("https://app.example.com/"); b.code != 200 || !b.form() || b.head.Get("Www-Authenticate") != "" {
		t.Fatalf("got %d, WWW-Authenticate %q: want the form", b.code, b.head.Get("Www-Authenticate"))
	}
	if b.answer(k.ticket("alice")); b.code != 200 || !b.form() { // browsers send tickets unasked to where they once did
		t.Errorf("a ticket that comes unasked: %d at %s", b.code, b.last)
	}
	b.signIn("bob", "password")
	if !strings.HasPrefix(b.page, "hello bob") {
		t.Errorf("got %d %q", b.code, b.page)
	}
}

func TestWithoutFormATicketIsNeeded(t *testing.T) {
	k := kerberosWorld(t, true, ldapWorldConfig("staff"))
	b := k.browser().get("https://app.example.com/")
	if b.code != 401 || b.head.Get("Www-Authenticate") != "Negotiate" || b.form() || !strings.Contains(b.page, "did not sign you in") {
		t.Fatalf("got %d, WWW-Authenticate %q, form %v: %s", b.code, b.head.Get("Www-Authenticate"), b.form(), b.page)
	}
	link := b.last.String()
	if b.answer(k.ticket("disabled")); b.code != 403 || b.form() || b.head.Get("Www-Authenticate") != "" {
		t.Errorf("a disabled account: %d, form %v", b.code, b.form())
	}
	if b.get(link + "&form=1"); b.code != 401 || b.form() {
		t.Errorf("with form=1: %d, form %v", b.code, b.form())
	}
	if b.do(http.MethodGet, link, nil, k.ticket("alice")); !strings.HasPrefix(b.page, "hello alice") {
		t.Errorf("got %d %q", b.code, b.page)
	}
}
