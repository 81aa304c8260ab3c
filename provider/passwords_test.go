package provider

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"gatehouse/connectors"
	"gatehouse/internal/seal"
	"gatehouse/provider/identity"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/connector"
	"github.com/dexidp/dex/storage"
)

func TestLatestPassword(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	noticed, long := now.Add(-1), now.Add(-time.Hour)
	known := func(set int64, since time.Time) *store.KnownPassword {
		return &store.KnownPassword{Set: set, Since: since}
	}
	over := func(set int64, since time.Time) *store.KnownPassword {
		return &store.KnownPassword{Set: set, Since: since, Pending: true, TokensOver: since}
	}
	with := func(k *store.KnownPassword, edit func(*store.KnownPassword)) *store.KnownPassword {
		edit(k)
		return k
	}
	reset := func(k *store.KnownPassword) { k.Reset = true }
	own := func(k *store.KnownPassword) { k.Own, k.OwnUntil = true, k.Since.Add(serversLag) }
	seen := func(k *store.KnownPassword) { k.Own = true }
	for _, tt := range []struct {
		name  string
		known *store.KnownPassword
		set   connectors.PasswordSet
		want  *store.KnownPassword // nil: as it was
		news  bool
	}{
		{"nothing is known, and nothing told", nil, 0, nil, false},
		{"the first time that anything is told", nil, 7, known(7, time.Time{}), false},
		{"the first time, that it was never set", nil, connectors.PasswordNeverSet, known(1, time.Time{}), false},
		{"the first time, that it must be changed", nil, connectors.PasswordReset, with(known(0, time.Time{}), reset), false},
		{"the same", known(7, long), 7, nil, false},
		{"a later one", known(7, long), 8, over(8, noticed), true},
		{"a later one, and it was never set before", known(1, time.Time{}), 8, over(8, noticed), true},
		{"an earlier one: a server that lags", known(7, long), 6, nil, false},
		{"none: another server does not have them", known(7, long), connectors.PasswordNeverSet, nil, false},
		{"not known any more", known(7, long), 0, nil, false},
		{"reset", known(7, long), connectors.PasswordReset, with(over(7, noticed), reset), true},
		{"still reset", with(known(7, long), reset), connectors.PasswordReset, nil, false},
		{"reset, says a server that lags", with(known(7, now.Add(-serversLag+1)), reset), 7, nil, false},
		{"reset, and taken back", with(known(7, long), reset), 7, known(7, long), false},
		{"reset, and a server that was set back", with(known(7, long), reset), 6, nil, false},
		{"chosen after a reset", with(known(7, long), reset), 8, over(8, noticed), true},
		{"chosen after a reset, which is all that was known", with(known(0, time.Time{}), reset), 8, over(8, noticed), true},
		{"reset, just after a change", known(7, now.Add(-59*time.Second)), connectors.PasswordReset, nil, false},
		{"reset, a while after a change", known(7, now.Add(-time.Minute)), connectors.PasswordReset, with(over(7, noticed), reset), true},
		{"reset, and the clock was ahead before", known(7, now.Add(time.Hour)), connectors.PasswordReset, with(over(7, noticed), reset), true},
		{"a later one, and the clock was ahead before", known(7, now.Add(time.Hour)), 8, over(8, noticed), true},
		{"a later one, and what began before another change is still to be ended", over(7, long), 8, over(8, noticed), true},
		{"changed here, and told for the first time", with(known(7, now.Add(-time.Minute)), own), 8, with(known(8, now.Add(-time.Minute)), seen), false},
		{"changed here, and nothing else was ever told", with(known(0, now.Add(-time.Minute)), own), 8, with(known(8, now.Add(-time.Minute)), seen), false},
		{"changed here, and told before", with(known(8, now.Add(-time.Minute)), seen), 9, over(9, noticed), true},
		{"changed here, too long ago to be told", with(known(7, now.Add(-serversLag)), own), 8, over(8, noticed), true},
		{"changed here, when the clock was ahead", with(known(7, now.Add(time.Second)), own), 8, over(8, noticed), true},
	} {
		before := store.KnownPassword{}
		if tt.known != nil {
			before = *tt.known
		}
		got, news := latest(tt.known, tt.set, now)
		switch {
		case news != tt.news:
			t.Errorf("%s: news %v", tt.name, news)
		case tt.want == nil && got != tt.known:
			t.Errorf("%s: got %+v, want what was known", tt.name, got)
		case tt.want != nil && (got == nil || *got != *tt.want):
			t.Errorf("%s: got %+v, want %+v", tt.name, got, tt.want)
		}
		if tt.known != nil && *tt.known != before {
			t.Errorf("%s: what was known is modified", tt.name)
		}
	}
}

