package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"gatehouse/internal/seal"

	"github.com/dexidp/dex/storage"
	"github.com/go-jose/go-jose/v4"
)

func sealerOf(t testing.TB, keys ...[]byte) *seal.AtRest {
	t.Helper()
	a, err := seal.NewAtRest(keys)
	must(t, err)
	return a
}

// secretText is in a field of every kind that holds a secret.
const secretText = "sesame-7731-open"

// fillSecrets stores one record of each kind.
func fillSecrets(t testing.TB, s *Store) {
	t.Helper()
	ctx := t.Context()
	session := newSession("sid", "alice")
	session.Secret = secretText
	must(t, s.CreateAuthSession(ctx, session))
	must(t, s.CreateClient(ctx, storage.Client{ID: "web", Secret: secretText}))
	must(t, s.CreatePassword(ctx, storage.Password{Email: "a@example.com", UserID: secretText}))
	must(t, s.CreateConnector(ctx, storage.Connector{ID: "idp", Name: secretText}))
	must(t, s.CreateRefresh(ctx, storage.RefreshToken{ID: "r", Token: secretText}))
	must(t, s.CreateOfflineSessions(ctx, storage.OfflineSessions{UserID: "alice", ConnID: "ad", Refresh: map[string]*storage.RefreshTokenRef{"web": {ID: secretText}}}))
	must(t, s.CreateUserIdentity(ctx, storage.UserIdentity{UserID: "alice", ConnectorID: "ad", MFASecrets: map[string]*storage.MFASecret{"totp": {Secret: secretText}}}))
	must(t, s.CreateAuthCode(ctx, storage.AuthCode{ID: "code", Nonce: secretText}))
	must(t, s.CreateAuthRequest(ctx, storage.AuthRequest{ID: "request", Nonce: secretText}))
	must(t, s.CreateDeviceRequest(ctx, storage.DeviceRequest{UserCode: "user", ClientSecret: secretText}))
	must(t, s.CreateDeviceToken(ctx, storage.DeviceToken{DeviceCode: "device", Token: secretText}))
	must(t, create(ctx, s, &marks, &Mark{About: MarkClient, ID: "web", Print: secretText}))
	must(t, create(ctx, s, &outbox, &Notice{ID: "notice", SessionID: secretText}))
	must(t, create(ctx, s, &upstreamSessions, &UpstreamSession{SessionID: "sid", ConnectorID: "idp", Claim: "sub", Value: "alice"}))
	must(t, create(ctx, s, &seenOnce, &seen{ID: "seen"}))
	must(t, create(ctx, s, &grants, &Grants{UserID: "alice", ConnectorID: "idp", Refused: secretText}))
	must(t, create(ctx, s, &spentCodes, &SpentCode{ID: "spent", RefreshID: secretText}))
	must(t, create(ctx, s, &replays, &Replay{ID: "spent", SessionID: secretText}))
	must(t, create(ctx, s, &vouches, &Vouched{UserID: "alice", ConnectorID: "idp"}))
	must(t, s.UpdateSigningKeys(ctx, func(k Keys) (Keys, error) {
		k.SigningKey = &jose.JSONWebKey{Key: []byte("oct"), KeyID: secretText}
		return k, nil
	}))
	_, _, err := s.Secret(ctx, "seal", func() []byte { return []byte(secretText) })
	must(t, err)
}

// rawRecords returns what the database holds, by kind.
func rawRecords(t testing.TB, s *Store) map[Kind]Record {
	t.Helper()
	out := map[Kind]Record{}
	for _, kind := range everyKind() {
		for r, err := range s.driver.Driver.Scan(t.Context(), Query{Kind: kind}) {
			must(t, err)
			if r.ID != witnessID {
				out[kind] = r
			}
		}
	}
	return out
}

func onSealable(t *testing.T, test func(t *testing.T, open func(Options) *Store)) {
	t.Helper()
	for name, open := range stores() {
		t.Run(name, func(t *testing.T) {
			test(t, func(o Options) *Store {
				s := open(t, o)
				t.Cleanup(func() { must(t, s.Close()) })
				return s
			})
		})
	}
}

