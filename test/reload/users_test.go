package reload

import (
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"gatehouse/test/peers"
)

const signedIn = "  identity: {headers: {x-user-a: email, x-groups: groups}}\n  default: signed-in\n"

func TestUsersOfTheFile(t *testing.T) {
	file := func(w *world, users string) string {
		return w.head + "staticPasswords:\n" + users + w.gateway + signedIn
	}
	w := newWorld(t, func(w *world) string {
		return file(w, w.user("alice@example.com", "alice", "admins")+w.user("bob@example.com", "bob", "staff"))
	})
	app := "http://" + host + "/"
	alice, bob, late := w.newPerson(t), w.newPerson(t), w.newPerson(t)
	alice.signIn(t, alice.visit(t, app), "alice@example.com")
	bob.signIn(t, bob.visit(t, app), "bob@example.com")
	open := late.visit(t, app) // the page is there before the user is

	w.takenUp(t, file(w, w.user("alice@example.net", "alice", "admins, ops")+w.user("carol@example.com", "carol", "staff")))
	if at := alice.visit(t, app); at.body != "app x-groups=admins,ops x-user-a=alice@example.net" && at.body != "app x-user-a=alice@example.net x-groups=admins,ops" {
		t.Errorf("changed user: status %d at %s: %s", at.status, at.url, at.body)
	}
	at := bob.visit(t, app)
	if !strings.HasSuffix(at.url.Path, "/login") {
		t.Fatalf("removed user: status %d at %s", at.status, at.url)
	}
	if at := bob.signIn(t, at, "bob@example.com"); at.status != http.StatusUnauthorized {
		t.Errorf("removed user signs in: status %d at %s", at.status, at.url)
	}
	if got := w.grant(t, "bob@example.com", password); got != http.StatusUnauthorized {
		t.Errorf("removed user's password grant: %d", got)
	}
	if at := late.signIn(t, open, "carol@example.com"); !strings.Contains(at.body, "x-user-a=carol@example.com") {
		t.Errorf("new user, on a page from before: status %d at %s: %s", at.status, at.url, at.body)
	}
	list := exec.CommandContext(t.Context(), peers.Binary(t), "sessions", "list", "--config", w.gatehouse.Config)
	list.Dir = w.gatehouse.Folder
	switch out, err := list.CombinedOutput(); {
	case err != nil:
		t.Errorf("gatehouse sessions list: %v: %s", err, out)
	case !strings.Contains(string(out), "alice@example.net") || strings.Contains(string(out), "bob@"):
		t.Errorf("sessions after the reload:\n%s", out)
	}
	if got := w.metric(t, "gatehouse_config_generation"); got != 2 {
		t.Errorf("generation %v, want 2", got)
	}
	w.gatehouse.Logged(t, "users +1 -1 ~1", `"by":"configuration"`)
}