func TestFormerPassword(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	since := now.Add(-time.Minute)
	known := store.KnownPassword{Set: 7, Since: since}
	own, reset, ahead, unknown, old := known, known, known, known, known
	own.Own, own.OwnUntil = true, since.Add(serversLag)
	reset.Reset = true
	ahead.Since = now.Add(time.Hour)
	unknown.Set, unknown.Own, unknown.OwnUntil = 0, true, since.Add(serversLag)
	old.Since = now.Add(-serversLag)
	for _, tt := range []struct {
		name  string
		known *store.KnownPassword
		set   connectors.PasswordSet
		began time.Time
		want  bool
	}{
		{"nothing is known", nil, 7, since, false},
		{"there was no other one", &store.KnownPassword{Set: 7}, 6, since, false},
		{"the known one, looked at before that was noticed", &known, 7, since.Add(-time.Second), false},
		{"a later one, looked at before that", &known, 8, since.Add(-time.Second), false},
		{"a former one, looked at before that", &known, 6, since, true},
		{"one that is not told, looked at before that", &known, 0, since, true},
		{"one that was never set, looked at before that", &known, 1, since, true},
		{"a former one, says a server that lags", &known, 6, now, true},
		{"a former one, and all servers have had the time", &old, 6, now, false},
		{"one that is not told", &known, 0, now, false},
		{"one that was never set, at a server that does not note it", &known, 1, now, false},
		{"one that must be changed, by a ticket", &known, connectors.PasswordReset, now, false},
		{"changed here, looked at before that", &own, 7, since, true},
		{"changed here, looked at since, at a server that lags", &own, 7, now, false},
		{"changed here, and told", &own, 8, since, false},
		{"changed here, and nothing is ever told, looked at before that", &unknown, 0, since, true},
		{"changed here, and nothing is ever told", &unknown, 0, now, false},
		{"reset, looked at before that was noticed", &reset, 7, since, true},
		{"reset, at a server that does not know", &reset, 7, now, true},
		{"the clock was ahead", &ahead, 6, now, false},
	} {
		if got := former(tt.known, identity.Evidence{Set: tt.set, Began: tt.began}, now); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

// A vault is staff whose directory tells when ann's password was set.
type vault struct {
	*staff

	sets   connectors.PasswordSet
	told   connectors.PasswordSet // by Find and Lookup in its place; 0: sets
	looked func()                 // called once, when a password was found to be right
}

func (v *vault) now() (set connectors.PasswordSet) {
	v.set(func() {
		if set = v.sets; v.told != 0 {
			set = v.told
		}
	})
	return set
}

// change is what an administrator does.
func (v *vault) change(password string, set connectors.PasswordSet) {
	v.staff.set(func() { v.password, v.sets = password, set })
}

type vaultAccount struct {
	staffAccount
	sets connectors.PasswordSet
}

func (v *vault) Find(ctx context.Context, name string) (identity.Account, error) {
	a, err := v.staff.Find(ctx, name)
	return vaultAccount{a.(staffAccount), v.now()}, err
}

func (v *vault) Authenticate(ctx context.Context, a identity.Account, password string) (connectors.Identity, error) {
	id, err := v.staff.Authenticate(ctx, a, password)
	id.PasswordSet = a.(vaultAccount).sets
	if err == nil {
		var looked func()
		v.set(func() { looked, v.looked = v.looked, nil })
		if looked != nil {
			looked()
		}
	}
	return id, err
}

func (v *vault) ChangePassword(ctx context.Context, a identity.Account, old, changed string) error {
	err := v.staff.ChangePassword(ctx, a, old, changed)
	if err == nil {
		v.set(func() {
			if v.sets != connectors.PasswordUnknown {
				v.sets = max(v.sets, 1) + 1
			}
		})
	}
	return err
}

// Lookup implements identity.Asker.
func (v *vault) Lookup(_ context.Context, ids []string) ([]connectors.Answer, error) {
	answers := make([]connectors.Answer, len(ids))
	for i, id := range ids {
		answers[i].Identity = connectors.Identity{UserID: id, Name: "Ann", Email: "ann@example.com", Groups: []string{"staff"}, PasswordSet: v.now()}
	}
	return answers, nil
}

// Refresh implements connector.RefreshConnector.
func (v *vault) Refresh(_ context.Context, _ connector.Scopes, id connector.Identity) (connector.Identity, error) {
	return id, nil
}

// vaultConfig is directoryConfig with clients, and the password grant.
func vaultConfig(t *testing.T) string {
	t.Helper()
	text := edited(t, directoryConfig, "oauth2: {skipApprovalScreen: true}", `oauth2:
  skipApprovalScreen: true
  passwordConnector: ad
  grantTypes: [authorization_code, refresh_token, password, "urn:ietf:params:oauth:grant-type:device_code"]`)
	return edited(t, text, "gateway:\n", `staticClients:
- {id: web, name: The Web App, secret: not-a-default-secret-5591, redirectURIs: ["https://web.example.com/cb"]}
- {id: tv, name: A television, public: true, redirectURIs: ["/dex/device/callback"]}
gateway:
`)
}

// vaultWorld has ann's password "right" set at 5.
func vaultWorld(t *testing.T) (*world, *clock, *vault) {
	t.Helper()
	clk := &clock{}
	w, v := vaultWorldOn(t, store.Memory(store.Options{Now: clk.now}), clk)
	return w, clk, v
}

func vaultWorldOn(t *testing.T, st *store.Store, clk *clock) (*world, *vault) {
	t.Helper()
	v := &vault{staff: &staff{password: "right"}, sets: 5}
	return newWorldWith(t, vaultConfig(t), st, seal.NewKey(), clk, func(storage.Connector) (connector.Connector, error) { return v, nil }), v
}

// later asks about the user of a session again.
func (w *world) later(clk *clock, s *Session) error {
	clk.add(3 * time.Minute)
	return w.vouch(s)
}

// alive reports whether a session is stored.
func (w *world) alive(id string) bool {
	w.t.Helper()
	_, err := w.provider.Session(w.t.Context(), id)
	if err != nil && !errors.Is(err, ErrNoSession) {
		w.t.Fatal(err)
	}
	return err == nil
}

func (w *world) ends(id string) {
	w.t.Helper()
	eventually(w.t, "the session ends", func() bool { return !w.alive(id) })
}

// known is what is stored of ann's password.
func (w *world) knownPassword() store.KnownPassword {
	w.t.Helper()
	i, err := w.store.GetIdentity(w.t.Context(), "id-ann", "ad")
	if err != nil || i.Password == nil {
		w.t.Fatalf("%+v, %v", i, err)
	}
	return *i.Password
}

func (w *world) settled() {
	w.t.Helper()
	eventually(w.t, "all that is over has ended", func() bool { return !w.knownPassword().Pending })
}

func (w *world) refreshes(token string) bool {
	w.t.Helper()
	status, _ := w.formPost("/token", withSecret(url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}}))
	return status == http.StatusOK
}

