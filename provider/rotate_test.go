package provider

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/oauth2"

	"gatehouse/internal/handoff"
	"gatehouse/internal/seal"
	"gatehouse/provider/store"
	"gatehouse/test/peers"

	"github.com/dexidp/dex/storage"
)

// waitFor waits for a condition, and returns how long it took.
func waitFor(t *testing.T, what string, ok func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(time.Minute)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("waited in vain: %s", what)
		}
	}
	return time.Since(began)
}

// feedEvery is how often replicas of tests read the change log.
const feedEvery = 50 * time.Millisecond

// onReplicas runs a test on two stores of one database, each of which follows the other.
func onReplicas(t *testing.T, test func(t *testing.T, stores [2]*store.Store, clk *clock)) {
	t.Helper()
	run := func(name string, open func(t *testing.T, o store.Options) *store.Store, before func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			if before != nil {
				before(t)
			}
			clk := &clock{}
			clk.stop() // a sign-in may take longer than a key waits
			var both [2]*store.Store
			for i := range both {
				both[i] = open(t, store.Options{Now: clk.now, FeedInterval: feedEvery})
				follow(t, both[i])
			}
			test(t, both, clk)
		})
	}
	var d store.Driver
	run("memory", func(t *testing.T, o store.Options) *store.Store {
		t.Helper()
		return mustOpen(store.New(t.Context(), d, o))(t)
	}, func(*testing.T) { d = store.MemoryDriver() })
	var path string
	run("sqlite", func(t *testing.T, o store.Options) *store.Store {
		t.Helper()
		return mustOpen(store.OpenSQLite(t.Context(), path, o))(t)
	}, func(t *testing.T) { t.Helper(); path = filepath.Join(t.TempDir(), "g.db") })
	var c store.PostgresConfig
	run("postgres", func(t *testing.T, o store.Options) *store.Store {
		t.Helper()
		return mustOpen(store.OpenPostgres(t.Context(), c, o))(t)
	}, func(t *testing.T) { t.Helper(); c = database(t) })
}

func mustOpen(s *store.Store, err error) func(t *testing.T) *store.Store {
	return func(t *testing.T) *store.Store {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
}

// follow reads the change log of a store until the test ends, and closes the store then.
func follow(t *testing.T, s *store.Store) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan struct{})
	go func() {
		defer close(over)
		_ = s.Follow(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-over
		_ = s.Close()
	})
}

func database(t *testing.T) store.PostgresConfig {
	t.Helper()
	server := peers.Postgres(t, peers.PostgresOptions{})
	host, port, err := net.SplitHostPort(server.Addr)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return store.PostgresConfig{Host: host, Port: n, Database: "postgres", User: server.User, Password: func() string { return server.Password }, SSL: store.PostgresSSL{Mode: "disable"}}
}

func (w *world) ids() []string {
	var out []string
	set := w.published()
	for i := range set.Len() {
		key, _ := set.Key(i)
		out = append(out, key.KeyID())
	}
	slices.Sort(out)
	return out
}

// signingKey is the key that signs ID Tokens now.
func (w *world) signingKey() string { return headOf(w.t, w.signed()).KeyID() }

// idToken is a fresh one of the outside client.
func (w *world) idToken() string {
	w.t.Helper()
	tok, err := w.signInClient(w.browser())
	if err != nil {
		w.t.Fatal(err)
	}
	raw, _ := tok.Extra("id_token").(string)
	return raw
}

func (w *world) good(raw string) bool {
	_, err := w.provider.Keys().Verify(w.t.Context(), raw, "web")
	return err == nil
}

