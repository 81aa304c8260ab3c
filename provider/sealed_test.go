package provider

import (
	"bytes"
	"encoding/base64"
	"os"
	"path/filepath"
	"testing"

	"gatehouse/internal/seal"
	"gatehouse/provider/store"

	"github.com/dexidp/dex/storage"
)

// TestNoSecretInTheFile signs in, and looks for what must stay secret in everything that SQLite has written, the write-ahead log included: with a key file nothing of it
// is found; without one all of it is, so that the test can fail.
func TestNoSecretInTheFile(t *testing.T) {
	for name, sealed := range map[string]bool{"with a key file": true, "without": false} {
		t.Run(name, func(t *testing.T) {
			clk, dir := &clock{}, t.TempDir()
			o := store.Options{Now: clk.now}
			if sealed {
				a, err := seal.NewAtRest([][]byte{seal.NewKey()})
				if err != nil {
					t.Fatal(err)
				}
				o.Sealer = a
			}
			st, err := store.OpenSQLite(t.Context(), filepath.Join(dir, "g.db"), o)
			if err != nil {
				t.Fatal(err)
			}
			w := newWorld(t, testConfig, st, nil, clk)
			tok, err := w.signInClient(w.browser())
			if err != nil {
				t.Fatal(err)
			}
			s, err := st.GetAuthSession(t.Context(), w.sessionOf("admin@example.com").ID)
			if err != nil {
				t.Fatal(err)
			}
			err = st.UpdateUserIdentity(t.Context(), s.UserID, s.ConnectorID, func(u storage.UserIdentity) (storage.UserIdentity, error) {
				u.MFASecrets = map[string]*storage.MFASecret{"totp": {Secret: "otpauth://totp/secret-8842"}}
				return u, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			w.mustRotate(false)
			secrets := w.secrets(s.Secret)
			find := func(when string) {
				all := everything(t, dir)
				for what, secret := range secrets {
					if found := bytes.Contains(all, []byte(secret)); found == sealed {
						t.Errorf("%s: %s found %v, sealed %v", when, what, found, sealed)
					}
				}
				if !bytes.Contains(all, []byte("auth_session")) {
					t.Errorf("%s: not even a name of a kind is found: the test looks in the wrong place", when)
				}
			}
			find("while it runs")
			if _, err := webClient().TokenSource(w.direct(t.Context()), tok).Token(); err != nil {
				t.Error(err)
			}
			if err := st.Close(); err != nil {
				t.Fatal(err)
			}
			find("after its end")
		})
	}
}

// secrets are what is searched for, as the storage spells it where it is plain.
func (w *world) secrets(session string) map[string]string {
	w.t.Helper()
	k, err := w.store.SigningKeys(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	raw, err := k.SigningKey.MarshalJSON()
	if err != nil {
		w.t.Fatal(err)
	}
	_, private, _ := bytes.Cut(raw, []byte(`"d":"`))
	next, err := k.Next.Key.MarshalJSON()
	if err != nil {
		w.t.Fatal(err)
	}
	_, nextPrivate, _ := bytes.Cut(next, []byte(`"d":"`))
	tokens, err := w.store.ListRefreshTokens(w.t.Context())
	if err != nil || len(tokens) != 1 {
		w.t.Fatalf("%d refresh tokens, %v", len(tokens), err)
	}
	ring, _, err := w.store.SealKeys(w.t.Context(), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return map[string]string{
		"the session's secret": session, "a second factor": "secret-8842", "a refresh token": tokens[0].Token, "the key for the issuer's cookie": string(w.provider.sso),
		"the signing key": string(private[:40]), "the next signing key": string(nextPrivate[:40]), "a key for cookies": base64.StdEncoding.EncodeToString(ring.Keys[0].Key),
	}
}

// everything is the content of all files of a folder.
func everything(t *testing.T, dir string) (all []byte) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	return all
}
