package web

import (
	"strings"
	"testing"
)

func TestCSP(t *testing.T) {
	p := newTestPages(t)
	style := "style-src '" + p.styleHash + "'"
	if got, want := p.CSP("'self'", "https://app.example.com:8443"),
		"default-src 'none'; "+style+"; img-src data:; form-action 'self' https://app.example.com:8443; frame-ancestors 'none'; base-uri 'none'"; got != want {
		t.Errorf("CSP: got  %s\nwant %s", got, want)
	}
	if got, want := p.ScriptCSP("'self'"),
		"default-src 'none'; script-src 'self'; connect-src 'self'; "+style+"; img-src data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"; got != want {
		t.Errorf("ScriptCSP: got  %s\nwant %s", got, want)
	}
}

func TestFormActionOfPolicy(t *testing.T) {
	p := newTestPages(t)
	tests := []struct {
		name string
		in   []string
		want string
	}{
		{"none", nil, "'none'"},
		{"directive smuggled", []string{"https://a.example; script-src *"}, "'none'"},
		{"policy smuggled", []string{"https://a.example,script-src *"}, "'none'"},
		{"two in one", []string{"https://a.example https://b.example"}, "'none'"},
		{"line break", []string{"https://a.example\nhttps://b.example"}, "'none'"},
		{"trailing line break", []string{"https://a.example\n"}, "'none'"},
		{"keyword", []string{"'unsafe-inline'"}, "'none'"},
		{"star", []string{"*"}, "'none'"},
		{"wildcard host", []string{"https://*.example.com"}, "'none'"},
		{"any https", []string{"https:"}, "'none'"},
		{"any http", []string{"http:"}, "'none'"},
		{"javascript", []string{"javascript:"}, "'none'"},
		{"data", []string{"data:"}, "'none'"},
		{"user info", []string{"https://a@b.example"}, "'none'"},
		{"path", []string{"https://a.example/x"}, "'none'"},
		{"empty", []string{""}, "'none'"},
		{"bad one beside good one", []string{"'self'", "x y", "http://localhost:8080"}, "'self' http://localhost:8080"},
		{"native app", []string{"com.example.app:"}, "com.example.app:"},
		{"IPv4", []string{"http://127.0.0.1:8080"}, "http://127.0.0.1:8080"},
		{"IPv6 has no host-source", []string{"http://[::1]:8080"}, "http:"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			csp := p.CSP(tt.in...)
			_, rest, _ := strings.Cut(csp, "form-action ")
			got, _, _ := strings.Cut(rest, ";")
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if n := strings.Count(csp, ";"); n != 5 {
				t.Errorf("policy %q has %d directives, want 6", csp, n+1)
			}
		})
	}
}
