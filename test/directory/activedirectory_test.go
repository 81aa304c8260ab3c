package directory

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"gatehouse/test/peers"
)

func activeDirectory(t *testing.T, dir *peers.SambaServer, more table) table {
	t.Helper()
	c := documented(t, "activedirectory", table{
		"domain": "ad.example.test", "host": dir.Host, "rootCA": dir.CA, "bindDN": "svc-ldap@ad.example.test", "bindPW": dir.ServicePassword,
	})
	maps.Copy(c["config"].(table), more)
	return c
}

func TestActiveDirectory(t *testing.T) {
	dir := peers.Samba(t, peers.SambaOptions{})
	// Nobody is asked about within an hour: what is seen earlier, the directory has told.
	s := serve(t, activeDirectory(t, dir, nil), table{"revalidate": "1h"})
	for _, tt := range []struct {
		name string
		test func(*testing.T, *peers.SambaServer, *stack)
	}{
		{"every spelling of a name leads in, with nested groups", spellings},
		{"each state of an account is told in two languages and audited", states},
		{"strangers learn nothing", strangers},
		{"an expired password is changed on the page", expiredPassword},
		{"guessing locks nobody out of the directory", guesses},
		{"a user who is disabled is out at once, and others are not", disabled},
		{"a new group is there at once", newGroup},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.test(t, dir, s) })
	}
}

func spellings(t *testing.T, dir *peers.SambaServer, s *stack) {
	for _, name := range []string{"alice", "ALICE", "alice@ad.example.test", "alice@example.test", `ADTEST\alice`} {
		headers := s.signIn(t, name, dir.Password).seen(t)
		if headers["kubeflow-userid"] != "alice@example.test" || headers["x-name"] != "alice" {
			t.Errorf("%s: the app saw %q, %q, want alice@example.test, alice", name, headers["kubeflow-userid"], headers["x-name"])
		}
		groups := strings.Split(headers["kubeflow-groups"], ",")
		slices.Sort(groups)
		if want := []string{"Domain Users", "Users", "g0-cycle", "g1-top", "g2-mid", "g3-leaf"}; !slices.Equal(groups, want) {
			t.Errorf("%s: the app saw the groups %q, want %q", name, groups, want)
		}
	}
}

func states(t *testing.T, dir *peers.SambaServer, s *stack) {
	for _, tt := range []struct {
		user, result    string
		status          int
		english, german string
	}{
		{"disabled", "account-disabled", 403, "This account may not sign in.", "Mit diesem Konto ist keine Anmeldung möglich."},
		{"expired", "account-expired", 403, "This account has expired.", "Dieses Konto ist abgelaufen."},
		{"hours", "outside-hours", 403, "at this time of day or week", "zu dieser Zeit nicht erlaubt"},
		{"wks", "other-workstation", 403, "from certain computers only", "nur an bestimmten Computern"},
		{"pwexpired", "password-expired", 403, "Your password has expired. Choose a new one", "Ihr Passwort ist abgelaufen. Legen Sie ein neues fest"},
		{"mustchange", "password-must-change", 403, "choose a password of your own", "Legen Sie ein eigenes Passwort fest"},
	} {
		for language, want := range map[string]string{"en": tt.english, "de-AT, de;q=0.9, en;q=0.1": tt.german} {
			t.Run(tt.user+" "+language[:2], func(t *testing.T) {
				skip := len(s.gatehouse.Log())
				pg := s.newPerson(t, language).fill(t, tt.user, dir.Password)
				if pg.status != tt.status || !strings.Contains(pg.body, want) {
					t.Errorf("got status %d, want %d and %q: %s", pg.status, tt.status, want, pg.body)
				}
				s.audited(t, skip, tt.result)
			})
		}
	}
}

func strangers(t *testing.T, dir *peers.SambaServer, s *stack) {
	unknown := s.newPerson(t, "en").fill(t, "nobody", "guess")
	if unknown.status != http.StatusUnauthorized || !strings.Contains(unknown.body, "These sign-in details are not right.") {
		t.Fatalf("an unknown user: got status %d: %s", unknown.status, unknown.body)
	}
	for _, user := range []string{"u01", "disabled", "expired", "mustchange", "hours"} {
		skip := len(s.gatehouse.Log())
		if wrong := s.newPerson(t, "en").fill(t, user, "guess"); wrong.status != unknown.status || wrong.strange() != unknown.strange() {
			t.Errorf("%s with a wrong password: got status %d and\n%s\nwant as for an unknown user %d and\n%s", user, wrong.status, wrong.strange(), unknown.status, unknown.strange())
		}
		s.audited(t, skip, "wrong-credentials")
	}
	if strings.Contains(s.gatehouse.Log(), dir.Password) {
		t.Error("a password is in the log")
	}
}