func (w *world) mustRotate(now bool) Rotation {
	w.t.Helper()
	r, err := w.provider.RotateKeys(w.t.Context(), now)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// TestRotateKeys pins both ways to rotate, on two replicas: a new key is known to both before it signs on either; one that is withdrawn is refused here at once,
// and on the other replica as soon as it reads the change log; nobody is signed out.
func TestRotateKeys(t *testing.T) {
	onReplicas(t, func(t *testing.T, stores [2]*store.Store, clk *clock) {
		key := seal.NewKey()
		a, b := newWorld(t, testConfig, stores[0], key, clk), newWorld(t, testConfig, stores[1], key, clk)
		user := a.browser().get("https://app.example.com/x")
		user.signIn("user@example.com", "password")
		tok, err := a.signInClient(a.browser())
		if err != nil {
			t.Fatal(err)
		}
		old, _ := tok.Extra("id_token").(string)
		first := headOf(t, old).KeyID()

		r := a.mustRotate(false)
		if lead := r.SignsFrom.Sub(clk.now()); lead < feedEvery || lead > feedEvery+publishLead || len(r.Withdrawn) != 0 || r.KeyID == first {
			t.Errorf("got %+v, signing in %v", r, lead)
		}
		if again := a.mustRotate(false); again.KeyID != r.KeyID || !again.SignsFrom.Equal(r.SignsFrom) {
			t.Errorf("a second rotation while the new key waits: got %+v, want %+v", again, r)
		}
		want := []string{first, r.KeyID}
		slices.Sort(want)
		waitFor(t, "both keys are published by the other replica", func() bool { return slices.Equal(b.ids(), want) })
		if got := a.ids(); !slices.Equal(got, want) {
			t.Errorf("this replica publishes %v, want %v", got, want)
		}
		for name, w := range map[string]*world{"this replica": a, "the other": b} {
			if got := w.signingKey(); got != first {
				t.Errorf("before its time, %s signs with %s, want %s", name, got, first)
			}
		}
		clk.add(a.provider.keyCache.lead())
		for name, w := range map[string]*world{"this replica": a, "the other": b} {
			raw := w.signed()
			if got := headOf(t, raw).KeyID(); got != r.KeyID {
				t.Errorf("from its time on, %s signs with %s, want %s", name, got, r.KeyID)
			}
			if !a.good(raw) || !b.good(raw) || !a.good(old) || !b.good(old) || !slices.Equal(w.ids(), want) {
				t.Errorf("%s: a token is refused, or a key is not published: %v", name, w.ids())
			}
		}
		if tok, err = a.signInClient(a.browser()); err != nil {
			t.Fatal(err)
		}
		told := make(chan struct{}, 10)
		b.provider.OnKeysWithdrawn(func() { told <- struct{}{} })
		now := a.mustRotate(true)
		if slices.Sort(now.Withdrawn); !slices.Equal(now.Withdrawn, want) || now.SignsFrom.After(clk.now()) {
			t.Errorf("got %+v, want %v withdrawn", now, want)
		}
		if a.good(old) {
			t.Error("this replica takes a token of a withdrawn key")
		}
		if got := a.ids(); !slices.Equal(got, []string{now.KeyID}) {
			t.Errorf("this replica publishes %v, want %s only", got, now.KeyID)
		}
		took := waitFor(t, "the other replica refuses a token of a withdrawn key", func() bool { return !b.good(old) })
		t.Logf("refused by the other replica after %v, with a feed interval of %v", took, feedEvery)
		select {
		case <-told:
		case <-time.After(time.Minute):
			t.Error("the other replica's tokens for apps are not renewed")
		}
		if got := b.ids(); !slices.Equal(got, []string{now.KeyID}) {
			t.Errorf("the other replica publishes %v, want %s only", got, now.KeyID)
		}
		now = a.mustRotate(true)
		if raw := a.appToken(); headOf(t, raw).KeyID() != now.KeyID {
			t.Error("a withdrawn key signs for apps")
		}
		payload := a.signed()
		if headOf(t, payload).KeyID() != now.KeyID || !b.good(payload) {
			t.Error("the other replica does not take a token of the new key at once")
		}
		for _, w := range []*world{a, b} {
			user.w = w
			if user.get("https://app.example.com/y"); !strings.HasPrefix(user.page, "hello user@example.com") {
				t.Errorf("the session: %d %s", user.code, user.page)
			}
			if status := w.browser().userinfo(old); status != http.StatusUnauthorized {
				t.Errorf("userinfo for a token of a withdrawn key: %d", status)
			}
		}
		fresh, err := webClient().TokenSource(b.direct(t.Context()), &oauth2.Token{RefreshToken: tok.RefreshToken}).Token()
		if err != nil {
			t.Fatalf("refresh token: %v", err)
		}
		if raw, _ := fresh.Extra("id_token").(string); headOf(t, raw).KeyID() != now.KeyID || !a.good(raw) {
			t.Error("what a refresh token gives is not signed with the new key")
		}
	})
}

// signed returns an ID Token for the outside client as it is signed now.
func (w *world) signed() string {
	w.t.Helper()
	sign, err := w.provider.openSigner(w.provider.current.Load().config)
	if err != nil {
		w.t.Fatal(err)
	}
	raw, err := sign.Sign(w.t.Context(), fmt.Appendf(nil, `{"iss":%q,"aud":"web","sub":"x","exp":%d,"iat":%d}`, issuer, w.now().Add(time.Hour).Unix(), w.now().Unix()))
	if err != nil {
		w.t.Fatal(err)
	}
	return raw
}

// TestRotationsAtOnce has both replicas rotate many times at once: they agree in the end, and what was withdrawn stays so.
func TestRotationsAtOnce(t *testing.T) {
	onReplicas(t, func(t *testing.T, stores [2]*store.Store, clk *clock) {
		key := seal.NewKey()
		text := testConfig + "signer: {type: local, config: {algorithm: ES256}}\n"
		worlds := [2]*world{newWorld(t, text, stores[0], key, clk), newWorld(t, text, stores[1], key, clk)}
		rotate := func(now bool) (ids, withdrawn []string) {
			var mu sync.Mutex
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					r, err := worlds[i%2].provider.RotateKeys(t.Context(), now)
					mu.Lock()
					defer mu.Unlock()
					if err != nil {
						t.Error(err)
					}
					ids, withdrawn = append(ids, r.KeyID), append(withdrawn, r.Withdrawn...)
				})
			}
			wg.Wait()
			return ids, withdrawn
		}
		ids, withdrawn := rotate(false)
		if len(slices.Compact(ids)) != 1 || len(withdrawn) != 0 {
			t.Errorf("got keys %v, want the same of all", ids)
		}
		waiting := ids[0]
		ids, withdrawn = rotate(true)
		slices.Sort(ids)
		if len(slices.Compact(ids)) != 8 || !slices.Contains(withdrawn, waiting) {
			t.Errorf("got keys %v, want 8; withdrawn %v, %s among them", ids, withdrawn, waiting)
		}
		left := slices.DeleteFunc(ids, func(id string) bool { return slices.Contains(withdrawn, id) })
		if len(left) != 1 {
			t.Fatalf("%d keys were not withdrawn, want 1", len(left))
		}
		for _, w := range worlds {
			waitFor(t, "one key is left", func() bool { return slices.Equal(w.ids(), left) })
		}
	})
}