// TestNoSecretAtRest looks at what the drivers keep: with a sealer no secret of any kind, without one all of them, so that the test can fail.
func TestNoSecretAtRest(t *testing.T) {
	onSealable(t, func(t *testing.T, open func(Options) *Store) {
		for _, sealer := range []Sealer{nil, sealerOf(t, seal.NewKey())} {
			s := open(Options{Sealer: sealer})
			fillSecrets(t, s)
			all := rawRecords(t, s)
			if len(all) != len(everyKind()) {
				t.Fatalf("got records of %d kinds, want %d", len(all), len(everyKind()))
			}
			for kind, r := range all {
				if bytes.HasPrefix(r.Data, []byte("{")) && sealer != nil {
					t.Errorf("%s: plain: %q", kind, r.Data)
				}
				if plain := bytes.Contains(r.Data, []byte(secretText)); plain != (sealer == nil) && !slices.Contains([]Kind{KindUpstream, KindSeen, KindVouched}, kind) { // these hold no secret
					t.Errorf("%s: secret found %v, sealer %v: %q", kind, plain, sealer != nil, r.Data)
				}
			}
			if v, err := s.GetAuthSession(t.Context(), "sid"); err != nil || v.Secret != secretText {
				t.Errorf("session: got %q, %v", v.Secret, err)
			}
			list, err := s.SessionsOf(t.Context(), "alice", "ad")
			if err != nil || len(list) != 1 || list[0].Secret != secretText {
				t.Errorf("by owner: %v, %v", list, err)
			}
			if k, err := s.SigningKeys(t.Context()); err != nil || k.SigningKey.KeyID != secretText {
				t.Errorf("keys: %v", err)
			}
			if v, created, err := s.Secret(t.Context(), "seal", nil); err != nil || created || string(v) != secretText {
				t.Errorf("secret: %q, %v", v, err)
			}
			if sealer == nil {
				continue
			}
			must(t, s.UpdateAuthSession(t.Context(), "sid", touch))
			if r := rawRecords(t, s)[KindSession]; bytes.Contains(r.Data, []byte(secretText)) || r.Owner == "" || r.Expires.IsZero() {
				t.Errorf("after an update: %+v", r)
			}
		}
	})
}

// overwrite puts data into the database past the store, as who may write it could.
func overwrite(t testing.TB, s *Store, kind Kind, id string, data []byte) {
	t.Helper()
	r, err := s.driver.Driver.Read(t.Context(), kind, id)
	must(t, err)
	r.Data = data
	_, err = s.driver.Driver.Write(t.Context(), []Op{{Verb: Put, Record: r}})
	must(t, err)
}

func rawOf(t testing.TB, s *Store, kind Kind, id string) []byte {
	t.Helper()
	r, err := s.driver.Driver.Read(t.Context(), kind, id)
	must(t, err)
	return slices.Clone(r.Data)
}