// choose changes ann's password on the page that goes with a sign-in page of the browser.
func (b *browser) choose(signIn, old, changed string) {
	b.w.t.Helper()
	form := strings.Replace(signIn, "/auth/ad/login", "/auth/ad/password", 1)
	b.do(http.MethodPost, form, url.Values{"login": {"ann"}, "password": {old}, "new_password": {changed}, "new_password_again": {changed}}, ownOrigin())
}

// chooses has ann choose the password "better" in a browser of her own.
func (w *world) chooses() {
	w.t.Helper()
	b := w.browser().get("https://app.example.com/")
	b.choose(b.action(), "right", "better")
}

// TestPasswordResetAtTheDirectory does what an administrator does first about a stolen account.
func TestPasswordResetAtTheDirectory(t *testing.T) {
	for name, set := range map[string]connectors.PasswordSet{"another one": 6, "one that must be changed": connectors.PasswordReset} {
		t.Run(name, func(t *testing.T) {
			w, clk, v := vaultWorld(t)
			thief, other := w.enter("ann", "right"), w.browser()
			other.get("https://app.example.com/")
			other.do(http.MethodPost, strings.Replace(other.action(), "/ad/", "/local/", 1), url.Values{"login": {"admin@example.com"}, "password": {"password"}}, ownOrigin())
			tok := w.browser().clientUser("ann", "right")
			done, s := w.newDevice("tv", "", "openid offline_access"), w.sessionOf("ann@example.com")
			if !hello(thief) || !hello(other) || tok.RefreshToken == "" || !done.agreed(w.browser(), "ann", "right") {
				t.Fatal(thief.code, other.code, tok)
			}
			clk.add(2 * time.Second) // tokens know whole seconds
			v.change("stronger", set)
			if err := w.later(clk, s); !errors.Is(err, identity.ErrEnded) {
				t.Fatalf("at the next question: got %v, want the end", err)
			}
			w.settled()
			if hello(thief.get("https://app.example.com/")) || w.browser().userinfo(tok.AccessToken) == http.StatusOK || w.refreshes(tok.RefreshToken) || done.gets(w) {
				t.Error("what began with the former password goes on")
			}
			if !hello(other.get("https://app.example.com/")) {
				t.Error("another user is signed out")
			}
			w.audited(`"reason":"password-changed","by":"directory","connector":"ad","user":"ann@example.com"`,
				`"msg":"password changed","by":"directory","connector":"ad","user_id":"id-ann"`)
			if b := w.enter("ann", "right"); b.code != http.StatusUnauthorized {
				t.Errorf("the former password: %d", b.code)
			}
			ann := w.enter("ann", "stronger")
			fresh := w.sessionOf("ann@example.com")
			if !hello(ann) || w.later(clk, fresh) != nil || w.later(clk, fresh) != nil || !w.alive(fresh.ID) {
				t.Errorf("the new password: %d", ann.code)
			}
		})
	}
}