// TestRotationByTheClockPublishesFirst pins that Dex's rotation keeps to the same rule, and that nobody has to write anything when the key's time comes: a process
// that begins later, or after the one that rotated has died, has it by itself.
func TestRotationByTheClockPublishesFirst(t *testing.T) {
	w, clk := memoryWorld(t)
	clk.stop()
	first := w.signingKey()
	clk.add(7 * time.Hour)
	w.rotate()
	k := w.provider.keyCache.current.Load()
	if k.SigningKey.KeyID != first || k.Next == nil || k.Next.SignsFrom.Sub(k.Next.Published) != w.provider.keyCache.lead() {
		t.Fatalf("the new key does not wait: %+v", k.Next)
	}
	next := k.Next.Key.KeyID
	if ids := w.ids(); len(ids) != 2 || !slices.Contains(ids, next) || w.signingKey() != first {
		t.Errorf("published: %v, want %s, which does not sign yet", ids, next)
	}
	w.rotate() // nothing is due
	clk.add(w.provider.keyCache.lead() - time.Second)
	if got := w.signingKey(); got != first {
		t.Errorf("a second before its time: %s signs, want %s", got, first)
	}
	before, err := w.store.SigningKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	clk.add(2 * time.Second)
	if got := w.signingKey(); got != next {
		t.Errorf("from its time on: %s signs, want %s", got, next)
	}
	after, err := w.store.SigningKeys(t.Context())
	if err != nil || after.Next == nil || after.Next.Key.KeyID != before.Next.Key.KeyID {
		t.Errorf("the storage was written: %+v, %v", after.Next, err)
	}
	later := w.otherReplica()
	if k := later.effective(); k.SigningKey.KeyID != next || !verifies(&k.Keys, first, clk.now().Add(23*time.Hour)) {
		t.Errorf("a process that begins later: %s signs, and the former one does not verify for as long as its tokens", k.SigningKey.KeyID)
	}
}

// slowDriver holds the first read of the signing keys back, once it has them.
type slowDriver struct {
	store.Driver
	mu      sync.Mutex
	held    chan struct{} // closed once a read is held; nil: none is
	release chan struct{}
	wrote   chan struct{}
}