// TestSealedRecordsStayInPlace attacks the database: what is sealed is good in its own place only, and what does not open is never
// taken for what is not there, nor overwritten.
func TestSealedRecordsStayInPlace(t *testing.T) {
	onSealable(t, func(t *testing.T, open func(Options) *Store) {
		s := open(Options{Sealer: sealerOf(t, seal.NewKey())})
		ctx := t.Context()
		fillSecrets(t, s)
		must(t, s.CreateAuthSession(ctx, newSession("other", "mallory")))
		must(t, s.CreateAuthRequest(ctx, storage.AuthRequest{ID: "sid"}))
		sealed, other := rawOf(t, s, KindSession, "sid"), rawOf(t, s, KindSession, "other")
		flipped := slices.Clone(sealed)
		flipped[len(flipped)/2] ^= 1
		for name, data := range map[string][]byte{
			"of another record": other, "of another kind": rawOf(t, s, KindAuthRequest, "sid"), "truncated": sealed[:len(sealed)-1], "only the mark": []byte(sealedMark),
			"only a head": sealed[:len(sealedMark)+10], "a bit flipped": flipped, "of another key": append([]byte(sealedMark), sealerOf(t, seal.NewKey()).Seal(nil, sealedFor(KindSession, "sid"), []byte(`{"ID":"sid"}`))...),
		} {
			overwrite(t, s, KindSession, "sid", data)
			if _, err := s.GetAuthSession(ctx, "sid"); !errors.Is(err, ErrSealed) || errors.Is(err, storage.ErrNotFound) || !strings.Contains(err.Error(), "gateway.keys.file") || strings.Contains(err.Error(), "sid") {
				t.Errorf("%s: got %v, want ErrSealed with the fix, and no name", name, err)
			}
			if err := s.UpdateAuthSession(ctx, "sid", touch); !errors.Is(err, ErrSealed) {
				t.Errorf("%s: update: %v", name, err)
			}
			if err := s.CreateAuthSession(ctx, newSession("sid", "eve")); !errors.Is(err, storage.ErrAlreadyExists) {
				t.Errorf("%s: create: %v", name, err)
			}
			if _, err := s.ListAuthSessions(ctx); !errors.Is(err, ErrSealed) {
				t.Errorf("%s: list: %v", name, err)
			}
			if !bytes.Equal(rawOf(t, s, KindSession, "sid"), data) {
				t.Errorf("%s: it was overwritten", name)
			}
			if done, err := s.Reseal(ctx); name == "of another key" && (!errors.Is(err, ErrSealed) || done.Left != 1) {
				t.Errorf("%s: sealed again: %+v, %v", name, done, err)
			}
		}
		overwrite(t, s, KindSession, "sid", sealed)
		if v, err := s.GetAuthSession(ctx, "sid"); err != nil || v.Secret != secretText {
			t.Errorf("put back: %v", err)
		}
		overwrite(t, s, KindSession, "sid", other)
		must(t, s.CreateAuthSession(ctx, newSession("third", "mallory")))
		overwrite(t, s, KindSession, "third", other)
		if err := errors.Join(s.DeleteAuthSession(ctx, "sid"), s.EndSession(ctx, "third", nil)); err != nil {
			t.Errorf("one that does not open cannot be deleted: %v", err)
		}
		// Keys and secrets: whoever finds none makes new ones.
		overwrite(t, s, KindKeys, keysID, other)
		if _, err := s.GetKeys(ctx); !errors.Is(err, ErrSealed) {
			t.Errorf("keys: %v", err)
		}
		called := false
		if err := s.UpdateKeys(ctx, func(k storage.Keys) (storage.Keys, error) { called = true; return k, nil }); !errors.Is(err, ErrSealed) || called {
			t.Errorf("update of keys: %v, updater called %v", err, called)
		}
		overwrite(t, s, KindSecret, "seal", other)
		if _, _, err := s.Secret(ctx, "seal", func() []byte { called = true; return nil }); !errors.Is(err, ErrSealed) || called {
			t.Errorf("secret: %v, made anew %v", err, called)
		}
	})
}

