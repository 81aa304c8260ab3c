package identity

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"gatehouse/connectors"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/connector"
	"github.com/dexidp/dex/server"
	"github.com/dexidp/dex/storage"
)

// stock opens a connector of Dex.
func stock(t *testing.T, kind string, settings map[string]any) connector.Connector {
	t.Helper()
	c := server.ConnectorsConfig[kind]()
	raw, err := json.Marshal(settings)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, c); err != nil {
		t.Fatal(err)
	}
	conn, err := c.Open("company", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// An answer is what an upstream's server says to everything but discovery.
type answer struct {
	status int
	kind   string // Content-Type, "": JSON
	body   string
}

func (a answer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/.well-known/") {
		issuer := "http://" + r.Host
		_ = json.NewEncoder(w).Encode(map[string]any{
			"issuer": issuer, "authorization_endpoint": issuer + "/auth", "token_endpoint": issuer + "/token", "jwks_uri": issuer + "/keys",
		})
		return
	}
	if a.status == 0 {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done() // silent
		return
	}
	if a.kind == "" {
		a.kind = "application/json"
	}
	w.Header().Set("Content-Type", a.kind)
	w.WriteHeader(a.status)
	_, _ = fmt.Fprint(w, a.body)
}

func connectorAt(t *testing.T, kind, address string) connector.RefreshConnector {
	t.Helper()
	settings := map[string]any{"clientID": "gatehouse", "clientSecret": "a secret of this test", "redirectURI": "https://sso.example.com/dex/callback"}
	if kind == "oidc" {
		settings["issuer"] = address
	} else {
		settings["baseURL"] = address
	}
	r, ok := stock(t, kind, settings).(connector.RefreshConnector)
	if !ok {
		t.Fatalf("%s cannot refresh", kind)
	}
	return r
}

