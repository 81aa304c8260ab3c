package demo_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"gatehouse/internal/demo"
)

func ask(t *testing.T, target string, header http.Header) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, target, http.NoBody)
	r.Host = "localhost:8080"
	r.Header = header
	w := httptest.NewRecorder()
	demo.SampleApp().ServeHTTP(w, r)
	return w
}

func TestHeadersAreOneFlatObject(t *testing.T) {
	for _, path := range []string{"/headers", "/public/headers"} {
		w := ask(t, path, http.Header{
			"Kubeflow-Userid": {"a@example.com"}, "Cookie": {"a=1", "b=2"}, "kubeflow_userid": {"forged"}, "Kubeflow_userid": {"twice"},
		})
		if w.Code != http.StatusOK {
			t.Errorf("%s: got status %d, want 200", path, w.Code)
		}
		var got map[string]string
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		want := map[string]string{"host": "localhost:8080", "kubeflow-userid": "a@example.com", "cookie": "a=1, b=2", "kubeflow_userid": "twice, forged"}
		for name, value := range want {
			if got[name] != value {
				t.Errorf("%s: %s: got %q, want %q", path, name, got[name], value)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: got %v, want only %v", path, got, want)
		}
	}
}

func TestPageShowsTheIdentityAsText(t *testing.T) {
	w := ask(t, "/admin/x", http.Header{"Kubeflow-Userid": {"<script>alert(1)</script>"}, "Kubeflow-Groups": {"admins, team-a"}})
	body := w.Body.String()
	if strings.Contains(body, "<script") {
		t.Error("a user name became markup")
	}
	for _, want := range []string{"Administration", "&lt;script&gt;", ">admins<", ">team-a<"} {
		if !strings.Contains(body, want) {
			t.Errorf("page has no %q", want)
		}
	}
	csp := w.Header().Get("Content-Security-Policy")
	if !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe-inline") {
		t.Errorf("Content-Security-Policy: got %q, want default-src 'none' and no unsafe-inline", csp)
	}
}

func TestOtherPathsAreEchoedAndNeverRedirected(t *testing.T) {
	for _, target := range []string{"/nothing?a=1", "/a/../admin", "//admin", "/a%2fb", "/Admin/x", "/administrator"} {
		w := ask(t, target, http.Header{})
		if w.Code != http.StatusNotFound {
			t.Errorf("%s: got status %d, want 404", target, w.Code)
		}
		var got struct{ Method, Host, Path string }
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
			t.Fatalf("%s: %v", target, err)
		}
		if got.Path != target || got.Method != http.MethodGet || got.Host != "localhost:8080" {
			t.Errorf("%s: got %+v", target, got)
		}
	}
}