// TestResealing pins how keys are changed: plain records are read, sealed when they are written next or by Reseal, and a key may be removed once Reseal is done.
func TestResealing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "g.db")
	old, key := seal.NewKey(), seal.NewKey()
	reopen := func(keys ...[]byte) *Store {
		o := Options{}
		if len(keys) > 0 {
			o.Sealer = sealerOf(t, keys...)
		}
		return openFile(t, path, o)
	}
	plain := reopen()
	fillSecrets(t, plain)
	if done, err := plain.Reseal(t.Context()); err != nil || done.Records != 0 {
		t.Errorf("without a sealer: %+v, %v", done, err)
	}
	must(t, plain.Close())

	s := reopen(old)
	if v, err := s.GetAuthSession(t.Context(), "sid"); err != nil || v.Secret != secretText {
		t.Fatalf("plain record: %v", err)
	}
	must(t, s.UpdateAuthSession(t.Context(), "sid", touch))
	if bytes.Contains(rawOf(t, s, KindSession, "sid"), []byte(secretText)) {
		t.Error("a plain record is not sealed when it is written")
	}
	changes := record(s)
	done, err := s.Reseal(t.Context())
	if want := len(everyKind()) - 1; err != nil || done.Records != want { // all but the session
		t.Errorf("got %+v, %v, want %d records", done, err, want)
	}
	if again, err := s.Reseal(t.Context()); err != nil || again.Records != 0 {
		t.Errorf("a second time: %+v, %v", again, err)
	}
	if got := changes.all(); len(got) != 0 {
		t.Errorf("told of %v, and nothing is different", got)
	}
	for kind, r := range rawRecords(t, s) {
		if bytes.Contains(r.Data, []byte(secretText)) {
			t.Errorf("%s is plain", kind)
		}
	}
	must(t, s.Close())

	// The other key comes first, and the old one goes too early.
	s = reopen(key, old)
	must(t, s.Close())
	if _, err := OpenSQLite(t.Context(), path, Options{Sealer: sealerOf(t, key)}); !errors.Is(err, ErrSealed) || !strings.Contains(err.Error(), sealerOf(t, old).IDs()[0]) {
		t.Errorf("removed too early: got %v, want ErrSealed that names the key %s", err, sealerOf(t, old).IDs()[0])
	}
	s = reopen(key, old)
	if err := s.CheckSealer(t.Context(), sealerOf(t, key)); !errors.Is(err, ErrSealed) {
		t.Errorf("CheckSealer, too early: %v", err)
	}
	if done, err := s.Reseal(t.Context()); err != nil || done.Records != len(everyKind()) {
		t.Errorf("another key: %+v, %v", done, err)
	}
	must(t, s.CheckSealer(t.Context(), sealerOf(t, key)))
	must(t, s.Close())
	s = reopen(key)
	if v, err := s.GetUserIdentity(t.Context(), "alice", "ad"); err != nil || v.MFASecrets["totp"].Secret != secretText {
		t.Errorf("with the new key only: %v", err)
	}
	must(t, s.Close())
	if _, err := OpenSQLite(t.Context(), path, Options{}); !errors.Is(err, ErrSealed) || !strings.Contains(err.Error(), "gateway.keys.file is not set") {
		t.Errorf("without the file: %v", err)
	}
}

// TestASealedStoreNeedsItsKeyFromTheFirstRecord pins that the start says so even if nothing but the witness was written.
func TestASealedStoreNeedsItsKeyFromTheFirstRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "g.db")
	must(t, openFile(t, path, Options{Sealer: sealerOf(t, seal.NewKey())}).Close())
	for _, o := range []Options{{}, {Sealer: sealerOf(t, seal.NewKey())}} {
		if s, err := OpenSQLite(t.Context(), path, o); !errors.Is(err, ErrSealed) {
			t.Errorf("got %v, %v, want ErrSealed", s, err)
		}
	}
}

// TestNothingPlainIsLeftInTheFile pins that SQLite keeps nothing of records that were plain before, once they are sealed and the write-ahead log is gone.
func TestNothingPlainIsLeftInTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "g.db")
	s := openFile(t, path, Options{})
	session := newSession("sid", "alice")
	session.Secret = secretText
	must(t, s.CreateAuthSession(t.Context(), session))
	must(t, s.CreateClient(t.Context(), storage.Client{ID: "web", Secret: secretText}))
	must(t, s.Close())
	found := func() bool {
		b, err := os.ReadFile(path)
		must(t, err)
		return bytes.Contains(b, []byte(secretText))
	}
	if !found() {
		t.Fatal("it is not there while it is plain: the test shows nothing")
	}
	s = openFile(t, path, Options{Sealer: sealerOf(t, seal.NewKey())})
	done, err := s.Reseal(t.Context())
	must(t, err)
	must(t, s.Close())
	if done.Records != 2 || found() {
		t.Errorf("sealed %d records, and a secret is found %v", done.Records, found())
	}
}