func TestConnectorsOverReloads(t *testing.T) {
	op := peers.OIDCProvider(t, peers.OIDCOptions{
		ClientID: "gatehouse", ClientSecret: "a secret of the provider", RedirectURIs: []string{"http://" + host + "/dex/callback"},
		Users: []peers.User{{Sub: "erin", Email: "erin@company.test", Name: "Erin", Groups: []string{"staff"}}},
	})
	file := func(w *world, name, scopes, rest string) string {
		connector := ""
		if name != "" {
			connector = "connectors:\n- {type: oidc, id: company, name: " + name + ", config: {issuer: \"" + op.Issuer + `", clientID: gatehouse, clientSecret: "a secret of the provider", ` +
				`redirectURI: "http://` + host + `/dex/callback", scopes: [` + scopes + "], insecureEnableGroups: true}}\n"
		}
		return w.head + connector + "staticPasswords:\n" + w.user("alice@example.com", "alice", "admins") + w.gateway + signedIn + rest
	}
	w := newWorld(t, func(w *world) string { return file(w, "Company", "profile, email", "") })
	app := "http://" + host + "/"
	erin := w.newPerson(t)
	into := func(p *person) page { // through the identity provider, which asks nothing
		t.Helper()
		at := p.visit(t, app)
		if strings.HasPrefix(at.body, "app ") {
			return at
		}
		return p.visit(t, "http://"+host+"/dex/auth/company?"+at.url.RawQuery)
	}
	if at := into(erin); !strings.Contains(at.body, "x-user-a=erin@company.test") {
		t.Fatalf("upstream: status %d at %s: %s", at.status, at.url, at.body)
	}
	wrong := 0
	for _, text := range []string{
		file(w, "Company", "profile, email", "  clients: kubeflow\n"), // not about it
		file(w, "The Company", "profile, email", ""),                  // the same connector
		file(w, "The Company", "profile, email, groups", ""),          // opened anew
		file(w, "The Company", "profile, email, groups", "  rules: [{name: r, paths: [/r], allow: anyone}]\n"),
	} {
		w.takenUp(t, text)
		if at := erin.visit(t, app); !strings.Contains(at.body, "x-user-a=erin@company.test") {
			t.Errorf("the session: status %d at %s", at.status, at.url)
		}
		if at := into(w.newPerson(t)); !strings.Contains(at.body, "x-user-a=erin@company.test") {
			t.Errorf("another sign-in: status %d at %s: %s", at.status, at.url, at.body)
		}
		// A connector that is not wrapped would take this for a sign-in of its own.
		if at := w.newPerson(t).visit(t, "http://"+host+"/dex/callback?state=x&code=y"); at.status < 400 || at.status >= 500 {
			t.Errorf("a callback that nobody asked for: status %d at %s", at.status, at.url)
		}
		// Nor would it count.
		if got := w.grant(t, "alice@example.com", "wrong"); got != http.StatusUnauthorized {
			t.Errorf("a wrong password: %d", got)
		}
		wrong++
	}
	for ; wrong < 5; wrong++ {
		w.grant(t, "alice@example.com", "wrong")
	}
	if got := w.grant(t, "alice@example.com", password); got == http.StatusOK {
		t.Error("the right password after five wrong ones, with reloads between them, is taken")
	}

	w.takenUp(t, file(w, "", "", ""))
	if at := w.newPerson(t).visit(t, "http://"+host+"/dex/auth/company?client_id=app"); at.status < 400 {
		t.Errorf("a removed connector: status %d at %s", at.status, at.url)
	}
	if at := erin.visit(t, app); !strings.Contains(at.body, "x-user-a=erin@company.test") {
		t.Errorf("a session that began there: status %d at %s", at.status, at.url)
	}
}

// The port of telemetry, as an example, cannot change; everything else in the file waits with it.
func TestWhatNeedsARestartIsNotTakenUpByHalf(t *testing.T) {
	w := newWorld(t, func(w *world) string {
		return w.head + "staticPasswords:\n" + w.user("alice@example.com", "alice", "admins") + w.gateway + gatewayA
	})
	good := w.head + "staticPasswords:\n" + w.user("alice@example.com", "alice", "admins") + w.gateway + gatewayB
	w.write(t, strings.Replace(good, w.gatehouse.Telemetry, peers.FreeAddr(t), 1))
	peers.Eventually(t, limit, "the file is refused", func() bool { return w.metric(t, "gatehouse_config_reload_failures_total") == 1 })
	w.gatehouse.Logged(t, `"key":"telemetry.http"`)
	answer, err := w.check(t.Context(), "/one", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := generationOf(answer, "/one", false); got != "a" {
		t.Errorf("%q decides, %v; want a", got, err)
	}
	w.takenUp(t, good)
	if answer, err = w.check(t.Context(), "/one", "", nil); err != nil {
		t.Fatal(err)
	}
	if got, err := generationOf(answer, "/one", false); got != "b" {
		t.Errorf("%q decides, %v; want b", got, err)
	}
}
