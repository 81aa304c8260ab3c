package provider

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/internal/inproc"
	"gatehouse/provider/store"

	"github.com/go-jose/go-jose/v4"

	"github.com/dexidp/dex/server/signer"
)

// countingDriver counts writes, and can be made to fail.
type countingDriver struct {
	store.Driver
	faults *faultDriver
	writes atomic.Int64
	around atomic.Pointer[func(kind store.Kind) (after func())] // called before a write; what it returns is called after it
}

func (d *countingDriver) wrap(t *testing.T, clk *clock) *store.Store {
	t.Helper()
	d.faults = &faultDriver{Driver: store.MemoryDriver()}
	d.Driver = d.faults
	s, err := store.New(t.Context(), d, store.Options{Now: clk.now})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (d *countingDriver) Write(ctx context.Context, ops []store.Op) (int64, error) {
	d.writes.Add(1)
	if around := d.around.Load(); around != nil {
		defer (*around)(ops[0].Record.Kind)()
	}
	return d.Driver.Write(ctx, ops)
}

func (d *countingDriver) reset()       { d.writes.Store(0) }
func (d *countingDriver) count() int64 { return d.writes.Load() }

// keyedStore is a store on a driver, with signing keys that were made before.
func keyedStore(t *testing.T, d store.Driver, keys store.Keys, clk *clock) *store.Store {
	t.Helper()
	st, err := store.New(t.Context(), d, store.Options{Now: clk.now})
	if err != nil {
		t.Fatal(err)
	}
	if err := st.UpdateSigningKeys(t.Context(), func(store.Keys) (store.Keys, error) { return keys, nil }); err != nil {
		t.Fatal(err)
	}
	return st
}

// rotateOnce makes a new signing key that is due, as another replica would, and returns something that is signed with the key that signs then.
func rotateOnce(ctx context.Context, c *keyCache, now func() time.Time) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := (&signer.LocalConfig{KeysRotationPeriod: "6h", Algorithm: jose.RS256}).Open(ctx, c, 24*time.Hour, now, slog.New(slog.DiscardHandler))
	if err != nil {
		return "", err
	}
	s.Start(ctx)
	return s.Sign(ctx, []byte(`{"iss":"nobody"}`))
}

// proxied is a web block of an issuer behind a proxy.
const proxied = `web: {http: "127.0.0.1:5556", clientRemoteIP: {header: X-Forwarded-For, trustedProxies: [10.0.0.0/8]}}
`

// A reply is a JSON answer.
type reply struct {
	status   int
	wait     time.Duration // Retry-After, -1 for none
	Error    string        `json:"error"`
	UserCode string        `json:"user_code"`
}

// from posts a form through a proxy that says where the client is; "" for one that does not.
func (w *world) from(client, target string, form url.Values) reply {
	w.t.Helper()
	r, err := http.NewRequestWithContext(w.t.Context(), http.MethodPost, target, strings.NewReader(form.Encode()))
	if err != nil {
		w.t.Fatal(err)
	}
	r.RemoteAddr = "10.0.0.1:5"
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if client != "" {
		r.Header.Set("X-Forwarded-For", client)
	}
	resp, err := inproc.Serve(w.provider.Handler(), r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	got := reply{status: resp.StatusCode, wait: -1}
	if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil {
		got.wait = time.Duration(n) * time.Second
	}
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		w.t.Fatalf("%d: %v", got.status, err)
	}
	return got
}
