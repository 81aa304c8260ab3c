package inproc

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

func get(t *testing.T, h http.HandlerFunc) (*http.Response, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://issuer.invalid/dex/keys?x=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	return (&http.Client{Transport: Transport{Handler: h}}).Do(r)
}

func TestHandlerSeesAServersRequest(t *testing.T) {
	resp, err := get(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Early", "1")
		w.WriteHeader(http.StatusTeapot)
		w.Header().Set("X-Late", "1")
		_, _ = fmt.Fprint(w, r.Host, " ", r.RequestURI, " ", r.RemoteAddr, " ", r.Body != nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(body), "issuer.invalid /dex/keys?x=1 127.0.0.1:1 true"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if resp.StatusCode != http.StatusTeapot || resp.Header.Get("X-Early") != "1" || resp.Header.Get("X-Late") != "" {
		t.Errorf("got %d %v", resp.StatusCode, resp.Header)
	}
}

func TestPanicIsAnError(t *testing.T) {
	resp, err := get(t, func(http.ResponseWriter, *http.Request) { panic("boom") })
	if err == nil {
		resp.Body.Close()
		t.Fatal("no error")
	}
	if !strings.Contains(err.Error(), "/dex/keys") {
		t.Errorf("error %v does not say where", err)
	}
}
