package authz

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"gatehouse/authz/session"
)

// TestHeaderHygiene pins ATTACKS.md rule 3: on every allow an identity header is ours or is not there, whatever
// the client sent under its name or a name that an app could take for it.
func TestHeaderHygiene(t *testing.T) {
	forged := map[string]string{
		"the name itself":             "kubeflow-userid",
		"upper case":                  "KUBEFLOW-USERID",
		"mixed case":                  "Kubeflow-Userid",
		"underscore":                  "kubeflow_userid",
		"underscore in upper case":    "KUBEFLOW_USERID",
		"dot":                         "kubeflow.userid",
		"tilde":                       "kubeflow~userid",
		"plus":                        "kubeflow+userid",
		"groups":                      "kubeflow-groups",
		"groups by underscore":        "kubeflow_groups",
		"three parts, mixed":          "x_auth-display.name",
		"three parts, all underscore": "x_auth_display_name",
	}
	for rule, name := range forged {
		for _, signed := range []bool{false, true} {
			for _, path := range []string{"/public/x", "/x"} {
				if path == "/x" && !signed {
					continue
				}
				t.Run(fmt.Sprintf("%s, signed in %v, %s", rule, signed, path), func(t *testing.T) {
					f := newFixture(t)
					r := get(path, browser, name, "evil", "authorization", "Basic evil", "x-other", "kept")
					want := map[string]string{"x-other": "kept", "x-request-id": "rid-1", "sec-fetch-mode": browser}
					if signed {
						r.headers["cookie"] = f.cookie(appHost, "alice")
						want["kubeflow-userid"], want["kubeflow-groups"] = "alice@example.com", "team-a,team-b"
						want["x-auth-display-name"] = "Name of alice"
					}
					if got := f.do(r); !maps.Equal(got.upstream, want) {
						t.Errorf("got %v upstream, want %v", got.upstream, want)
					}
				})
			}
		}
	}
}

// TestAllFormsOfAHeaderAtOnce pins that a header of many spellings leaves no one behind.
func TestAllFormsOfAHeaderAtOnce(t *testing.T) {
	f := newFixture(t)
	r := get("/public/x", "", "Kubeflow-Userid", "a", "kubeflow-userid", "b", "kubeflow_userid", "c", "kubeflow.userid", "d", "kubeflow'userid", "e")
	for name := range f.do(r).upstream {
		if fold(name) == "kubeflow-userid" {
			t.Errorf("%q reaches the app", name)
		}
	}
}

// TestUsualAliasesAreAlwaysRemoved pins that hygiene does not depend on which headers the proxy shows.
func TestUsualAliasesAreAlwaysRemoved(t *testing.T) {
	f := newFixture(t)
	for _, cookie := range []string{"", f.cookie(appHost, "alice")} {
		removed := f.do(get("/public/x", "", "cookie", cookie)).response.GetOkResponse().GetHeadersToRemove()
		for _, name := range []string{"kubeflow_userid", "kubeflow.userid", "kubeflow_groups", "x_auth_display_name", "x.auth.display.name", "authorization"} {
			if !slices.Contains(removed, name) {
				t.Errorf("cookie %q: %q is not removed: %v", cookie, name, removed)
			}
		}
	}
}

// TestConnectionHeader pins that no client makes the next hop drop an identity header.
func TestConnectionHeader(t *testing.T) {
	f := newFixture(t)
	for value, want := range map[string]int{
		"kubeflow-userid": 400, "close, Kubeflow-Userid": 400, "keep-alive,kubeflow_groups": 400, "close": 200, "Upgrade, ,": 200,
	} {
		if got := f.do(get("/x", "", "connection", value, "cookie", f.cookie(appHost, "alice"))); got.code != want {
			t.Errorf("connection: %s: got %d, want %d", value, got.code, want)
		}
	}
}

// TestRawHeaders pins that encode_raw_headers of the proxy changes nothing.
func TestRawHeaders(t *testing.T) {
	f := newFixture(t)
	in := get("/x", browser).proto()
	http := in.GetAttributes().GetRequest().GetHttp()
	http.Headers = nil
	http.HeaderMap = &corev3.HeaderMap{Headers: []*corev3.HeaderValue{
		{Key: "Cookie", RawValue: []byte("a=b")},
		{Key: "cookie", RawValue: []byte(f.cookie(appHost, "alice"))},
		{Key: "kubeflow_userid", Value: "evil"},
		{Key: "cookie", RawValue: []byte("c=\xff")},
	}}
	r := f.check(in)
	if r.code != 200 || r.upstream["kubeflow-userid"] != "alice@example.com" || r.upstream["cookie"] != "a=b; c=!" {
		t.Errorf("got %d, %v upstream", r.code, r.upstream)
	}
	if !slices.Contains(r.response.GetOkResponse().GetHeadersToRemove(), "kubeflow_userid") {
		t.Error("an alias stays")
	}
}

