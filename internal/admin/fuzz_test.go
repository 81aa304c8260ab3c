package admin

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
)

// loopback is a naive reading of a Host header: localhost, the unix socket's name or a loopback address, with a port or without.
func loopback(host string) bool {
	names := []string{host}
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		names = append(names, host[:i])
	}
	for _, n := range names {
		ip, err := netip.ParseAddr(strings.Trim(n, "[]"))
		if n == "localhost" || n == "gatehouse.admin" || err == nil && ip.Unmap().IsLoopback() {
			return true
		}
	}
	return false
}

// FuzzHandler holds that nothing is answered or done without the header and the name of the loopback interface, that a session is ended by its own hash only, and
// that every answer is JSON or nothing.
func FuzzHandler(f *testing.F) {
	for _, host := range []string{"localhost", "127.0.0.1:5559", "[::1]:5559", "gatehouse.admin", "evil.com", "localhost.evil.com", "127.0.0.1.evil.com", "", "localhost@evil.com", "[::ffff:127.0.0.1]", "0.0.0.0", "LOCALHOST", "127.1", "::1", "[[::1]]"} {
		f.Add("GET", host, "/v1/sessions", "1")
		f.Add("DELETE", host, "/v1/sessions/0123", "1")
		f.Add("DELETE", host, "/v1/sessions/0123", "")
	}
	for _, path := range []string{"/v1/sessions/../sessions/0123", "/v1/sessions/%30123", "//v1/sessions", "/v1/version/", "/v1/sessions/0123/", "/debug/pprof/", "/metrics", "/v1/sessions/"} {
		f.Add("DELETE", "localhost", path, "1")
		f.Add("POST", "localhost", path, "1")
	}
	f.Fuzz(func(t *testing.T, method, host, path, header string) {
		u, err := url.ParseRequestURI(path)
		if err != nil || u.Host != "" {
			return
		}
		s := &table{}
		r := &http.Request{Method: method, URL: u, Host: host, Header: http.Header{}, Body: http.NoBody, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, RequestURI: path}
		if header != "" {
			r.Header.Set(Header, header)
		}
		w := httptest.NewRecorder()
		Handler(options(s)).ServeHTTP(w, r)
		passed := header != "" && loopback(host)
		if !passed && w.Code != http.StatusForbidden {
			t.Fatalf("%s %s of %q with %q: got %d", method, path, host, header, w.Code)
		}
		if ended := len(s.revoked) > 0; ended && (!passed || method != http.MethodDelete || u.Path != "/v1/sessions/0123") {
			t.Fatalf("%s %s of %q with %q ends a session", method, path, host, header)
		}
		if w.Code >= 500 || strings.HasPrefix(w.Header().Get("Content-Type"), "application/json") && !json.Valid(w.Body.Bytes()) {
			t.Fatalf("%s %s: got %d %q", method, path, w.Code, w.Body)
		}
		if strings.Contains(w.Body.String(), "alice") && (method != http.MethodGet && method != http.MethodHead || u.Path != "/v1/sessions") {
			t.Fatalf("%s %s tells of sessions: %s", method, path, w.Body)
		}
	})
}
