package config

import (
	"strings"
	"testing"
	"time"
)

// tokenText is a file with a token for the app; the token's settings stand on line 15.
const tokenText = `issuer: https://auth.example.com/dex
storage: {type: sqlite, config: {file: /var/lib/gatehouse/gatehouse.db}}
connectors:
- {type: mockCallback, id: mock, name: Mock}
expiry: {idTokens: 30m}
staticClients:
- {id: outside, name: A, secret: a-secret-of-our-own-4711, redirectURIs: ["https://client.example.com/cb"]}
- {id: "https://app.example.com", name: B, secret: a-secret-of-our-own-4712, redirectURIs: ["https://client.example.com/cb"]}
- {id: "https://a.apps.example.com", name: C, secret: a-secret-of-our-own-4713, redirectURIs: ["https://client.example.com/cb"]}
- {id: "https://else.example.org", name: D, secret: a-secret-of-our-own-4714, redirectURIs: ["https://client.example.com/cb"]}
gateway:
  hosts: [app.example.com, "*.apps.example.com"]
  identity:
    headers: {kubeflow-userid: email}
    token: TOKEN
`

func parseToken(token string) (*Config, Warnings, error) {
	return Parse("g.yaml", []byte(strings.Replace(tokenText, "TOKEN", token, 1)), testOptions())
}

// TestTokenSettings pins what gateway.identity.token takes, with its defaults.
func TestTokenSettings(t *testing.T) {
	for text, want := range map[string]AppToken{
		"{audience: kubeflow-apps}":                                        {"Authorization", "kubeflow-apps", Duration(5 * time.Minute)},
		"{header: authorization, audience: apps, ttl: 30s}":                {"authorization", "apps", Duration(30 * time.Second)},
		`{header: X-App-Token, audience: "urn:apps:{host}:x", ttl: 30m}`:   {"X-App-Token", "urn:apps:{host}:x", Duration(30 * time.Minute)},
		`{audience: "https://{host}/"}`:                                    {"Authorization", "https://{host}/", Duration(5 * time.Minute)},
		"{audience: Outside}":                                              {"Authorization", "Outside", Duration(5 * time.Minute)},
		"{audience: " + strings.Repeat("a", maxAudience) + ", ttl: 1m30s}": {"Authorization", strings.Repeat("a", maxAudience), Duration(90 * time.Second)},
	} {
		c, warnings, err := parseToken(text)
		if err != nil || len(warnings) > 0 {
			t.Errorf("%s: got %v and %v", text, err, warnings)
		} else if got := c.Gateway.Identity.Token; got == nil || *got != want {
			t.Errorf("%s: got %+v, want %+v", text, got, want)
		}
	}
	if c, _, err := Parse("g.yaml", []byte(strings.Replace(tokenText, "    token: TOKEN\n", "", 1)), testOptions()); err != nil || c.Gateway.Identity.Token != nil {
		t.Errorf("without the block: got %v", err)
	}
}

