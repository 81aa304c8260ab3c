package provider

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"gatehouse/internal/seal"
	"gatehouse/provider/store"
)

// deviceConfig is testConfig with the device grant and a public client.
func deviceConfig(t *testing.T) string {
	t.Helper()
	return edited(t, testConfig, "gateway:\n", proxied+"gateway:\n",
		"oauth2: {", `oauth2: {grantTypes: [authorization_code, refresh_token, password, "urn:ietf:params:oauth:grant-type:device_code"], `,
		"staticClients:\n", "staticClients:\n- {id: tv, name: A television, public: true}\n")
}

func deviceWorld(t *testing.T) (*world, *clock) {
	t.Helper()
	clk := &clock{}
	return newWorld(t, deviceConfig(t), store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk), clk
}

func TestDevicesOfANetworkAreLimited(t *testing.T) {
	w, clk := deviceWorld(t)
	ask := func(client string) reply {
		return w.from(client, issuer+"/device/code", url.Values{"client_id": {"tv"}, "scope": {"openid"}})
	}
	for i := range 20 {
		if got := ask("203.0.113.9").status; got != 200 {
			t.Fatalf("device %d: %d", i+1, got)
		}
	}
	resp := ask("203.0.113.9")
	if resp.status != http.StatusTooManyRequests || resp.Error == "" {
		t.Errorf("one more: %+v", resp)
	}
	if resp.wait <= 9*time.Minute || resp.wait > 10*time.Minute {
		t.Errorf("Retry-After %s", resp.wait)
	}
	if got := ask("203.0.113.10").status; got != 200 {
		t.Errorf("another network: %d", got)
	}
	for range 30 {
		if got := ask("").status; got != 200 {
			t.Fatalf("one whose network is not known: %d", got)
		}
	}
	w.reload(edited(t, deviceConfig(t), "name: The Web App", "name: Another name"))
	if got := ask("203.0.113.9").status; got != 429 {
		t.Errorf("after a reload: %d", got)
	}
	clk.add(10 * time.Minute)
	if got := ask("203.0.113.9").status; got != 200 {
		t.Errorf("after ten minutes: %d", got)
	}
}

func TestDevicesInAllAreLimited(t *testing.T) {
	w, clk := deviceWorld(t)
	clk.stop() // or the first could have expired before the last
	ask := func(client string) reply {
		return w.from(client, issuer+"/device/code", url.Values{"client_id": {"tv"}, "scope": {"openid"}})
	}
	for i := range 10_000 {
		if got := ask("").status; got != 200 {
			t.Fatalf("device %d: %d", i+1, got)
		}
	}
	if resp := ask("203.0.113.9"); resp.status != http.StatusServiceUnavailable || resp.wait <= 0 || resp.wait > 5*time.Minute {
		t.Errorf("one more: %+v", resp)
	}
	clk.add(5*time.Minute + time.Second) // expiry.deviceRequests
	if got := ask("203.0.113.9").status; got != 200 {
		t.Errorf("when they have expired: %d", got)
	}
}

func TestDeviceRequestsThatAreNotStored(t *testing.T) {
	w, _ := deviceWorld(t)
	for name, tt := range map[string]struct {
		form   url.Values
		status int
	}{
		"a client that is none":                 {url.Values{"client_id": {"none"}}, 401},
		"no client":                             {url.Values{}, 401},
		"the gateway's client":                  {url.Values{"client_id": {"gatehouse"}}, 401},
		"a client without its secret":           {url.Values{"client_id": {"web"}}, 401},
		"a client with a wrong secret":          {url.Values{"client_id": {"web"}, "client_secret": {"x"}}, 401},
		"a public client with some secret":      {url.Values{"client_id": {"tv"}, "client_secret": {"x"}}, 401},
		"5 kB of scopes":                        {url.Values{"client_id": {"tv"}, "scope": {strings.Repeat("s ", 2600)}}, 400},
		"a client with its secret (good)":       {url.Values{"client_id": {"web"}, "client_secret": {"not-a-default-secret-5591"}}, 200},
		"a public client without secret (good)": {url.Values{"client_id": {"tv"}}, 200},
	} {
		resp := w.from("203.0.113.9", issuer+"/device/code", tt.form)
		if resp.status != tt.status {
			t.Errorf("%s: %d, want %d", name, resp.status, tt.status)
		}
		if (resp.UserCode != "") != (tt.status == 200) {
			t.Errorf("%s: user code %q", name, resp.UserCode)
		}
	}
	if resp := w.from("203.0.113.9", issuer+"/device/code?client_id=tv&scope="+strings.Repeat("s", 5000), url.Values{}); resp.status != 400 {
		t.Errorf("5 kB in the query: %d", resp.status)
	}
}