// TestHeaderValues pins that what a directory holds cannot break out of a header, nor make one user another.
func TestHeaderValues(t *testing.T) {
	long := strings.Repeat("g", DefaultMaxHeader)
	for _, tt := range []struct {
		rule         string
		email, name  string
		groups       []string
		wantEmail    string
		wantName     string
		wantGroups   string
		separator, n int // groups dropped, values too long
	}{
		{"plain", "a@b.c", "A B", []string{"g"}, "a@b.c", "A B", "g", 0, 0},
		{"header injection", "a@b.c\r\nx-admin: 1", "\x00", nil, "a@b.c%0D%0Ax-admin: 1", "%00", "", 0, 0},
		{"UTF-8", "josé@b.c", "Zoë", []string{"équipe"}, "jos%C3%A9@b.c", "Zo%C3%AB", "%C3%A9quipe", 0, 0},
		{"what is not UTF-8", "a\xff@b.c", "", nil, "a%FF@b.c", "", "", 0, 0},
		{"a name that looks encoded is not the encoded one", "jos%C3%A9@b.c", "", nil, "jos%25C3%25A9@b.c", "", "", 0, 0},
		{"outer blanks", " a@b.c", "A ", []string{" g "}, "%20a@b.c", "A%20", "%20g%20", 0, 0},
		{"comma in a group", "a@b.c", "", []string{"x", "users,admins", "y"}, "a@b.c", "", "x,y", 1, 0},
		{"line break in a group", "a@b.c", "", []string{"x\ny", "z"}, "a@b.c", "", "z", 1, 0},
		{"empty group", "a@b.c", "", []string{"", "x", ""}, "a@b.c", "", "x", 0, 0},
		{"no e-mail", "", "A", nil, "", "A", "", 0, 0},
		{"9 kB", "a@b.c", long[:9000], nil, "a@b.c", long[:9000], "", 0, 0},
		{"too long a name is no name", "a@b.c", long + "g", nil, "a@b.c", "", "", 0, 1},
		{"too many groups", "a@b.c", "", []string{"x", long[1:], "y"}, "a@b.c", "", "x,y", 0, 1},
	} {
		t.Run(tt.rule, func(t *testing.T) {
			f := newFixture(t)
			f.signIn("eve", func(s *session.Session) {
				s.Identity.Email, s.Identity.Name, s.Identity.Groups = tt.email, tt.name, tt.groups
			})
			r := f.do(get("/x", "", "cookie", f.cookie(appHost, "eve"), "kubeflow-userid", "evil", "kubeflow-groups", "evil", "x-auth-display-name", "evil"))
			for name, want := range map[string]string{"kubeflow-userid": tt.wantEmail, "kubeflow-groups": tt.wantGroups, "x-auth-display-name": tt.wantName} {
				got, present := r.upstream[name]
				if got != want || present != (want != "") {
					t.Errorf("%s: got %.80q (present %v), want %.80q", name, got, present, want)
				}
			}
			if got := f.count("gatehouse_identity_dropped_total", "reason", "separator"); got != float64(tt.separator) {
				t.Errorf("got %v groups counted as dropped, want %d", got, tt.separator)
			}
			if got := f.count("gatehouse_identity_dropped_total", "reason", "size"); got != float64(tt.n) {
				t.Errorf("got %v values counted as too long, want %d", got, tt.n)
			}
		})
	}
}

// TestManyGroups pins that 2,000 groups reach the app.
func TestManyGroups(t *testing.T) {
	f := newFixture(t)
	var groups []string
	for i := range 2000 {
		groups = append(groups, fmt.Sprintf("department-%04d", i))
	}
	f.signIn("many", func(s *session.Session) { s.Identity.Groups = groups })
	cookie := f.cookie(appHost, "many")
	for range 2 { // also when it is not cached
		if got := f.do(get("/x", "", "cookie", cookie)).upstream["kubeflow-groups"]; got != strings.Join(groups, ",") {
			t.Fatalf("got %d bytes of groups, want all", len(got))
		}
	}
	if len(cookie) > 200 {
		t.Errorf("the cookie has %d bytes, want at most 200", len(cookie))
	}
}

// TestClaims pins the value of each claim.
func TestClaims(t *testing.T) {
	var list []IdentityHeader
	for _, c := range Claims() {
		list = append(list, IdentityHeader{"x-" + strings.ReplaceAll(string(c), "_", "-"), c})
	}
	f := newFixture(t, func(c *Config) { c.IdentityHeaders = list })
	f.signIn("bob", func(s *session.Session) { s.Identity.PreferredUsername = "bobby" })
	r := f.do(get("/x", "", "cookie", f.cookie(appHost, "bob")))
	for name, want := range map[string]string{
		"x-email": "bob@example.com", "x-groups": "team-a,team-b", "x-name": "Name of bob",
		"x-preferred-username": "bobby", "x-user-id": "u-bob", "x-connector": "local",
	} {
		if got := r.upstream[name]; got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

// TestIdentityChange pins that the next request after a change of the session has the new identity.
func TestIdentityChange(t *testing.T) {
	f := newFixture(t)
	req := get("/x", "", "cookie", f.cookie(appHost, "alice"))
	before := f.do(req).upstream["kubeflow-groups"]
	f.signIn("alice", func(s *session.Session) { s.Identity.Groups = []string{"new"} })
	if after := f.do(req).upstream["kubeflow-groups"]; before != "team-a,team-b" || after != "new" {
		t.Errorf("got groups %q, then %q", before, after)
	}
}

// TestIdentityOfBadUTF8 pins that no directory entry makes an answer that cannot be sent.
func TestIdentityOfBadUTF8(t *testing.T) {
	f := newFixture(t)
	f.signIn("bad", func(s *session.Session) {
		s.Identity.Email, s.Identity.Name, s.Identity.Groups = "a\xff@b.c", "\xff", []string{"\xff"}
	})
	for path, want := range map[string]int{"/x": 200, "/admin/x": 403, "/_gatehouse/whoami": 200, "/_gatehouse/sign-out": 200} {
		if got := f.do(get(path, browser, "cookie", f.cookie(appHost, "bad"))); got.code != want {
			t.Errorf("%s: got %d, want %d", path, got.code, want)
		}
	}
}