// TestReplicasResealAtOnce has two processes seal the same records while others write them: nothing is lost, and all are sealed.
func TestReplicasResealAtOnce(t *testing.T) {
	old, key := seal.NewKey(), seal.NewKey()
	db := newDatabase(t)
	before := openDatabase(t, db, Options{Sealer: sealerOf(t, old)})
	const n = 100
	for i := range n {
		must(t, before.CreateAuthSession(t.Context(), newSession(fmt.Sprint(i), "alice")))
	}
	must(t, before.Close())
	replicas := [2]*Store{openDatabase(t, db, Options{Sealer: sealerOf(t, key, old)}), openDatabase(t, db, Options{Sealer: sealerOf(t, key, old)})}
	var wg sync.WaitGroup
	for _, s := range replicas {
		wg.Go(func() {
			if _, err := s.Reseal(t.Context()); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			for i := range n {
				if err := s.UpdateAuthSession(t.Context(), fmt.Sprint(i), touch); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, s := range replicas {
		must(t, s.Close())
	}
	after := openDatabase(t, db, Options{Sealer: sealerOf(t, key)})
	defer func() { must(t, after.Close()) }()
	all, err := after.ListAuthSessions(t.Context())
	must(t, err)
	if len(all) != n {
		t.Fatalf("got %d sessions, want %d", len(all), n)
	}
	for _, v := range all {
		if got := v.LastActivity.Sub(epoch).Seconds(); got != 2 {
			t.Errorf("session %s: touched %v times, want 2: an update was lost", v.ID, got)
		}
	}
}

func TestResealEndsWithItsContext(t *testing.T) {
	s := Memory(Options{})
	fillSecrets(t, s)
	s.driver.sealer = sealerOf(t, seal.NewKey())
	s.opts.Sealer = s.driver.sealer
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Reseal(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want canceled", err)
	}
}

// FuzzOpenSealed reads what a database could hold: what has the mark opens only if it was sealed for this record, and all else is as it is.
func FuzzOpenSealed(f *testing.F) {
	d := &counted{sealer: sealerOf(f, bytes.Repeat([]byte{7}, seal.KeySize))}
	for _, data := range []string{"", "{}", sealedMark, sealedMark + strings.Repeat("x", 60), string(d.sealed(Record{Kind: "k", ID: "id", Data: []byte("{}")}).Data)} {
		f.Add([]byte(data), "id")
	}
	f.Fuzz(func(t *testing.T, data []byte, id string) {
		r, err := d.open(Record{Kind: "k", ID: id, Data: data})
		marked := bytes.HasPrefix(data, []byte(sealedMark))
		switch {
		case !marked && (err != nil || !bytes.Equal(r.Data, data)):
			t.Fatalf("plain %q becomes %q, %v", data, r.Data, err)
		case marked && err == nil && (id != "id" || string(r.Data) != "{}"):
			t.Fatalf("forged: %q for %q gives %q", data, id, r.Data)
		case marked && err != nil && (!errors.Is(err, ErrSealed) || r.Data != nil):
			t.Fatalf("%q: got %q, %v", data, r.Data, err)
		}
		sealed := d.sealed(Record{Kind: "k", ID: id, Data: data})
		if back, err := d.open(sealed); err != nil || !bytes.Equal(back.Data, data) {
			t.Fatalf("%q comes back as %q, %v", data, back.Data, err)
		}
		sealed.Kind = "l"
		if _, err := d.open(sealed); err == nil {
			t.Fatal("opens as another kind")
		}
	})
}

// scanHook calls f before the first record of a kind is scanned.
type scanHook struct {
	Driver
	kind Kind
	f    func()
}

func (d *scanHook) Scan(ctx context.Context, q Query) iter.Seq2[Record, error] {
	if q.Kind == d.kind {
		d.f()
	}
	return d.Driver.Scan(ctx, q)
}

// TestKeysChangeWhileRecordsAreSealedAnew pins that the old key is still needed then, although the last records have the new one.
func TestKeysChangeWhileRecordsAreSealedAnew(t *testing.T) {
	old, key := seal.NewKey(), seal.NewKey()
	a := sealerOf(t, old)
	d := &scanHook{Driver: newMemory(), kind: KindSession, f: func() {}}
	s, err := New(t.Context(), d, Options{Sealer: a})
	must(t, err)
	fillSecrets(t, s)
	d.f = func() { must(t, a.Replace([][]byte{key, old})) }
	if _, err := s.Reseal(t.Context()); err == nil {
		t.Error("it says that all is done")
	}
	if err := s.CheckSealer(t.Context(), sealerOf(t, key)); !errors.Is(err, ErrSealed) {
		t.Errorf("the old key can go: %v", err)
	}
	d.f = func() {}
	done, err := s.Reseal(t.Context())
	must(t, err)
	must(t, s.CheckSealer(t.Context(), sealerOf(t, key)))
	if want := slices.Index(everyKind(), KindSession); done.Records != want {
		t.Errorf("got %+v, want the %d that were sealed before", done, want)
	}
}

// TestEveryKindIsSealedAnew finds a kind that was added and is not sealed anew: its records would not open once the key is removed.
func TestEveryKindIsSealedAnew(t *testing.T) {
	src, err := os.ReadDir(".")
	must(t, err)
	found := 0
	for _, f := range src {
		if !strings.HasSuffix(f.Name(), ".go") || strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		text, err := os.ReadFile(f.Name())
		must(t, err)
		for _, m := range regexp.MustCompile(`Kind[A-Z]\w* +(?:Kind +)?= "(\w+)"`).FindAllSubmatch(text, -1) {
			found++
			if !slices.Contains(everyKind(), Kind(m[1])) {
				t.Errorf("%s: it is not in everyKind", m[1])
			}
		}
	}
	if want := len(everyKind()); found != want {
		t.Errorf("found %d kinds, want %d", found, want)
	}
}

// A process that has not read its file yet seals with the old key after another one has sealed everything anew: that key stays needed.
func TestKeyStaysWhileARecordNeedsIt(t *testing.T) {
	old, key := seal.NewKey(), seal.NewKey()
	d := newMemory()
	open := func(keys ...[]byte) *Store {
		s, err := New(t.Context(), d, Options{Sealer: sealerOf(t, keys...)})
		must(t, err)
		return s
	}
	ahead, behind := open(key, old), open(old, key)
	_, err := ahead.Reseal(t.Context())
	must(t, err)
	must(t, ahead.CheckSealer(t.Context(), sealerOf(t, key)))
	must(t, behind.CreateAuthSession(t.Context(), newSession("late", "alice")))
	if err := ahead.CheckSealer(t.Context(), sealerOf(t, key)); !errors.Is(err, ErrSealed) || !strings.Contains(err.Error(), sealerOf(t, old).IDs()[0]) {
		t.Errorf("got %v, want that key %s is needed", err, sealerOf(t, old).IDs()[0])
	}
	_, err = ahead.Reseal(t.Context())
	must(t, err)
	must(t, ahead.CreateAuthSession(t.Context(), newSession("damaged", "alice")))
	overwrite(t, ahead, KindSession, "damaged", []byte(sealedMark+"which no key opens, the old one neither, and which keeps no key"))
	must(t, ahead.CheckSealer(t.Context(), sealerOf(t, key)))
}

// BenchmarkSealed compares a store that seals with one that does not.
func BenchmarkSealed(b *testing.B) {
	for name, open := range map[string]func(b *testing.B, o Options) *Store{
		"memory": func(_ *testing.B, o Options) *Store { return Memory(o) },
		"sqlite": func(b *testing.B, o Options) *Store { return openFile(b, filepath.Join(b.TempDir(), "g.db"), o) },
	} {
		for _, sealer := range []Sealer{nil, sealerOf(b, seal.NewKey())} {
			s := open(b, Options{Sealer: sealer})
			must(b, s.CreateAuthSession(b.Context(), newSession("sid", "alice")))
			of := fmt.Sprintf("%s/sealed=%v/", name, sealer != nil)
			b.Run(of+"get", func(b *testing.B) {
				for b.Loop() {
					if _, err := s.GetAuthSession(b.Context(), "sid"); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run(of+"update", func(b *testing.B) {
				for b.Loop() {
					must(b, s.UpdateAuthSession(b.Context(), "sid", touch))
				}
			})
			n := 0
			b.Run(of+"create", func(b *testing.B) {
				for b.Loop() {
					n++
					must(b, s.CreateAuthSession(b.Context(), newSession(fmt.Sprint(n), "alice")))
				}
			})
			must(b, s.Close())
		}
	}
}
