package peers

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"testing"

	"gatehouse/internal/demo/process"
)

// A User exists at the OpenID provider.
type User struct {
	Sub    string   `json:"sub"`
	Email  string   `json:"email"`
	Name   string   `json:"name"`
	Groups []string `json:"groups"` // in the ID Token's claim groups, for scope groups
}

// OIDCOptions say what the OpenID provider knows.
type OIDCOptions struct {
	ClientID     string
	ClientSecret string
	RedirectURIs []string

	PostLogoutRedirectURIs []string
	BackchannelLogoutURI   string // empty: the client is not told of sign-outs
	Rotate                 bool   // each refresh token is good once, and ends its sign-in if it comes twice

	Users []User // the first is who signs in until SignInAs or Refuse says otherwise
}

// An OIDCServer is a running oidc-provider (npm), a certified OpenID provider. Nobody clicks there: whoever is sent to
// it comes back at once, signed in or refused.
type OIDCServer struct {
	Issuer string // http://127.0.0.1:port

	process *process.Process
}

// OIDCProvider starts an OpenID provider, waits until it serves, and stops it when the test ends.
func OIDCProvider(t testing.TB, o OIDCOptions) *OIDCServer {
	t.Helper()
	node := tool(t, "node")
	client := map[string]any{
		"client_id": o.ClientID, "client_secret": o.ClientSecret, "redirect_uris": o.RedirectURIs,
		"post_logout_redirect_uris": append([]string{}, o.PostLogoutRedirectURIs...),
		"grant_types":               []string{"authorization_code", "refresh_token"},
	}
	if o.BackchannelLogoutURI != "" {
		client["backchannel_logout_uri"] = o.BackchannelLogoutURI
		client["backchannel_logout_session_required"] = true
	}
	settings, err := json.Marshal(map[string]any{"clients": []any{client}, "users": o.Users, "rotate": o.Rotate})
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^issuer (http://\S+)$`)
	s := &OIDCServer{}
	s.process, err = start(t, process.Spec{
		Path: node,
		Args: []string{filepath.Join(Root(t), "test", "tools", "oidc-provider", "op.mjs")},
		Env:  []string{"OIDC_PROVIDER_SETTINGS=" + string(settings)},
		Log:  filepath.Join(Folder(t), "log"),
	}, func(p *process.Process) bool {
		if m := line.FindStringSubmatch(p.Log()); m != nil {
			s.Issuer = m[1]
		}
		return s.Issuer != "" && answers(t, s.Issuer+"/.well-known/openid-configuration")
	})
	if err != nil {
		t.Fatalf("%v\nrun `make tools` in %s if a package is missing", err, Root(t))
	}
	return s
}

// SignInAs makes the user with this sub sign in at the following visits.
func (s *OIDCServer) SignInAs(t testing.TB, sub string) {
	t.Helper()
	s.control(t, map[string]any{"next": map[string]string{"account": sub}})
}

// Refuse makes the following visits end with an error (OpenID Connect Core 1.0 section 3.1.2.6), such as access_denied.
func (s *OIDCServer) Refuse(t testing.TB, code, description string) {
	t.Helper()
	s.control(t, map[string]any{"next": map[string]string{"error": code, "error_description": description}})
}

// SetUsers replaces the users. One who is gone can neither sign in nor refresh a token.
func (s *OIDCServer) SetUsers(t testing.TB, users ...User) {
	t.Helper()
	s.control(t, map[string]any{"users": append([]User{}, users...)})
}

// Token sets what the token endpoint does with refresh tokens: "" as it should, "down", "invalid_client", or "stall": they wait until Token is called
// again, and those whose client has gone away never happen.
func (s *OIDCServer) Token(t testing.TB, mode string) {
	t.Helper()
	s.control(t, map[string]any{"token": mode})
}

// Revoke revokes the refresh tokens of a user.
func (s *OIDCServer) Revoke(t testing.TB, sub string) {
	t.Helper()
	s.control(t, map[string]any{"revoke": sub})
}

// RevokeLast revokes those that began with the last sign-in of the user.
func (s *OIDCServer) RevokeLast(t testing.TB, sub string) {
	t.Helper()
	s.control(t, map[string]any{"revokeLast": sub})
}

// Refreshes are what a provider that rotates was asked with refresh tokens.
type Refreshes struct {
	Refreshes []struct {
		Sub string
		At  int64 // Unix milliseconds
	}
	Refused int // those of any reason
	Reused  int // of them, since the token was used before
	Stalled int // that wait now
}

// Of returns when a user's tokens were used, in Unix milliseconds.
func (r Refreshes) Of(sub string) (at []int64) {
	for _, one := range r.Refreshes {
		if one.Sub == sub {
			at = append(at, one.At)
		}
	}
	return at
}

// Refreshes returns what was asked so far.
func (s *OIDCServer) Refreshes(t testing.TB) (r Refreshes) {
	t.Helper()
	if err := json.Unmarshal(s.ask(t, http.MethodGet, nil, http.StatusOK), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// Log returns what the provider has written so far.
func (s *OIDCServer) Log() string { return s.process.Log() }

func (s *OIDCServer) control(t testing.TB, change any) {
	t.Helper()
	body, err := json.Marshal(change)
	if err != nil {
		t.Fatal(err)
	}
	s.ask(t, http.MethodPut, body, http.StatusNoContent)
}

func (s *OIDCServer) ask(t testing.TB, method string, body []byte, want int) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.Issuer+"/control", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil || res.StatusCode != want {
		t.Fatalf("oidc-provider's control: got status %d, want %d: %.4096s (%v)", res.StatusCode, want, text, err)
	}
	return text
}