// Users of whom this was never noticed, as before an upgrade, keep their sessions, and are noticed for nothing more than before.
func TestPasswordIsNoNews(t *testing.T) {
	clk, d := &clock{}, &brokenDriver{}
	d.Driver = store.MemoryDriver()
	st, err := store.New(t.Context(), d, store.Options{Now: clk.now})
	if err != nil {
		t.Fatal(err)
	}
	w, v := vaultWorldOn(t, st, clk)
	if !hello(w.enter("ann", "right")) {
		t.Fatal("no sign-in")
	}
	s := w.sessionOf("ann@example.com")
	goesOn := func(what string, writes int64) {
		t.Helper()
		d.reset()
		for range 3 {
			if err := w.later(clk, s); err != nil || !w.alive(s.ID) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if n := d.count(); n != writes {
			t.Errorf("%s: %d writes, want %d", what, n, writes)
		}
	}
	goesOn("the same", 0)
	v.set(func() { v.told = 4 })
	goesOn("a server that lags", 0)
	v.set(func() { v.told = connectors.PasswordNeverSet })
	goesOn("a server that does not note it", 0)
	v.set(func() { v.told, v.sets = 0, connectors.PasswordUnknown })
	goesOn("it is not told any more", 0)
	v.set(func() { v.sets = 5 })
	err = st.UpdateIdentity(t.Context(), "id-ann", "ad", func(i store.Identity) (store.Identity, error) {
		i.Password = nil
		return i, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	goesOn("as after an upgrade", 1)
	if k := w.knownPassword(); k != (store.KnownPassword{Set: 5}) {
		t.Errorf("stored: %+v", k)
	}
	// An answer to a question from before a sign-in tells of the password all the same.
	former := connectors.Identity{UserID: s.UserID, Email: "ann@example.com", Groups: []string{"former"}, PasswordSet: 6}
	news, over, err := w.provider.keep(t.Context(), "ad", former, w.now().Add(-time.Hour))
	if err != nil || news || over.IsZero() || len(w.newest().Groups) != 1 || w.newest().Groups[0] != "staff" {
		t.Errorf("an answer from before: news %v, over %s, %v: %q", news, over, err, w.newest().Groups)
	}
	if k := w.knownPassword(); k.Set != 6 || !k.Pending {
		t.Errorf("an answer from before: stored %+v", k)
	}
	v.change("stronger", 6)
	if err := w.later(clk, s); !errors.Is(err, identity.ErrEnded) {
		t.Errorf("another one: got %v, want the end", err)
	}
	w.ends(s.ID)
}

// A sign-in with a later password ends what began with the former one, and nothing of its own.
func TestSignInWithALaterPassword(t *testing.T) {
	w, clk, v := vaultWorld(t)
	thief := w.enter("ann", "right")
	tok := w.browser().clientUser("ann", "right")
	here := w.browser().get("https://app.example.com/")
	page := here.action()
	here.signIn("ann", "right")
	v.change("stronger", 6)
	ann := w.enter("ann", "stronger")
	if !hello(ann) || hello(thief.get("https://app.example.com/")) || w.refreshes(tok.RefreshToken) {
		t.Error("the former sessions go on, or the new one does not")
	}
	w.settled()
	here.do(http.MethodPost, page, url.Values{"login": {"ann"}, "password": {"stronger"}}, ownOrigin())
	if !hello(here.get("https://app.example.com/")) || !hello(ann.get("https://app.example.com/")) {
		t.Errorf("in a browser that was signed in: %d; in the other one: %d", here.code, ann.code)
	}
	again := w.enter("ann", "stronger")
	s := w.newest()
	if !hello(again) || w.later(clk, s) != nil || w.sessionCount() != 3 {
		t.Errorf("%d sessions, want 3", w.sessionCount())
	}
	w.audited(`"reason":"password-changed","by":"directory"`)
}

// Who has chosen another password on our page goes on with it, whatever the directory says of it, and when.
func TestOwnChangeIsNoNews(t *testing.T) {
	for name, lags := range map[string]bool{"told at once": false, "told later": true} {
		for _, signedIn := range []bool{true, false} {
			t.Run(name+map[bool]string{true: ", in a browser that is signed in"}[signedIn], func(t *testing.T) {
				w, clk, v := vaultWorld(t)
				home, away := w.browser().get("https://app.example.com/"), w.enter("ann", "right")
				page := home.action()
				kept := ""
				if signedIn {
					home.signIn("ann", "right")
					kept = w.newest().ID
				}
				clk.add(time.Minute)
				if lags {
					v.set(func() { v.told = 5 })
				}
				home.choose(page, "right", "better")
				if !hello(home.get("https://app.example.com/")) || hello(away.get("https://app.example.com/")) {
					t.Fatalf("%d at %s; away: %d", home.code, home.last, away.code)
				}
				s := w.newest()
				if signedIn && s.ID != kept {
					t.Error("the browser's session is another one")
				}
				for range 2 {
					if err := w.later(clk, s); err != nil || !w.alive(s.ID) {
						t.Errorf("at the next question: %v", err)
					}
				}
				v.set(func() { v.told = 0 })
				for range 2 {
					if err := w.later(clk, s); err != nil || !w.alive(s.ID) {
						t.Errorf("once it is told: %v", err)
					}
				}
				if k := w.knownPassword(); k.Set != 6 || k.Pending || k.Except != "" || !k.OwnUntil.IsZero() {
					t.Errorf("stored: %+v", k)
				}
				v.change("stronger", 7)
				if err := w.later(clk, s); !errors.Is(err, identity.ErrEnded) {
					t.Errorf("a reset after that: got %v, want the end", err)
				}
				w.ends(s.ID)
			})
		}
	}
}

// What was issued before a reset does not come back when the user then chooses a password of their own.
func TestTokensOfBeforeAReset(t *testing.T) {
	w, clk, v := vaultWorld(t)
	w.enter("ann", "right")
	s := w.newest()
	access, _ := w.grantedAll("right")["access_token"].(string)
	if status := w.browser().userinfo(access); status != http.StatusOK {
		t.Fatalf("before: %d", status)
	}
	clk.add(2 * time.Second) // tokens know whole seconds
	v.change("given", connectors.PasswordReset)
	if err := w.later(clk, s); !errors.Is(err, identity.ErrEnded) {
		t.Fatalf("got %v, want the end", err)
	}
	w.settled()
	v.set(func() { v.sets = 5 })
	home := w.browser().get("https://app.example.com/")
	home.choose(home.action(), "given", "better")
	if !hello(home) {
		t.Fatalf("the password that ann chose: %d", home.code)
	}
	other, _ := vaultWorldOn(t, w.store, clk) // which remembers nothing
	for where, w := range map[string]*world{"here": w, "at another replica": other} {
		if status := w.browser().userinfo(access); status != http.StatusUnauthorized {
			t.Errorf("%s: an access token from before the reset: %d", where, status)
		}
	}
}

// A reset that only a server told of that lags does not hide the next one.
func TestResetAfterOneThatWasNone(t *testing.T) {
	w, clk, v := vaultWorld(t)
	w.enter("ann", "right")
	v.set(func() { v.told = connectors.PasswordReset })
	s := w.newest()
	if err := w.later(clk, s); !errors.Is(err, identity.ErrEnded) {
		t.Fatalf("got %v, want the end", err)
	}
	w.ends(s.ID)
	v.set(func() { v.told = 0 })
	clk.add(serversLag)
	if b := w.enter("ann", "right"); !hello(b) {
		t.Fatalf("a while later: %d", b.code)
	}
	s = w.newest()
	w.goesOn(clk, "a while later", s)
	v.change("given", connectors.PasswordReset)
	w.over(clk, "a reset", s)
}

// A change that the directory tells of before our page has noted it leaves no room for another one.
func TestResetAfterAnOwnChange(t *testing.T) {
	for name, change := range map[string]func(*world, *clock, *vault, *Session){
		"that was told before it was noted": func(w *world, _ *clock, v *vault, s *Session) {
			v.change("better", 6)
			if _, _, err := w.provider.keep(w.t.Context(), "ad", connectors.Identity{UserID: s.UserID, PasswordSet: 6}, w.now()); err != nil {
				w.t.Fatal(err)
			}
			w.provider.passwordChanged(w.t.Context(), w.provider.current.Load(), "ad", s.UserID, "")
		},
		"after which nobody signed in": func(w *world, _ *clock, v *vault, s *Session) {
			v.change("better", 6)
			w.provider.passwordChanged(w.t.Context(), w.provider.current.Load(), "ad", s.UserID, s.ID)
			eventually(w.t, "the directory is asked", func() bool { return w.knownPassword().Set == 6 })
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, clk, v := vaultWorld(t)
			clk.stop() // the directory has told of it just before
			w.enter("ann", "right")
			s := w.newest()
			clk.add(time.Minute)
			change(w, clk, v, s)
			w.settled()
			clk.add(time.Minute)
			if !w.alive(s.ID) {
				if b := w.enter("ann", "better"); !hello(b) {
					t.Fatalf("with it: %d", b.code)
				}
				s = w.newest()
			}
			v.change("stronger", 7)
			w.over(clk, "a reset", s)
		})
	}
}

// A sign-in whose password was found to be right just before it was replaced leaves nothing behind.
func TestFormerPasswordDuringASignIn(t *testing.T) {
	changes := map[string]func(*world, *clock, *vault, *Session){
		"on the page": func(w *world, _ *clock, _ *vault, _ *Session) { w.chooses() },
		"at the directory, seen by a sign-in": func(w *world, _ *clock, v *vault, _ *Session) {
			v.change("better", 6)
			w.enter("ann", "better")
		},
		"at the directory, seen by asking": func(w *world, clk *clock, v *vault, s *Session) {
			v.change("better", 6)
			eventually(w.t, "that is seen", func() bool { return errors.Is(w.later(clk, s), identity.ErrEnded) })
			w.settled()
		},
		"at the directory, to be changed": func(w *world, clk *clock, v *vault, s *Session) {
			v.change("better", connectors.PasswordReset)
			eventually(w.t, "that is seen", func() bool { return errors.Is(w.later(clk, s), identity.ErrEnded) })
			w.settled()
			v.set(func() { v.sets = 6 })
		},
	}
	ways := map[string]func(*world) bool{
		"at an app": func(w *world) bool { return hello(w.enter("ann", "right")) },
		"at a client": func(w *world) bool {
			b := w.browser().get(clientURL(oauth2.GenerateVerifier()))
			b.signIn("ann", "right")
			return b.last.Query().Get("code") != ""
		},
		"by the grant": func(w *world) bool { return w.granted("right") != "" },
		"by a device": func(w *world) bool {
			d := w.newDevice("tv", "", "openid offline_access")
			d.agreed(w.browser(), "ann", "right")
			return d.gets(w)
		},
		"by the grant of a token only": func(w *world) bool { return w.accessOnly("right") != "" },
	}
	for change, during := range changes {
		for way, try := range ways {
			for _, told := range []bool{true, false} {
				if !told && change != "on the page" {
					continue
				}
				t.Run(change+", "+way+map[bool]string{false: ", and the directory does not tell"}[told], func(t *testing.T) {
					w, clk, v := vaultWorld(t)
					if !told {
						v.sets = connectors.PasswordUnknown
					}
					if !hello(w.enter("ann", "right")) {
						t.Fatal("no sign-in")
					}
					s := w.newest()
					clk.add(time.Minute)
					v.looked = func() { during(w, clk, v, s) }
					if try(w) {
						t.Error("let in with the former password")
					}
					w.onlyLater(clk)
				})
			}
		}
	}
}

// accessOnly gets an access token for ann's password and nothing else, "" if that is refused.
func (w *world) accessOnly(password string) string {
	w.t.Helper()
	_, answer := w.formPost("/token", withSecret(url.Values{"grant_type": {"password"}, "scope": {"openid"}, "username": {"ann"}, "password": {password}}))
	token, _ := answer["access_token"].(string)
	return token
}

// granted gets a refresh token for ann's password, "" if that is refused.
func (w *world) granted(password string) string {
	w.t.Helper()
	token, _ := w.grantedAll(password)["refresh_token"].(string)
	return token
}

func (w *world) grantedAll(password string) map[string]any {
	w.t.Helper()
	_, answer := w.formPost("/token", withSecret(url.Values{"grant_type": {"password"}, "scope": {"openid offline_access"}, "username": {"ann"}, "password": {password}}))
	return answer
}

// onlyLater looks whether anything of ann goes on but what began with the password "better".
func (w *world) onlyLater(clk *clock) {
	w.t.Helper()
	w.settled()
	clk.add(3 * time.Minute)
	before := w.sessionCount()
	if before > 1 {
		w.t.Errorf("%d sessions, want at most that of the new password", before)
	}
	if tokens, err := w.store.ListRefreshTokens(w.t.Context()); err != nil || len(tokens) != 0 {
		w.t.Errorf("%d refresh tokens, %v", len(tokens), err)
	}
	if b := w.enter("ann", "better"); !hello(b) {
		w.t.Errorf("the new password: %d", b.code)
	}
	s := w.newest()
	if err := w.later(clk, s); err != nil || !w.alive(s.ID) {
		w.t.Errorf("the new session: %v", err)
	}
}

// The same at each write of a sign-in, so that the change comes after what the sign-in has read.
func TestPasswordChangesBetweenWritesOfASignIn(t *testing.T) {
	keys, reached := madeKeys(t), 0
	for _, kind := range []store.Kind{store.KindIdentity, store.KindSession} {
		for _, after := range []bool{false, true} {
			for n := range 2 {
				clk := &clock{}
				d := &blockingDriver{Driver: store.MemoryDriver(), kind: kind, skip: n, after: after}
				st := keyedStore(t, d, keys, clk)
				w, _ := vaultWorldOn(t, st, clk)
				d.block = w.chooses
				b := w.enter("ann", "right")
				if d.block != nil {
					continue
				}
				reached++
				w.settled()
				all, err := w.store.SessionsOf(t.Context(), "id-ann", "ad")
				if err != nil || len(all) != 1 || hello(b.get("https://app.example.com/")) {
					t.Errorf("at write %d of %s (after: %v): %d sessions, %v, and the former password is at %s", n, kind, after, len(all), err, b.last)
				}
			}
		}
	}
	if reached < 4 {
		t.Errorf("only %d writes", reached)
	}
}

// A refresh token of the password grant is all that its user has here.
func TestPasswordResetEndsGrantedTokens(t *testing.T) {
	w, clk, v := vaultWorld(t)
	answer := w.grantedAll("right")
	token, _ := answer["refresh_token"].(string)
	access, _ := answer["access_token"].(string)
	if token == "" || w.browser().userinfo(access) != http.StatusOK {
		t.Fatal("no token")
	}
	clk.add(3 * time.Minute)
	v.change("stronger", 6)
	if w.refreshes(token) {
		t.Error("the token goes on")
	}
	w.settled()
	other, fresh := vaultWorldOn(t, w.store, clk) // which remembers nothing
	fresh.change("stronger", 6)
	for where, w := range map[string]*world{"here": w, "at another replica": other} {
		if w.browser().userinfo(access) == http.StatusOK {
			t.Errorf("%s: the access token goes on", where)
		}
	}
	if got := w.granted("right"); got != "" {
		t.Error("the former password is good for a token")
	}
	if token = w.granted("stronger"); token == "" || !w.refreshes(token) {
		t.Error("the new one is not")
	}
}

// A server that does not know of the new password yet may still take the former one.
func TestSignInAtAServerThatLags(t *testing.T) {
	w, clk, v := vaultWorld(t)
	v.change("stronger", 6)
	if !hello(w.enter("ann", "stronger")) {
		t.Fatal("no sign-in")
	}
	v.change("even stronger", 7)
	s := w.newest()
	if err := w.later(clk, s); !errors.Is(err, identity.ErrEnded) {
		t.Fatalf("got %v, want the end", err)
	}
	w.settled()
	v.change("stronger", 6)
	if b := w.enter("ann", "stronger"); b.code != http.StatusServiceUnavailable || w.sessionCount() != 0 {
		t.Errorf("the former password: %d", b.code)
	}
	if w.accessOnly("stronger") != "" {
		t.Error("the former password is good for a token")
	}
	clk.add(serversLag)
	if w.accessOnly("stronger") == "" {
		t.Error("a directory that was set back is good for no token")
	}
	if b := w.enter("ann", "stronger"); !hello(b) {
		t.Errorf("a directory that was set back: %d", b.code)
	}
}

// A failingDriver fails some writes.
type failingDriver struct {
	store.Driver

	fails atomic.Pointer[func(store.Op) bool]
}

func (d *failingDriver) Write(ctx context.Context, ops []store.Op) (int64, error) {
	if f := d.fails.Load(); f != nil && (*f)(ops[0]) {
		return 0, errors.New("disk full")
	}
	return d.Driver.Write(ctx, ops)
}

func (d *failingDriver) fail(f func(store.Op) bool) { d.fails.Store(&f) }

func TestPasswordResetWhileTheStoreFails(t *testing.T) {
	for name, fails := range map[string]func(store.Op) bool{
		"to store that":       func(op store.Op) bool { return op.Record.Kind == store.KindIdentity },
		"to end the sessions": func(op store.Op) bool { return op.Record.Kind == store.KindSession && op.Verb == store.Delete },
	} {
		t.Run(name, func(t *testing.T) {
			clk, d := &clock{}, &failingDriver{Driver: store.MemoryDriver()}
			st, err := store.New(t.Context(), d, store.Options{Now: clk.now})
			if err != nil {
				t.Fatal(err)
			}
			w, v := vaultWorldOn(t, st, clk)
			w.enter("ann", "right")
			s := w.newest()
			v.change("stronger", 6)
			d.fail(fails)
			err = w.later(clk, s)
			if refused := errors.Is(err, identity.ErrEnded); refused != strings.Contains(name, "sessions") || !w.alive(s.ID) {
				t.Errorf("got %v; the session is stored: %v", err, w.alive(s.ID))
			}
			d.fail(func(store.Op) bool { return false })
			eventually(t, "it is made up for", func() bool { return errors.Is(w.later(clk, s), identity.ErrEnded) && !w.alive(s.ID) })
			w.settled()
		})
		t.Run(name+", at a sign-in", func(t *testing.T) {
			clk, d := &clock{}, &failingDriver{Driver: store.MemoryDriver()}
			st, err := store.New(t.Context(), d, store.Options{Now: clk.now})
			if err != nil {
				t.Fatal(err)
			}
			w, v := vaultWorldOn(t, st, clk)
			clk.stop()
			w.enter("ann", "right")
			s := w.newest()
			clk.add(time.Minute)
			v.change("stronger", 6)
			d.fail(fails)
			b := w.enter("ann", "stronger")
			if hello(b) != strings.Contains(name, "sessions") {
				t.Errorf("the sign-in: %d", b.code)
			}
			d.fail(func(store.Op) bool { return false })
			if !hello(b) {
				b = w.enter("ann", "stronger")
			}
			w.ends(s.ID)
			w.settled()
			if !hello(b.get("https://app.example.com/")) || w.sessionCount() != 1 {
				t.Errorf("%d sessions", w.sessionCount())
			}
		})
	}
}

// Whoever noticed it may be killed before anything has ended.
func TestPasswordResetThatNobodyActedOn(t *testing.T) {
	for name, own := range map[string]bool{"at the directory": false, "on the page": true} {
		t.Run(name, func(t *testing.T) {
			w, clk, v := vaultWorld(t)
			w.enter("ann", "right")
			s := w.newest()
			home := w.enter("ann", "right")
			kept := w.newest()
			clk.add(time.Second)
			v.change("stronger", 6)
			err := w.store.UpdateIdentity(t.Context(), "id-ann", "ad", func(i store.Identity) (store.Identity, error) {
				k := store.KnownPassword{Set: 6, Since: w.now(), Pending: true, Own: own}
				if own {
					k.Except = kept.ID
				}
				i.Password = &k
				return i, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := w.later(clk, s); !own && !errors.Is(err, identity.ErrEnded) {
				t.Errorf("got %v, want the end", err)
			}
			w.ends(s.ID)
			w.settled()
			if err := w.vouch(kept); own && err != nil {
				t.Errorf("the user of the browser that it was changed in: %v", err)
			}
			if hello(home.get("https://app.example.com/")) != own {
				t.Errorf("the browser that it was changed in: %d", home.code)
			}
		})
	}
}

// Several replicas that see it at once end each session once.
func TestPasswordResetSeenByTwoReplicas(t *testing.T) {
	clk, key := &clock{}, seal.NewKey()
	st := store.Memory(store.Options{Now: clk.now})
	v := &vault{staff: &staff{password: "right"}, sets: 5}
	open := func(storage.Connector) (connector.Connector, error) { return v, nil }
	a, b := newWorldWith(t, vaultConfig(t), st, key, clk, open), newWorldWith(t, vaultConfig(t), st, key, clk, open)
	a.enter("ann", "right")
	at, too := a.newest(), b.newest()
	v.change("stronger", 6)
	clk.add(3 * time.Minute)
	var wg sync.WaitGroup
	for w, s := range map[*world]*Session{a: at, b: too} {
		wg.Go(func() {
			// One may be told only that the session is gone by then.
			if err := w.vouch(s); err != nil && !errors.Is(err, identity.ErrEnded) {
				t.Errorf("got %v, want the end", err)
			}
		})
	}
	wg.Wait()
	a.ends(at.ID)
	a.settled()
	fresh := b.enter("ann", "stronger")
	if !hello(fresh) || !hello(fresh.asAt(a).get("https://app.example.com/")) {
		t.Fatal("the new password", fresh.code)
	}
	clk.add(3 * time.Minute)
	for _, w := range []*world{a, b} {
		if err := w.vouch(w.newest()); err != nil {
			t.Errorf("the new session: %v", err)
		}
	}
	logs := func(text string) int { return strings.Count(a.audit.String()+b.audit.String(), text) }
	// One replica may end the session and the other note that it was ended, before either has said so.
	eventually(t, "the audit log has both", func() bool { return logs(`"msg":"sign-out"`) > 0 && logs(`"msg":"password changed"`) > 0 })
	if n, m := logs(`"msg":"sign-out"`), logs(`"msg":"password changed"`); n != 1 || m != 1 {
		t.Errorf("the session ended %d times, and the password was changed %d times", n, m)
	}
}

// Of two first sign-ins at once the second finds what it was about to make.
func TestFirstSignInsAtOnce(t *testing.T) {
	clk := &clock{}
	d := &blockingDriver{Driver: store.MemoryDriver(), kind: store.KindIdentity}
	st, err := store.New(t.Context(), d, store.Options{Now: clk.now})
	if err != nil {
		t.Fatal(err)
	}
	w, _ := vaultWorldOn(t, st, clk)
	var first *browser
	d.block = func() { first = w.enter("ann", "right") }
	second := w.enter("ann", "right")
	if first == nil || !hello(first) || !hello(second) || w.sessionCount() != 2 {
		t.Errorf("%d sessions; the second browser: %d", w.sessionCount(), second.code)
	}
}
