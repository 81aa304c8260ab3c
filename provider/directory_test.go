package provider

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"gatehouse/connectors"
	"gatehouse/internal/seal"
	"gatehouse/provider/identity"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/connector"
	"github.com/dexidp/dex/storage"
)

const directoryConfig = `
issuer: https://sso.example.com/dex
storage: {type: memory}
enablePasswordDB: true
oauth2: {skipApprovalScreen: true}
connectors:
- {type: ldap, id: ad, name: Directory, config: {host: "ldap.example.com:636", userSearch: {baseDN: "ou=people", username: uid, idAttr: uid, emailAttr: mail}}}
staticPasswords:
- {email: admin@example.com, username: admin, userID: u1, groups: [admins, staff], hash: "` + hash + `"}
gateway:
  hosts: [sso.example.com, app.example.com]
  default: signed-in
`

// A staff is a directory of one person, ann, whose password is "right".
type staff struct {
	mu       sync.Mutex
	password string
	state    *connectors.Refusal // told after the right password
	any      *connectors.Refusal // told whatever the password is
	then     *connectors.Refusal // told so once the password is another
	calls    []string
}

type staffAccount string

func (a staffAccount) Key() string { return string(a) }

func (s *staff) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// taken returns the calls since the last time.
func (s *staff) taken() (calls []string) {
	s.set(func() { calls, s.calls = s.calls, nil })
	return calls
}

func (s *staff) Prompt() string   { return "" }
func (s *staff) MaxFailures() int { return 0 }

func (s *staff) Find(_ context.Context, name string) (identity.Account, error) {
	s.set(func() { s.calls = append(s.calls, "find") })
	return staffAccount(name), nil
}

func (s *staff) Authenticate(_ context.Context, a identity.Account, password string) (id connectors.Identity, err error) {
	s.set(func() {
		s.calls = append(s.calls, "bind")
		switch {
		case s.any != nil:
			err = s.any
		case a.Key() != "ann" || password != s.password:
			err = &connectors.Refusal{Reason: connectors.WrongCredentials}
		case s.state != nil:
			err = s.state
		}
	})
	return connectors.Identity{UserID: "id-ann", Name: "Ann", Email: "ann@example.com", Groups: []string{"staff"}}, err
}

func (s *staff) ChangePassword(_ context.Context, a identity.Account, old, changed string) (err error) {
	s.set(func() {
		s.calls = append(s.calls, "change")
		switch {
		case s.any != nil:
			err = s.any
		case a.Key() != "ann" || old != s.password:
			err = &connectors.Refusal{Reason: connectors.WrongCredentials}
		case strings.HasPrefix(changed, "weak"):
			err = &connectors.Refusal{Reason: connectors.PasswordRejected, Changeable: true, Detail: "in history <b>of 24</b>"}
		default:
			s.password, s.state, s.any = changed, nil, s.then
		}
	})
	return err
}

func (s *staff) UserID(a identity.Account) string { return "id-" + a.Key() }

func staffWorld(t *testing.T) (*world, *staff) {
	t.Helper()
	s, clk := &staff{password: "right"}, &clock{}
	return newWorldWith(t, directoryConfig, store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk,
		func(storage.Connector) (connector.Connector, error) { return s, nil }), s
}

// ownOrigin are the headers of a form of the issuer's page. With a request id that is given, two answers to it can be the same.
func ownOrigin() http.Header {
	return http.Header{"Origin": {"https://sso.example.com"}, "X-Request-Id": {"same-id"}}
}

