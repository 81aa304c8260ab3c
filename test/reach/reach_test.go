// Package reach starts the built Gatehouse with URLs of the issuer that lead to it and elsewhere: the log must say so, and
// the start must not wait for it.
package reach

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"gatehouse/test/peers"
)

// gatehouse starts the product with an issuer and the address that it listens on.
func gatehouse(t *testing.T, issuer, web string) *peers.GatehouseServer {
	t.Helper()
	return peers.Gatehouse(t, fmt.Sprintf(`
issuer: %s
storage: {type: memory}
web: {http: %s}
telemetry: {http: %s}
gateway: {grpc: %s, admin: %s, hosts: [localhost]}
enablePasswordDB: true
`, issuer, web, peers.FreeAddr(t), peers.FreeAddr(t), peers.FreeAddr(t)))
}

// line returns the line of the log about a try of the issuer's URL, "" for none yet.
func line(s *peers.GatehouseServer) string {
	for l := range strings.Lines(s.Log()) {
		if strings.Contains(l, `"msg":"the issuer's URL`) {
			return l
		}
	}
	return ""
}

func TestLeadsHere(t *testing.T) {
	t.Parallel()
	web := peers.FreeAddr(t)
	s := gatehouse(t, "http://"+web+"/dex", web)
	peers.Eventually(t, time.Minute, "a try", func() bool { return line(s) != "" })
	if got := line(s); !strings.Contains(got, `"INFO"`) || !strings.Contains(got, "leads here") {
		t.Errorf("the log says %s", got)
	}
}

func TestLeadsElsewhere(t *testing.T) {
	t.Parallel()
	const other = "http://dex.auth.svc.cluster.local:5556/dex"
	dex := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(w, `{"issuer":%q}`, other)
	}))
	defer dex.Close()
	s := gatehouse(t, dex.URL+"/dex", peers.FreeAddr(t))
	peers.Eventually(t, time.Minute, "a second try", func() bool { return line(s) != "" })
	for _, want := range []string{`"WARN"`, "leads elsewhere", `"issuer":"` + dex.URL + `/dex"`, `"got":"the discovery document of ` + other, `"fix":"another provider answers there`} {
		if got := line(s); !strings.Contains(got, want) {
			t.Errorf("the log says %s, want %s in it", got, want)
		}
	}
}

// TestStartDoesNotWait for a server that takes the question and never answers; nor does the end.
func TestStartDoesNotWait(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{}, 1)
	hangs := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	}))
	defer hangs.Close()
	s := gatehouse(t, hangs.URL+"/dex", peers.FreeAddr(t))
	peers.Eventually(t, time.Minute, "ready", func() bool { return strings.Contains(s.Log(), `"msg":"ready"`) })
	if got := line(s); got != "" {
		t.Errorf("ready, and the log says already %s", got)
	}
	<-asked
	s.Stop(t)
	if got := line(s); got != "" {
		t.Errorf("ended, and the log says %s", got)
	}
}