// TestJudge has Dex's own connectors make the errors: their texts are all that there is.
func TestJudge(t *testing.T) {
	const (
		oidcData  = `{"RefreshToken":"dG9rZW4="}`
		tokenData = `{"accessToken":"t","refreshToken":"r","expiry":"2001-01-01T00:00:00Z"}`
		plainData = `{"accessToken":"t"}`
		oldData   = `{"accessToken":"t","expiry":"2001-01-01T00:00:00Z"}`
	)
	for _, tt := range []struct {
		name, kind, data string
		says             answer
		reason           connectors.Reason
		about            subject
	}{
		{"invalid_grant", "oidc", oidcData, answer{400, "", `{"error":"invalid_grant","error_description":"Token is not active"}`}, connectors.UpstreamRefused, aboutGrant},
		{"invalid_grant of an api", "gitea", tokenData, answer{400, "", `{"error":"invalid_grant"}`}, connectors.UpstreamRefused, aboutGrant},
		{"invalid_grant of another", "gitlab", `{"refreshToken":"r"}`, answer{400, "", `{"error":"invalid_grant"}`}, connectors.UpstreamRefused, aboutGrant},
		{"invalid_grant as a form", "gitea", tokenData, answer{400, "application/x-www-form-urlencoded", "error=invalid_grant"}, connectors.UpstreamRefused, aboutGrant},
		{"another sign-in is wanted", "oidc", oidcData, answer{400, "", `{"error":"interaction_required"}`}, connectors.UpstreamRefused, aboutGrant},
		{"an api that does not know the token", "gitea", plainData, answer{401, "", `{"message":"token is required"}`}, connectors.UpstreamRefused, aboutGrant},
		{"an api that does not know the token", "gitlab", plainData, answer{401, "", `{"message":"401 Unauthorized"}`}, connectors.UpstreamRefused, aboutGrant},
		{"a token that has run out", "gitea", oldData, answer{500, "", ""}, "", aboutGrant},

		{"our credentials", "oidc", oidcData, answer{401, "", `{"error":"invalid_client","error_description":"oauth2: \"invalid_grant\""}`}, "", aboutNobody},
		{"our request", "oidc", oidcData, answer{400, "", `{"error":"invalid_request"}`}, "", aboutNobody},
		{"our client", "oidc", oidcData, answer{400, "", `{"error":"unauthorized_client"}`}, "", aboutNobody},
		{"a firewall", "oidc", oidcData, answer{403, "", `{"error":"access_denied"}`}, "", aboutNobody},
		{"a firewall's page", "oidc", oidcData, answer{403, "text/html", `<h1>oauth2: "invalid_grant"</h1>`}, "", aboutNobody},
		{"a failure", "oidc", oidcData, answer{500, "", `{"error":"server_error"}`}, "", aboutNobody},
		{"a proxy's failure", "oidc", oidcData, answer{502, "text/html", "<h1>Bad Gateway</h1>\noauth2: \"invalid_grant\""}, "", aboutNobody},
		{"too many requests", "oidc", oidcData, answer{429, "", `{"error":"slow_down"}`}, "", aboutNobody},
		{"no JSON", "oidc", oidcData, answer{200, "", "oops"}, "", aboutNobody},
		{"no ID Token", "oidc", oidcData, answer{200, "", `{"access_token":"a","token_type":"Bearer"}`}, "", aboutNobody},
		{"a bad ID Token", "oidc", oidcData, answer{200, "", `{"access_token":"a","token_type":"Bearer","id_token":"e30.e30.e30"}`}, "", aboutNobody},
		{"an api's failure", "gitea", plainData, answer{500, "", `401 oauth2 "invalid_grant"`}, "", aboutNobody},
		{"an api's limit", "gitea", plainData, answer{403, "", `{"message":"rate limit"}`}, "", aboutNobody},
		{"silence", "oidc", oidcData, answer{}, "", aboutNobody},
		{"what was kept cannot be read", "oidc", `{`, answer{200, "", ""}, "", aboutNobody},
	} {
		t.Run(tt.kind+": "+tt.name, func(t *testing.T) {
			web := httptest.NewServer(tt.says)
			defer web.Close()
			r := connectorAt(t, tt.kind, web.URL)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			if tt.says.status == 0 {
				ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
			}
			defer cancel()
			_, err := r.Refresh(ctx, connector.Scopes{OfflineAccess: true, Groups: true}, connector.Identity{UserID: "ada", ConnectorData: []byte(tt.data)})
			if err == nil {
				t.Fatal("no error")
			}
			if reason, about := judge(err); reason != tt.reason || about != tt.about {
				t.Errorf("%v: got %q about %d, want %q about %d", err, reason, about, tt.reason, tt.about)
			}
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		web := httptest.NewServer(answer{})
		r := connectorAt(t, "oidc", web.URL)
		web.Close()
		_, err := r.Refresh(t.Context(), connector.Scopes{}, connector.Identity{ConnectorData: []byte(oidcData)})
		if _, about := judge(err); about != aboutNobody {
			t.Errorf("%v is about %d", err, about)
		}
	})
}

// Texts that need more of an upstream than an error.
func TestJudgeTexts(t *testing.T) {
	for text, want := range map[string]connectors.Reason{
		"user not a member of allowed groups":                                         connectors.NotAllowed,
		`google: user "Ada" is not in any of the required groups`:                     connectors.NotAllowed,
		`github: user "ada" not in required orgs or teams`:                            connectors.NotAllowed,
		`openshift: user "ada" is not in any of the required groups`:                  connectors.NotAllowed,
		`bitbucket: user "ada" is not in any of the required teams`:                   connectors.NotAllowed,
		`crowd: user "ada" is not in any of the required groups`:                      connectors.NotAllowed,
		`keystone: user "ada" does not exist`:                                         connectors.Gone,
		`crowd: get user "ada": 404 Not Found: User does not exist`:                   connectors.Gone,
		`crowd: get user "ada": 503 Service Unavailable: user "x" does not exist`:     "",
		`github: get user: 403 Forbidden: 401 user not a member of allowed groups`:    "",
		`crowd: get user "a": 404 b": 500 Internal Server Error`:                      connectors.Gone, // a name that no directory has
		"keystone: failed to obtain admin token: user \"ada\" does not exist\nreally": "",
	} {
		if got, _ := judge(fmt.Errorf("%s", text)); got != want { //nolint:err113 // as connectors make them
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
}

// askingDoor is a door of a stock connector whose users are asked about.
func askingDoor(t *testing.T, kind string, settings map[string]any) *Door {
	t.Helper()
	st := store.Memory(store.Options{})
	doors := &Doors{opts: Options{Store: st, Now: time.Now, Log: slog.New(slog.DiscardHandler), Upstream: newReplica(st, nil).up}}
	raw, err := json.Marshal(settings)
	if err != nil {
		t.Fatal(err)
	}
	d, err := newDoor(doors, storage.Connector{ID: "company", Type: kind, Config: raw}, stock(t, kind, settings))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Offline access is asked for at each sign-in, and nobody sees a page for it who would not otherwise.
func TestRedirectAsksForOfflineAccess(t *testing.T) {
	web := httptest.NewServer(answer{status: 500})
	defer web.Close()
	const back = "https://sso.example.com/dex/callback"
	for _, tt := range []struct {
		name       string
		prompt     any
		scopes     connector.Scopes
		wantPrompt []string
	}{
		{"as the gateway does", nil, connector.Scopes{}, nil},
		{"as the operator wants it", "consent", connector.Scopes{}, []string{"consent"}},
		{"as the operator wants it", "select_account", connector.Scopes{}, []string{"select_account"}},
		{"for a client that asks for it itself", nil, connector.Scopes{OfflineAccess: true}, []string{"consent"}},
	} {
		settings := map[string]any{"issuer": web.URL, "clientID": "gatehouse", "clientSecret": "a secret of this test", "redirectURI": back}
		if tt.prompt != nil {
			settings["promptType"] = tt.prompt
		}
		target, _, err := askingDoor(t, "oidc", settings).StartRedirect(tt.scopes, back, "state")
		if err != nil {
			t.Fatal(err)
		}
		u, err := url.Parse(target)
		if err != nil {
			t.Fatal(err)
		}
		if q := u.Query(); q.Get("access_type") != "offline" || fmt.Sprint(q["prompt"]) != fmt.Sprint(tt.wantPrompt) || q.Get("state") != "state" {
			t.Errorf("%s: got %s, want offline access and prompt %v", tt.name, target, tt.wantPrompt)
		}
	}
	settings := map[string]any{"tenant": "organizations", "clientID": "gatehouse", "clientSecret": "a secret of this test", "redirectURI": back}
	target, _, err := askingDoor(t, "microsoft", settings).StartRedirect(connector.Scopes{}, back, "state")
	if err != nil || !strings.Contains(target, "offline_access") {
		t.Errorf("microsoft: got %s, %v, want the scope offline_access", target, err)
	}
}