func (d *slowDriver) Read(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	r, err := d.Driver.Read(ctx, kind, id)
	d.mu.Lock()
	held := d.held
	if kind == store.KindKeys {
		d.held = nil
	}
	d.mu.Unlock()
	if kind == store.KindKeys && held != nil {
		close(held)
		<-d.release
	}
	return r, err
}

func (d *slowDriver) Write(ctx context.Context, ops []store.Op) (int64, error) {
	seq, err := d.Driver.Write(ctx, ops)
	if d.wrote != nil && ops[0].Record.Kind == store.KindKeys {
		d.wrote <- struct{}{}
	}
	return seq, err
}

// TestASlowReadBringsNoWithdrawnKeyBack pins that what was read before a rotation is not published after it.
func TestASlowReadBringsNoWithdrawnKeyBack(t *testing.T) {
	clk, d := &clock{}, &slowDriver{Driver: store.MemoryDriver()}
	st, err := store.New(t.Context(), d, store.Options{Now: clk.now})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, testConfig, st, seal.NewKey(), clk)
	old := w.idToken()
	d.mu.Lock()
	held := make(chan struct{})
	d.held, d.release, d.wrote = held, make(chan struct{}), make(chan struct{}, 10)
	d.mu.Unlock()
	read := make(chan error, 1)
	go func() { read <- w.provider.keyCache.read(t.Context()) }()
	<-held
	rotated := make(chan error, 1)
	go func() {
		_, err := w.provider.RotateKeys(t.Context(), true)
		rotated <- err
	}()
	<-d.wrote
	done := false
	select {
	case err = <-rotated: // it did not wait for the read
		done = true
	case <-time.After(200 * time.Millisecond):
	}
	close(d.release)
	if !done {
		err = <-rotated
	}
	if err := errors.Join(err, <-read); err != nil {
		t.Fatal(err)
	}
	if w.good(old) {
		t.Error("a withdrawn key is back")
	}
}

// TestRotationFails pins that a rotation that could not be stored changes nothing.
func TestRotationFails(t *testing.T) {
	w, _, d := brokenWorld(t, testConfig)
	raw := w.idToken()
	before := w.ids()
	d.broken.Store(true)
	if r, err := w.provider.RotateKeys(t.Context(), true); err == nil || r.KeyID != "" {
		t.Errorf("got %+v, %v, want an error", r, err)
	}
	d.broken.Store(false)
	if !w.good(raw) || !slices.Equal(w.ids(), before) {
		t.Error("it has withdrawn a key")
	}
}