func (w *world) signIns(result string) float64 {
	w.t.Helper()
	all, err := w.metrics.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range all {
		for _, m := range f.GetMetric() {
			if f.GetName() == "gatehouse_sign_ins_total" && strings.Contains(m.String(), `"`+result+`"`) && strings.Contains(m.String(), `"ad"`) {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

// Where several connectors take passwords, the form says whose.
func TestFormNamesItsDirectory(t *testing.T) {
	w, _ := staffWorld(t)
	b := w.browser().get("https://app.example.com/")
	if !strings.Contains(b.page, "<bdi>Directory</bdi></strong>") {
		t.Errorf("the form of one of two: %s", b.page)
	}
	clk := &clock{}
	alone := strings.Replace(directoryConfig, "enablePasswordDB: true\n", "", 1)
	alone = alone[:strings.Index(alone, "staticPasswords")] + alone[strings.Index(alone, "gateway:"):]
	w = newWorldWith(t, alone, store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk,
		func(storage.Connector) (connector.Connector, error) { return &staff{password: "right"}, nil })
	if b := w.browser().get("https://app.example.com/"); strings.Contains(b.page, "Directory") || !strings.Contains(b.page, `name="password"`) {
		t.Errorf("the only form: %s", b.page)
	}
}

func TestAccountStatesAreTold(t *testing.T) {
	for _, tt := range []struct {
		no     connectors.Refusal
		status int
		en, de string
		waits  string
	}{
		{no: connectors.Refusal{Reason: connectors.AccountDisabled}, status: 403, en: "may not sign in", de: "keine Anmeldung möglich"},
		{no: connectors.Refusal{Reason: connectors.AccountExpired}, status: 403, en: "account has expired", de: "Konto ist abgelaufen"},
		{no: connectors.Refusal{Reason: connectors.OutsideHours}, status: 403, en: "at this time", de: "zu dieser Zeit"},
		{no: connectors.Refusal{Reason: connectors.OtherWorkstation}, status: 403, en: "certain computers", de: "bestimmten Computern"},
		{no: connectors.Refusal{Reason: connectors.NotAllowed}, status: 403, en: "may not sign in", de: "keine Anmeldung möglich"},
		{no: connectors.Refusal{Reason: connectors.PasswordExpired}, status: 403, en: "cannot be changed here", de: "lässt sich hier nicht ändern"},
		{no: connectors.Refusal{Reason: connectors.PasswordMustChange}, status: 403, en: "cannot be chosen here", de: "Hier lässt es sich nicht festlegen"},
		{no: connectors.Refusal{Reason: connectors.PasswordExpired, Changeable: true}, status: 403, en: "Choose a new password", de: "Neues Passwort festlegen"},
		{no: connectors.Refusal{Reason: connectors.PasswordMustChange, Changeable: true}, status: 403, en: "of your own", de: "eigenes Passwort"},
		{no: connectors.Refusal{Reason: connectors.Unavailable}, status: 503, en: "does not answer", de: "nicht antwortet", waits: "1"},
	} {
		t.Run(string(tt.no.Reason), func(t *testing.T) {
			w, dir := staffWorld(t)
			dir.state = &tt.no
			b := w.browser().get("https://app.example.com/")
			action := b.action()
			form := url.Values{"login": {"ann"}, "password": {"right"}}
			for lang, want := range map[string]string{"": tt.en, "de-AT,de;q=0.9,en;q=0.3": tt.de} {
				header := ownOrigin()
				header.Set("Accept-Language", lang)
				b.do(http.MethodPost, action, form, header)
				if b.code != tt.status || !strings.Contains(b.page, want) || b.head.Get("Retry-After") != tt.waits {
					t.Errorf("%q: status %d, Retry-After %q, want %d, %q, and %q on the page:\n%s", lang, b.code, b.head.Get("Retry-After"), tt.status, tt.waits, want, b.page)
				}
			}
			if n := w.signIns(string(tt.no.Reason)); n != 2 {
				t.Errorf("counted %v, want 2", n)
			}
			if !strings.Contains(w.audit.String(), `"result":"`+string(tt.no.Reason)+`","connector":"ad","user":"ann"`) {
				t.Errorf("audit: %s", w.audit)
			}
			// Whoever does not know the password learns nothing.
			form.Set("password", "guess")
			if b.do(http.MethodPost, action, form, ownOrigin()); b.code != 401 || strings.Contains(b.page, tt.en) {
				t.Errorf("with a wrong password: %d %s", b.code, b.page)
			}
		})
	}
}

// The answer to a wrong password is the same, byte for byte, whatever the directory says of the account.
func TestWhatIsNotTold(t *testing.T) {
	for _, where := range []string{"login", "password"} {
		t.Run(where, func(t *testing.T) {
			w, dir := staffWorld(t)
			b := w.browser().get("https://app.example.com/")
			action := strings.Replace(b.action(), "/auth/ad/login", "/auth/ad/"+where, 1)
			answer := func(no *connectors.Refusal) string {
				dir.set(func() { dir.any = no })
				form := url.Values{"login": {"bob"}, "password": {"x"}, "new_password": {"y"}, "new_password_again": {"y"}}
				b.do(http.MethodPost, action, form, ownOrigin())
				h := b.head.Clone()
				h.Del("Date")
				all := []string{http.StatusText(b.code), b.page}
				for _, k := range []string{"Content-Type", "Set-Cookie", "Retry-After", "Content-Security-Policy", "Content-Length"} {
					all = append(all, k+": "+strings.Join(h.Values(k), "|"))
				}
				return strings.Join(all, "\n")
			}
			want := answer(nil) // nobody, or a wrong password
			if !strings.HasPrefix(want, "Unauthorized") || !strings.Contains(want, "may be locked for a while") {
				t.Fatalf("got %s", want)
			}
			for _, r := range []connectors.Reason{connectors.WrongCredentials, connectors.AccountLocked, connectors.Gone} {
				if got := answer(&connectors.Refusal{Reason: r, Detail: "locked out"}); got != want {
					t.Errorf("%s:\n%s\nwant\n%s", r, got, want)
				}
				if !strings.Contains(w.audit.String(), `"result":"`+string(r)+`"`) {
					t.Errorf("%s: audit: %s", r, w.audit)
				}
			}
		})
	}
}

func TestExpiredPasswordIsChangedOnThePage(t *testing.T) {
	w, dir := staffWorld(t)
	dir.state = &connectors.Refusal{Reason: connectors.PasswordExpired, Changeable: true}
	b := w.browser().get("https://app.example.com/deep?x=1")
	signInPage := b.action()
	b.do(http.MethodPost, signInPage, url.Values{"login": {"ann"}, "password": {"right"}, "remember_me": {"on"}}, ownOrigin())
	action := b.action()
	if u, _ := url.Parse(action); u.Path != "/dex/auth/ad/password" || u.RawQuery != strings.SplitN(signInPage, "?", 2)[1] {
		t.Fatalf("the form posts to %s", action)
	}
	if strings.Contains(b.page, "right") || !strings.Contains(b.page, `value="ann"`) || !strings.Contains(b.page, `name="remember_me" type="hidden"`) {
		t.Errorf("the page has the password, or lacks the name or the wish to be remembered:\n%s", b.page)
	}
	if csp := b.head.Get("Content-Security-Policy"); !strings.Contains(csp, "form-action 'self' https://app.example.com") {
		t.Errorf("policy %q", csp)
	}
	b.do(http.MethodPost, action, url.Values{
		"login": {"ann"}, "password": {"right"}, "new_password": {"much better"}, "new_password_again": {"much better"}, "remember_me": {"on"},
	}, ownOrigin())
	if want := "hello ann@example.com [staff] at /deep?x=1"; b.page != want {
		t.Fatalf("got %d %q, want %q", b.code, b.page, want)
	}
	if got := dir.taken(); !slices.Equal(got, []string{"find", "bind", "find", "change", "find", "bind"}) {
		t.Errorf("asked the directory %q", got)
	}
	for _, want := range []string{
		`"msg":"sign-in","result":"password-expired"`, `"msg":"password-change","result":"ok","connector":"ad","user":"ann"`, `"msg":"sign-in","result":"ok"`,
	} {
		if !strings.Contains(w.audit.String(), want) {
			t.Errorf("audit lacks %s: %s", want, w.audit)
		}
	}
	for _, secret := range []string{"right", "much better", "much+better"} {
		if strings.Contains(w.audit.String()+w.logs.String(), secret) {
			t.Errorf("%q is in a log", secret)
		}
	}
}

func TestNewPasswordIsRefused(t *testing.T) {
	long := strings.Repeat("x", 1025)
	for _, tt := range []struct {
		name                       string
		login, old, changed, again string
		any                        *connectors.Refusal
		status                     int
		shows                      string
		asked                      []string
		audit                      string
	}{
		{name: "two different ones", old: "right", changed: "a", again: "b", status: 422, shows: "not the same"},
		{name: "the old one", old: "right", changed: "right", again: "right", status: 422, shows: "same as the current one"},
		{name: "too long", old: "right", changed: long, again: long, status: 422, shows: "too long"},
		{name: "none", old: "right", status: 422, shows: "does not meet", audit: "password-rejected"},
		{name: "no old one", changed: "better", again: "better", status: 401, shows: "current password is not right", audit: "wrong-credentials"},
		{
			name: "weak", old: "right", changed: "weak", again: "weak", status: 422, shows: "in history &lt;b&gt;of 24&lt;/b&gt;",
			asked: []string{"find", "change"}, audit: "password-rejected",
		},
		{
			name: "a wrong old one", old: "guess", changed: "better", again: "better", status: 401, shows: "current password is not right",
			asked: []string{"find", "change"}, audit: "wrong-credentials",
		},
		{
			name: "nobody", login: "bob", old: "guess", changed: "better", again: "better", status: 401, shows: "current password is not right",
			asked: []string{"find", "change"}, audit: "wrong-credentials",
		},
		{
			name: "the directory is down", old: "right", changed: "better", again: "better", any: &connectors.Refusal{Reason: connectors.Unavailable},
			status: 503, shows: "does not answer", asked: []string{"find", "change"}, audit: "unavailable",
		},
		{
			name: "the account is disabled", old: "right", changed: "better", again: "better", any: &connectors.Refusal{Reason: connectors.AccountDisabled},
			status: 403, shows: "may not sign in", asked: []string{"find", "change"}, audit: "account-disabled",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, dir := staffWorld(t)
			dir.any = tt.any
			b := w.browser().get("https://app.example.com/")
			action := strings.Replace(b.action(), "/auth/ad/login", "/auth/ad/password", 1)
			if tt.login == "" {
				tt.login = "ann"
			}
			b.do(http.MethodPost, action, url.Values{"login": {tt.login}, "password": {tt.old}, "new_password": {tt.changed}, "new_password_again": {tt.again}}, ownOrigin())
			if b.code != tt.status || !strings.Contains(b.page, tt.shows) {
				t.Errorf("status %d, want %d and %q in\n%s", b.code, tt.status, tt.shows, b.page)
			}
			if got := dir.taken(); !slices.Equal(got, tt.asked) {
				t.Errorf("asked the directory %q, want %q", got, tt.asked)
			}
			if got := strings.Contains(w.audit.String(), `"msg":"password-change","result":"`+tt.audit+`"`); got != (tt.audit != "") {
				t.Errorf("audit: %s", w.audit)
			}
			if dir.password != "right" {
				t.Error("the password has changed")
			}
			if all, err := w.provider.Sessions(t.Context()); err != nil || len(all) != 0 {
				t.Errorf("%d sessions (%v), want none", len(all), err)
			}
		})
	}
}

// A wrong current password counts as one at the sign-in does, here and there.
func TestGuessesAtTheChangeFormCount(t *testing.T) {
	w, dir := staffWorld(t)
	b := w.browser().get("https://app.example.com/")
	signIn := b.action()
	change := strings.Replace(signIn, "/auth/ad/login", "/auth/ad/password", 1)
	form := url.Values{"login": {"ann"}, "password": {"guess"}, "new_password": {"x"}, "new_password_again": {"x"}}
	for range 5 {
		b.do(http.MethodPost, change, form, ownOrigin())
	}
	dir.taken()
	form.Set("password", "right")
	for _, target := range []string{change, signIn} {
		b.do(http.MethodPost, target, form, ownOrigin())
		if b.code != http.StatusTooManyRequests || b.head.Get("Retry-After") == "" || len(dir.taken()) != 0 {
			t.Errorf("%s: status %d, Retry-After %q", target, b.code, b.head.Get("Retry-After"))
		}
	}
}

func TestChangeFormIsRefused(t *testing.T) {
	form := url.Values{"login": {"ann"}, "password": {"right"}, "new_password": {"better"}, "new_password_again": {"better"}}
	for name, tt := range map[string]struct {
		edit   func(action string) string
		forget bool
		header http.Header
		want   int
	}{
		"from another origin":                     {header: http.Header{"Origin": {"https://app.example.com"}}, want: 403},
		"from origin null":                        {header: http.Header{"Origin": {"null"}}, want: 403},
		"cross-site by Sec-Fetch-Site":            {header: http.Header{"Sec-Fetch-Site": {"cross-site"}}, want: 403},
		"by a script that never fetched the page": {forget: true, want: 400},
		"with a damaged request":                  {edit: func(a string) string { return strings.Replace(a, "req=", "req=A", 1) }, header: ownOrigin(), want: 400},
		"without a request":                       {edit: func(string) string { return issuer + "/auth/ad/password" }, header: ownOrigin(), want: 400},
		"where passwords stay":                    {edit: func(a string) string { return strings.Replace(a, "/auth/ad/", "/auth/local/", 1) }, header: ownOrigin(), want: 404},
		"where there is no connector":             {edit: func(a string) string { return strings.Replace(a, "/auth/ad/", "/auth/x/", 1) }, header: ownOrigin(), want: 404},
	} {
		t.Run(name, func(t *testing.T) {
			w, dir := staffWorld(t)
			b := w.browser().get("https://app.example.com/")
			action := strings.Replace(b.action(), "/auth/ad/login", "/auth/ad/password", 1)
			if tt.edit != nil {
				action = tt.edit(action)
			}
			if tt.forget {
				b.forget()
			}
			if b.do(http.MethodPost, action, form, tt.header); b.code != tt.want {
				t.Errorf("status %d, want %d: %s", b.code, tt.want, b.page)
			}
			if got := dir.taken(); len(got) != 0 || dir.password != "right" {
				t.Errorf("the directory was asked: %q", got)
			}
		})
	}
}

// A page that is reloaded, or an address that is kept, leads to the sign-in page.
func TestChangeFormByAddress(t *testing.T) {
	w, _ := staffWorld(t)
	b := w.browser().get("https://app.example.com/")
	action := b.action()
	b.get(strings.Replace(action, "/auth/ad/login", "/auth/ad/password", 1))
	if b.code != http.StatusOK || b.last.String() != action || strings.Contains(b.page, "new_password") {
		t.Errorf("%d at %s, want the sign-in page", b.code, b.last)
	}
}

func TestPromptOfConnectors(t *testing.T) {
	w, _ := staffWorld(t)
	b := w.browser().get("https://app.example.com/")
	req := strings.SplitN(b.action(), "?", 2)[1]
	for path, want := range map[string]string{"ad": "E-Mail-Adresse oder Benutzername</label>", "local": ">E-Mail-Adresse</label>"} {
		b.do(http.MethodGet, issuer+"/auth/"+path+"/login?"+req, nil, http.Header{"Accept-Language": {"de"}})
		if !strings.Contains(b.page, want) || b.head.Get("Content-Language") != "de" || !strings.Contains(b.head.Get("Vary"), "Accept-Language") {
			t.Errorf("%s: want %q in %q Vary %q:\n%s", path, want, b.head.Get("Content-Language"), b.head.Get("Vary"), b.page)
		}
	}
}