func expiredPassword(t *testing.T, dir *peers.SambaServer, s *stack) {
	const fresh = "Correct-Horse-9"
	p := s.newPerson(t, "en")
	form := p.fill(t, "pwexpired", dir.Password)
	change := func(to string) page {
		return p.do(t, http.MethodPost, form.action(t), url.Values{"login": {"pwexpired"}, "password": {dir.Password}, "new_password": {to}, "new_password_again": {to}})
	}
	if pg := change("abc"); pg.status != http.StatusUnprocessableEntity || !strings.Contains(pg.body, "The new password does not meet ") {
		t.Errorf("a password that is too simple: got status %d: %s", pg.status, pg.body)
	}
	if pg := change(fresh); pg.status != http.StatusOK || pg.url.String() != s.app+"/headers" {
		t.Fatalf("got status %d at %s, want the app: %s", pg.status, pg.url, pg.body)
	}
	if got := s.signIn(t, "pwexpired", fresh).seen(t)["kubeflow-userid"]; got != "pwexpired@example.test" {
		t.Errorf("with the new password the app saw %q", got)
	}
}

// bindsAs reports whether the directory itself takes a password.
func bindsAs(t *testing.T, dir *peers.SambaServer, user, password string) error {
	t.Helper()
	c, err := ldap.DialURL(dir.URL, ldap.DialWithTLSConfig(dir.TLS()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	return c.Bind(user, password)
}

func guesses(t *testing.T, dir *peers.SambaServer, s *stack) {
	throttled := 0
	for i := range 4 * dir.MaxFailures {
		name := []string{"u02", `ADTEST\u02`, "u02@ad.example.test", "U02"}[i%4]
		switch pg := s.newPerson(t, "en").fill(t, name, fmt.Sprintf("guess %d", i)); pg.status {
		case http.StatusTooManyRequests:
			throttled++
		case http.StatusUnauthorized:
		default:
			t.Errorf("guess %d: got status %d: %s", i, pg.status, pg.body)
		}
	}
	if throttled == 0 {
		t.Errorf("%d guesses were all tried", 4*dir.MaxFailures)
	}
	if err := bindsAs(t, dir, "u02@ad.example.test", dir.Password); err != nil {
		t.Errorf("after %d guesses here the directory refuses the right password: %v", 4*dir.MaxFailures, err)
	}
}

func disabled(t *testing.T, dir *peers.SambaServer, s *stack) {
	leaves, stays := s.signIn(t, "u03", dir.Password), s.signIn(t, "u04", dir.Password)
	start := time.Now()
	dir.SetDisabled(t, "u03", true)
	peers.Eventually(t, 2*time.Minute, "the disabled user is refused", func() bool { return leaves.seen(t) == nil })
	t.Logf("refused %v after the directory had disabled the user", time.Since(start).Round(time.Millisecond))
	if stays.seen(t)["kubeflow-userid"] != "u04@example.test" {
		t.Error("another user is out as well")
	}
	if pg := s.newPerson(t, "en").fill(t, "u03", dir.Password); pg.status != http.StatusForbidden {
		t.Errorf("signing in again: got status %d, want 403", pg.status)
	}
	dir.SetDisabled(t, "u03", false)
	s.signIn(t, "u03", dir.Password)
}

func newGroup(t *testing.T, dir *peers.SambaServer, s *stack) {
	p := s.signIn(t, "u05", dir.Password)
	dir.SetMember(t, "g1-top", "u05", true)
	has := func() bool {
		return slices.Contains(strings.Split(p.seen(t)["kubeflow-groups"], ","), "g0-cycle") // by way of g1-top
	}
	peers.Eventually(t, 2*time.Minute, "the new group and what it is in reach the app", has)
	dir.SetMember(t, "g1-top", "u05", false)
	peers.Eventually(t, 2*time.Minute, "the group is gone again", func() bool { return !has() })
}

func TestWithoutWatching(t *testing.T) {
	dir := peers.Samba(t, peers.SambaOptions{})
	s := serve(t, activeDirectory(t, dir, table{"watch": "off"}), table{"revalidate": "5s"})
	off, deleted, stays := s.signIn(t, "u06", dir.Password), s.signIn(t, "u07", dir.Password), s.signIn(t, "u08", dir.Password)
	dir.SetDisabled(t, "u06", true)
	dir.Delete(t, "u07")
	dir.Move(t, "u08", "Elsewhere")
	peers.Eventually(t, 2*time.Minute, "the disabled and the deleted user are refused", func() bool { return off.seen(t) == nil && deleted.seen(t) == nil })
	peers.Eventually(t, 2*time.Minute, "the user who has moved within the domain goes on", func() bool { // once the directory has answered in time
		return stays.seen(t)["kubeflow-userid"] == "u08@example.test"
	})
}