// TestKeysOfCookiesRotate pins that a new key of the ring in the storage opens on every replica before it seals on one, that the old one opens for as long as a cookie may
// live, and that nobody is signed out by any of it.
func TestKeysOfCookiesRotate(t *testing.T) {
	onReplicas(t, func(t *testing.T, stores [2]*store.Store, clk *clock) {
		legacy := seal.NewKey() // of an earlier version, which had one key for ever
		if _, _, err := stores[0].Secret(t.Context(), "seal", func() []byte { return legacy }); err != nil {
			t.Fatal(err)
		}
		a, b := newWorld(t, testConfig, stores[0], nil, clk), newWorld(t, testConfig, stores[1], nil, clk)
		rings := [2]*StoredRing{a.provider.options.StoredRing, b.provider.options.StoredRing}
		look := func() {
			for _, r := range rings {
				r.use()
			}
		}
		of := func(w *world) string { return handoff.SealCookie(w.ring, "app.example.com", "sid", clk.now()) }
		opens := func(w *world, cookie string) bool {
			_, _, err := handoff.OpenCookie(nil, w.ring, "app.example.com", cookie)
			return err == nil
		}
		one, err := seal.NewRing([][]byte{legacy}, handoff.PurposeCookie)
		if err != nil {
			t.Fatal(err)
		}
		legacyOpens := func(cookie string) bool {
			_, _, err := handoff.OpenCookie(nil, one, "app.example.com", cookie)
			return err == nil
		}
		user := a.browser().get("https://app.example.com/x")
		user.signIn("user@example.com", "password")
		old := of(a)
		if !legacyOpens(old) || !opens(b, old) {
			t.Fatal("the key of an earlier version is not taken over")
		}
		a.mustRotate(false)
		b.mustRotate(true) // a key waits: there is no other
		if !legacyOpens(of(a)) || !legacyOpens(of(b)) {
			t.Error("a new key seals before its time")
		}
		waitFor(t, "the other replica has the new key", func() bool {
			k, _, err := stores[1].SealKeys(t.Context(), nil)
			rings[1].mu.Lock()
			defer rings[1].mu.Unlock()
			return err == nil && len(k.Keys) == 2 && len(rings[1].keys.Keys) == 2
		})
		rings[1].mu.Lock() // this one comes later
		clk.add(rings[0].lead)
		rings[0].use()
		fresh := of(a)
		if legacyOpens(fresh) || !opens(b, fresh) || !opens(a, of(b)) || !legacyOpens(of(b)) {
			t.Error("the new key does not seal, or does not open where it does not seal yet")
		}
		rings[1].mu.Unlock()
		look()
		for _, w := range []*world{a, b} {
			user.w = w
			if user.get("https://app.example.com/y"); !strings.HasPrefix(user.page, "hello user") || !opens(w, old) || !opens(w, of(a)) || !opens(w, of(b)) {
				t.Errorf("after the rotation: %d %s", user.code, user.page)
			}
		}
		clk.add(168*time.Hour - time.Second)
		look()
		if !opens(a, old) || !opens(b, old) {
			t.Error("an old key does not open as long as a cookie may live")
		}
		clk.add(rings[0].lead + time.Minute)
		for _, r := range rings {
			if err := r.drop(t.Context()); err != nil {
				t.Error(err)
			}
		}
		look()
		if opens(a, old) || opens(b, old) {
			t.Error("an old key opens for ever")
		}
		k, _, err := stores[0].SealKeys(t.Context(), nil)
		if err != nil || len(k.Keys) != 1 {
			t.Errorf("the storage has %d keys, %v, want 1", len(k.Keys), err)
		}
		if v, created, err := stores[0].Secret(t.Context(), "seal", func() []byte { return []byte("x") }); err != nil || !created {
			t.Errorf("the one key of an earlier version is still there: %q, %v", v, err)
		}
	})
}

// TestKeysOfCookiesGoByTheClock pins that nobody has to do anything for a key to seal, and for one to be dropped, in time.
func TestKeysOfCookiesGoByTheClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		st := store.Memory(store.Options{})
		r, created, err := OpenStoredRing(ctx, st, time.Now, slog.New(slog.DiscardHandler), handoff.PurposeCookie)
		if err != nil || !created {
			t.Fatal(created, err)
		}
		seals := func() string { return handoff.SealCookie(r.Ring(), "h", "sid", time.Now()) }
		old, err := seal.NewRing([][]byte{r.Oldest()}, handoff.PurposeCookie)
		if err != nil {
			t.Fatal(err)
		}
		first := seals()
		of := func(ring *seal.Ring, cookie string) bool {
			_, _, err := handoff.OpenCookie(nil, ring, "h", cookie)
			return err == nil
		}
		if err := r.rotate(ctx, 24*time.Hour); err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct {
			wait                    time.Duration
			oldSeals, opens, stored bool
		}{
			{r.lead - 1, true, true, true}, {1, false, true, true}, {24*time.Hour + r.lead - 1, false, true, true}, {1, false, false, false},
		} {
			time.Sleep(step.wait)
			synctest.Wait()
			k, _, err := st.SealKeys(ctx, nil)
			if got := of(old, seals()); got != step.oldSeals || of(r.Ring(), first) != step.opens || (len(k.Keys) == 2) != step.stored || err != nil {
				t.Errorf("%v later: the old key seals %v, opens %v, and %d are stored (%v); want %+v", step.wait, got, of(r.Ring(), first), len(k.Keys), err, step)
			}
		}
		cancel()
		synctest.Wait()
	})
}