// TestBadTokenSettings pins what it refuses, with the fix.
func TestBadTokenSettings(t *testing.T) {
	const at = "g.yaml:15: gateway.identity.token"
	for text, want := range map[string]string{
		"":                             at + ": is empty: add an audience, or remove the line",
		"{}":                           at + ": needs an audience, which apps compare with the aud of the token, such as kubeflow-apps",
		"{ttl: 5m}":                    at + ": needs an audience, which apps compare with the aud of the token, such as kubeflow-apps",
		"{audience: a, typ: x}":        at + ": unknown field",
		"{audience: outside}":          at + `.audience: "outside" is the id of a client: `,
		"{audience: gatehouse}":        at + `.audience: "gatehouse" is the gateway's own client: `,
		"{audience: 'a b'}":            at + ".audience: want at most 256 visible ASCII characters",
		"{audience: 'a,b'}":            at + ".audience: want at most 256 visible ASCII characters",
		"{audience: 'é'}":              at + ".audience: want at most 256 visible ASCII characters",
		"{audience: 'a{hosts}'}":       at + ".audience: want a name, or one with {host} in it, once",
		"{audience: '{host}{host}'}":   at + ".audience: want a name, or one with {host} in it, once",
		"{audience: 'https://{host}'}": at + `.audience: "https://app.example.com" is the id of a client: `,
		"{audience: 'https://auth.example.com/dex'}":             at + `.audience: "https://auth.example.com/dex" is the issuer: `,
		"{audience: a, ttl: 29s}":                                at + ".ttl: want 30s to 1h, got 29s",
		"{audience: a, ttl: 61m}":                                at + ".ttl: want 30s to 1h, got 1h1m",
		"{audience: a, ttl: 31m}":                                at + ".ttl: is longer than expiry.idTokens (30m)",
		"{audience: a, header: ''}":                              at + ".header: is empty: set Authorization",
		"{audience: a, header: 'x y'}":                           at + `.header: "x y" is not the name of a header`,
		"{audience: a, header: Cookie}":                          at + ".header: Cookie is a header of the connection or of the proxy",
		"{audience: a, header: Connection}":                      at + ".header: Connection is a header of the connection",
		"{audience: a, header: X-Forwarded-For}":                 at + ".header: X-Forwarded-For is a header of the connection",
		"{audience: a, header: Proxy_Authorization}":             at + ".header: Proxy_Authorization is a header of the connection",
		"{audience: a, header: Kubeflow_UserID}":                 at + ".header: is the same as kubeflow-userid of gateway.identity.headers",
		"{audience: " + strings.Repeat("a", maxAudience+1) + "}": at + ".audience: want at most 256 visible ASCII characters",
	} {
		_, _, err := parseToken(text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
	// Both clients of listed hosts are named, and no other.
	_, _, err := parseToken("{audience: 'https://{host}'}")
	if err == nil || strings.Count(err.Error(), "is the id of a client") != 2 || strings.Contains(err.Error(), "else.example.org") {
		t.Errorf("got %v, want the clients of app.example.com and a.apps.example.com", err)
	}
}

// TestTokenEndsWithAnIdleSession pins that a token is good for no longer than a session that is not used.
func TestTokenEndsWithAnIdleSession(t *testing.T) {
	for _, tt := range []struct {
		lines, token string // lines in place of that of the gateway
		ttl          time.Duration
		err          string
	}{
		{"gateway:\n  session: {idle: 2m}\n", "{audience: a}", 2 * time.Minute, ""},
		{"gateway:\n  session: {idle: 2m}\n", "{audience: a, ttl: 2m}", 2 * time.Minute, ""},
		{"gateway:\n  session: {idle: 20m}\n", "{audience: a}", 5 * time.Minute, ""},
		{"gateway:\n  session: {idle: 2m}\n", "{audience: a, ttl: 121s}", 0, ".ttl: is longer than gateway.session.idle (2m)"},
		{"sessions: {validIfNotUsedFor: 2m}\ngateway:\n", "{audience: a, ttl: 3m}", 0, ".ttl: is longer than gateway.session.idle (2m)"},
		{"gateway:\n  session: {idle: 20s}\n", "{audience: a}", 0, "gateway.session.idle: want 1m to 8760h, got 20s"},
	} {
		text := strings.NewReplacer("TOKEN", tt.token, "gateway:\n", tt.lines).Replace(tokenText)
		c, _, err := Parse("g.yaml", []byte(text), testOptions())
		switch {
		case tt.err != "":
			if err == nil || !strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s, %s: got %v, want %s and nothing else", tt.lines, tt.token, err, tt.err)
			}
		case err != nil || c.Gateway.Identity.Token.TTL.Std() != tt.ttl:
			t.Errorf("%s, %s: got %v, want %v", tt.lines, tt.token, err, tt.ttl)
		}
	}
}

// TestTokenReloads pins that a running process takes the token's settings up, and that it says which have changed.
func TestTokenReloads(t *testing.T) {
	a, _, err := parseToken("{audience: a}")
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{"{audience: b}": "gateway.identity.token.audience", "{audience: a, ttl: 1m}": "gateway.identity.token.ttl", "": "gateway.identity.token"} {
		file := strings.Replace(tokenText, "TOKEN", text, 1)
		if text == "" {
			file = strings.Replace(tokenText, "    token: TOKEN\n", "", 1)
		}
		b, _, err := Parse("g.yaml", []byte(file), testOptions())
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(Changed(a, b), " "); got != want {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
		if err := NeedRestart("g.yaml", a, b); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}
