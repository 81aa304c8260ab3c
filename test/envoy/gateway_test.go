package envoy

import (
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"gatehouse/test/peers"
)

// The environment of a TestTable that runs at a gateway that somebody else started, in place of an Envoy of its own and
// of Gatehouse's ports:
//
//	GATEHOUSE_TEST_GATEWAY=ip:port   a listener for plain http, hardened as deploy/overlays/istio/hardened-gateway.yaml has it, that asks
//	                                 Gatehouse about every request (503 where there is no answer), and routes under every host
//	                                 what is at or below /dex to web, and everything else to app
//	GATEHOUSE_TEST_ADDRS=web=ip:port,grpc=ip:port,app=ip:port   where it looks for Gatehouse and the app, which TestTable starts
const (
	gatewayVariable = "GATEHOUSE_TEST_GATEWAY"
	placesVariable  = "GATEHOUSE_TEST_ADDRS"
)

// tableWorld is the world of TestTable: with two Envoys, or behind the gateway that the environment names.
func tableWorld(t testing.TB) *world {
	t.Helper()
	addr, list := os.Getenv(gatewayVariable), os.Getenv(placesVariable)
	if addr == "" && list == "" {
		return newWorld(t, "sqlite", true)
	}
	at, err := parsePlaces(list)
	if err != nil {
		t.Fatalf("%s: %v", placesVariable, err)
	}
	if _, err := netip.ParseAddrPort(addr); err != nil {
		t.Fatalf("%s: %v", gatewayVariable, err)
	}
	w, _ := newWorldAt(t, at, "sqlite", func(text string) string { // as docs/install.md has it
		return strings.Replace(text, "{header: X-Real-IP, trustedProxies: [127.0.0.1/32]}", "{header: X-Forwarded-For, trustedProxies: [127.0.0.1/32, 10.0.0.0/8]}", 1)
	})
	w.hardened = newEdge(t, gatewayEdge, addr, nil)
	w.hardened.checked = true
	w.hardened.from = "127.0.0.2" // none of the trusted proxies
	w.only = w.hardened
	peers.Eventually(t, within, "the gateway asks Gatehouse, and leads to the app", func() bool {
		p, err := fetch(t.Context(), w.hardened.http, http.MethodGet, "http://"+appHost+"/public/headers", "")
		return err == nil && p.status == http.StatusOK
	})
	return w
}

// parsePlaces reads web=ip:port,grpc=ip:port,app=ip:port, in any order.
func parsePlaces(list string) (at places, err error) {
	fields := map[string]*string{"web": &at.web, "grpc": &at.grpc, "app": &at.app}
	for entry := range strings.SplitSeq(list, ",") {
		name, addr, _ := strings.Cut(entry, "=")
		field, known := fields[name]
		if !known || *field != "" {
			return at, fmt.Errorf("%q: want web=ip:port, grpc=ip:port and app=ip:port, each once", entry)
		}
		if _, err := netip.ParseAddrPort(addr); err != nil {
			return at, fmt.Errorf("%q: %w", entry, err)
		}
		*field = addr
	}
	for name, field := range inOrder(fields) {
		if *field == "" {
			return at, fmt.Errorf("%q lacks %s=ip:port", list, name)
		}
	}
	return at, nil
}

func TestParsePlaces(t *testing.T) {
	got, err := parsePlaces("app=10.0.0.1:3,web=10.0.0.1:1,grpc=10.0.0.1:2")
	if want := (places{web: "10.0.0.1:1", grpc: "10.0.0.1:2", app: "10.0.0.1:3"}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	for _, list := range []string{
		"", "web", "web=10.0.0.1:1,grpc=10.0.0.1:2", "web=10.0.0.1:1,grpc=10.0.0.1:2,app=localhost:3", "web=10.0.0.1:1,grpc=10.0.0.1:2,app=10.0.0.1:3,web=10.0.0.1:4",
		"web=10.0.0.1:1,grpc=10.0.0.1:2,app=10.0.0.1:3,x=10.0.0.1:4",
	} {
		if got, err := parsePlaces(list); err == nil {
			t.Errorf("%q: got %+v, want an error", list, got)
		}
	}
}

// edges are where rows and scenes are run.
func (w *world) edges() []*edge {
	all := []*edge{w.hardened, w.relaxed, w.direct, w.raw, w.issuer}
	return slices.DeleteFunc(all, func(e *edge) bool { return e == nil || w.only != nil && e != w.only })
}

// gatewayEdge is the name of the edge at a gateway that somebody else started.
const gatewayEdge = "gateway"

// kind is what scenes call an edge.
func (e *edge) kind() string {
	if e.name == gatewayEdge {
		return "hardened"
	}
	return e.name
}