// TestKeysOfCookiesAreBounded pins that no number of rotations drops a key whose cookies live.
func TestKeysOfCookiesAreBounded(t *testing.T) {
	clk := &clock{}
	clk.stop()
	st := store.Memory(store.Options{Now: clk.now})
	w := newWorld(t, testConfig, st, nil, clk)
	r := w.provider.options.StoredRing
	first := handoff.SealCookie(w.ring, "h", "sid", clk.now())
	for range maxSealKeys + 5 {
		if err := r.rotate(t.Context(), 168*time.Hour); err != nil {
			t.Fatal(err)
		}
		clk.add(r.lead)
		r.use()
	}
	if k, _, err := st.SealKeys(t.Context(), nil); err != nil || len(k.Keys) != maxSealKeys {
		t.Errorf("got %d keys, %v, want %d", len(k.Keys), err, maxSealKeys)
	}
	if _, _, err := handoff.OpenCookie(nil, w.ring, "h", first); err != nil {
		t.Errorf("the first cookie: %v", err)
	}
	r.mu.Lock() // it may be about to read what was stored
	defer r.mu.Unlock()
	if s := fmt.Sprintf("%v %+v", r.keys, r.keys.Keys[0]); strings.Contains(s, "Key:[") {
		t.Errorf("a key is printed: %s", s)
	}
}

// TestSSOOutlivesKeys pins that the issuer's cookie does not depend on keys that are changed: after the last line of a key file is another one, a browser is signed in
// again without being asked; and that an installation of before goes on with what it had.
func TestSSOOutlivesKeys(t *testing.T) {
	clk := &clock{}
	st := store.Memory(store.Options{Now: clk.now})
	before := newWorld(t, testConfig, st, seal.NewKey(), clk)
	b := before.browser().get("https://app.example.com/x")
	b.signIn("user@example.com", "password")
	b.w = newWorld(t, testConfig, st, seal.NewKey(), clk)
	if b.get("https://app.example.com/y"); !strings.HasPrefix(b.page, "hello user") {
		t.Errorf("with other keys: %d %s", b.code, b.page)
	}
	if !bytes.Equal(before.provider.sso, b.w.provider.sso) {
		t.Error("the key of the issuer's cookie is another one")
	}

	old := store.Memory(store.Options{Now: clk.now}) // an earlier version has run on it
	signing, err := newSigningKey("ES256")
	if err != nil {
		t.Fatal(err)
	}
	err = old.UpdateKeys(t.Context(), func(storage.Keys) (storage.Keys, error) {
		return storage.Keys{SigningKey: signing, SigningKeyPub: public(signing)}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	cookieKey := bytes.Repeat([]byte{7}, 32)
	p := newProvider(t.Context(), Options{Config: before.provider.options.Config, Store: old, CookieKey: cookieKey, Log: before.provider.log, Now: clk.now})
	first, err := p.ssoKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if was, err := hkdf.Key(sha256.New, cookieKey, nil, "gatehouse sso cookie", 32); err != nil || !bytes.Equal(first, was) {
		t.Errorf("an installation of before: got another key than it had, %v", err)
	}
	p.options.CookieKey = seal.NewKey()
	if again, err := p.ssoKey(t.Context()); err != nil || !bytes.Equal(again, first) {
		t.Errorf("and then with other keys: %v", err)
	}
}

// What a replica planned whose clock was a year ahead is planned anew by the next rotation: keys do not stay as they are for a year.
func TestRotationByAClockThatWasAhead(t *testing.T) {
	const year = 365 * 24 * time.Hour
	st, clk := store.Memory(store.Options{}), &clock{}
	w := newWorld(t, testConfig, st, nil, clk)
	first := w.signed()
	clk.add(year)
	ahead := w.mustRotate(false)
	clk.add(-year)
	if err := w.provider.keyCache.read(t.Context()); err != nil {
		t.Fatal(err)
	}
	lead, began := w.provider.keyCache.lead(), clk.now()
	r := w.mustRotate(false)
	if r.SignsFrom.Sub(began) > lead+time.Minute || r.KeyID != ahead.KeyID {
		t.Errorf("got %+v, want that %s signs after %v", r, ahead.KeyID, lead)
	}
	clk.add(lead + time.Minute)
	if got := headOf(t, w.signed()).KeyID(); got != r.KeyID || !w.good(first) {
		t.Errorf("%s signs, want %s; the first token is good %v", got, r.KeyID, w.good(first))
	}
	k, _, err := st.SealKeys(t.Context(), nil)
	if err != nil || len(k.Keys) != 2 || k.Keys[1].SealsFrom.After(clk.now()) || k.Keys[0].OpensUntil.After(clk.now().Add(year/2)) {
		t.Errorf("keys of cookies: %d, %v: the new one seals from %v, the former opens until %v", len(k.Keys), err, k.Keys[1].SealsFrom, k.Keys[0].OpensUntil)
	}
	if again := w.mustRotate(false); again.KeyID == r.KeyID {
		t.Error("the next rotation makes no other key")
	}
}
