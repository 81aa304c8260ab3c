package provider

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/dexidp/dex/server/authflow"
	"github.com/dexidp/dex/server/consent"
	dexdevice "github.com/dexidp/dex/server/device"
	"github.com/dexidp/dex/server/discovery"
	"github.com/dexidp/dex/server/grants"
	"github.com/dexidp/dex/server/home"
	"github.com/dexidp/dex/server/introspection"
	"github.com/dexidp/dex/server/logout"
	"github.com/dexidp/dex/server/mfa"
	"github.com/dexidp/dex/server/router"
	"github.com/dexidp/dex/server/session"
	"github.com/dexidp/dex/server/userinfo"
)

// mounted collects the routes of Dex's parts.
type mounted []string

func (m *mounted) Handle(p string, _ http.Handler)         { *m = append(*m, p) }
func (m *mounted) HandleFunc(p string, _ http.HandlerFunc) { *m = append(*m, p) }
func (m *mounted) HandleCORS(p string, _ http.HandlerFunc) { *m = append(*m, p) }
func (m *mounted) HandlePrefix(string, http.Handler)       {}

// Requests are counted under the names that Dex itself would give them.
func TestDexRoutes(t *testing.T) {
	var dex mounted
	for _, h := range []router.Handler{
		&discovery.Handler{}, &grants.Handler{}, &userinfo.Handler{}, &introspection.Handler{}, &dexdevice.Handler{}, &home.Handler{}, &authflow.Handler{},
		&mfa.Handler{MFAProviders: map[string]mfa.Provider{"totp": nil}}, &consent.Handler{}, &logout.Handler{Sessions: &session.Manager{Config: &session.Config{}}},
	} {
		h.Mount(&dex)
	}
	slices.Sort(dex)
	ours := dexRoutes()
	slices.Sort(ours)
	if !slices.Equal(dex, ours) {
		t.Errorf("Dex has the routes %q\nwe count              %q", dex, ours)
	}
	for _, route := range dex {
		if got := dexRoute(strings.Replace(route, "{connector}", "a%2Fb", 1)); got != route {
			t.Errorf("%s counts as %q", route, got)
		}
	}
	for _, path := range []string{"/auth/", "/auth/x/y", "/auth/x/login/", "/auth//login/x", "/callback/", "/callback/x/y", "/static/main.css", "", "/token/"} {
		if got := dexRoute(path); slices.Contains(ours, got) {
			t.Errorf("%q counts as %s", path, got)
		}
	}
}
