package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"gatehouse/internal/audit"
	"gatehouse/internal/handoff"
	"gatehouse/internal/seal"
	"gatehouse/provider/store"
)

// A keyBench is an installation in a folder, with a key file or without.
type keyBench struct {
	t    *testing.T
	dir  string
	logs lockedLog
}

type lockedLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// load reads the configuration, with a file of these keys; none: without one.
func (k *keyBench) load(keys ...[]byte) loaded {
	k.t.Helper()
	text := fmt.Sprintf(`issuer: https://auth.example.com/dex
storage: {type: sqlite, config: {file: %s/g.db}}
enablePasswordDB: true
gateway:
  hosts: [app.example.com]
`, k.dir)
	if len(keys) > 0 {
		var lines []string
		for _, key := range keys {
			lines = append(lines, base64.StdEncoding.EncodeToString(key))
		}
		k.write("keys", strings.Join(lines, "\n"))
		text += "  keys: {file: " + filepath.Join(k.dir, "keys") + "}\n"
	}
	k.write("gatehouse.yaml", text)
	l, err := read(k.t.Context(), filepath.Join(k.dir, "gatehouse.yaml"))
	if err != nil {
		k.t.Fatal(err)
	}
	return l
}

func (k *keyBench) write(name, text string) {
	k.t.Helper()
	if err := os.WriteFile(filepath.Join(k.dir, name), []byte(text), 0o600); err != nil {
		k.t.Fatal(err)
	}
}

// start builds what serve builds, until stop.
func (k *keyBench) start(l loaded) (s *service, stop func(), err error) {
	k.t.Helper()
	ctx, cancel := context.WithCancel(k.t.Context())
	s = &service{
		cfg: l.cfg, log: slog.New(slog.NewTextHandler(&k.logs, nil)), registry: prometheus.NewRegistry(), rekeyed: make(chan struct{}, 1), audit: audit.NewWriter(k.t.Output(), auditQueue),
	}
	s.auditLog = slog.New(slog.DiscardHandler)
	if err := s.openStore(ctx); err != nil {
		cancel()
		return nil, nil, err
	}
	if err := s.build(ctx); err != nil {
		cancel()
		return nil, nil, errors.Join(err, s.store.Close())
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		s.resealRecords(ctx)
	}()
	return s, func() {
		cancel()
		<-over
		if err := s.store.Close(); err != nil {
			k.t.Error(err)
		}
	}, nil
}

func (k *keyBench) waitForLog(text string) {
	k.t.Helper()
	tick, limit := time.NewTicker(5*time.Millisecond), time.After(time.Minute)
	defer tick.Stop()
	for !strings.Contains(k.logs.String(), text) {
		select {
		case <-tick.C:
		case <-limit:
			k.t.Fatalf("the log never said %q:\n%s", text, k.logs.String())
		}
	}
}

// TestKeyFileAtTheStart pins how an installation gets a key file, and that it does not start without it from then on.
func TestKeyFileAtTheStart(t *testing.T) {
	k := &keyBench{t: t, dir: t.TempDir()}
	key := seal.NewKey()
	for _, step := range []struct {
		name string
		keys [][]byte
		said string   // in the log
		err  []string // of the start; none: it starts
	}{
		{"without a file", nil, "secrets in the storage are not sealed", nil},
		{"with one", [][]byte{key}, "all records are sealed with the first key", nil},
		{"without it again", nil, "", []string{"gateway.keys.file is not set: set it"}},
		{"with another", [][]byte{seal.NewKey()}, "", []string{"put back the line of gateway.keys.file", keyID(t, key)}},
		{"with it", [][]byte{seal.NewKey(), key}, "what the storage keeps is sealed", nil},
	} {
		_, stop, err := k.start(k.load(step.keys...))
		switch {
		case len(step.err) == 0 && err != nil:
			t.Fatalf("%s: %v", step.name, err)
		case len(step.err) == 0:
			k.waitForLog(step.said)
			stop()
		case !errors.Is(err, store.ErrSealed):
			t.Fatalf("%s: got %v, want ErrSealed", step.name, err)
		}
		for _, want := range step.err {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want %q in it", step.name, err, want)
			}
		}
	}
	for _, key := range [][]byte{key} {
		if strings.Contains(k.logs.String(), base64.StdEncoding.EncodeToString(key)) {
			t.Error("a key is in the log")
		}
	}
}

func keyID(t *testing.T, key []byte) string {
	t.Helper()
	a, err := seal.NewAtRest([][]byte{key})
	if err != nil {
		t.Fatal(err)
	}
	return a.IDs()[0]
}

// TestKeyFileReloads walks through the change of a key as docs/operations.md has it, in one process that never restarts: cookies of before are good until the old line is
// removed, and it cannot be removed before all records are sealed anew.
func TestKeyFileReloads(t *testing.T) {
	k := &keyBench{t: t, dir: t.TempDir()}
	old, key := seal.NewKey(), seal.NewKey()
	s, stop, err := k.start(k.load(old))
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	k.waitForLog("all records are sealed")
	cookie := handoff.SealCookie(s.ring, "app.example.com", "sid", utc())
	opens := func(cookie string, keys ...[]byte) bool {
		ring := s.ring
		if len(keys) > 0 {
			if ring, err = seal.NewRing(keys, handoff.PurposeCookie); err != nil {
				t.Fatal(err)
			}
		}
		_, _, err := handoff.OpenCookie(nil, ring, "app.example.com", cookie)
		return err == nil
	}
	apply := func(keys ...[]byte) error {
		l := k.load(keys...)
		return s.apply(t.Context(), &l)
	}
	if err := apply(key); !errors.Is(err, store.ErrSealed) || !strings.Contains(err.Error(), keyID(t, old)) {
		t.Errorf("the old line is gone at once: got %v, want a refusal that names %s", err, keyID(t, old))
	}
	if !opens(cookie) {
		t.Error("a refused change has changed something")
	}
	if err := apply(old, key); err != nil {
		t.Fatal(err)
	}
	if c := handoff.SealCookie(s.ring, "app.example.com", "sid", utc()); !opens(c, old) || opens(c, key) {
		t.Error("the second line seals")
	}
	if err := apply(key, old); err != nil {
		t.Fatal(err)
	}
	if c := handoff.SealCookie(s.ring, "app.example.com", "sid", utc()); opens(c, old) || !opens(c, key) || !opens(cookie) {
		t.Error("the first line does not seal, or the second does not open")
	}
	k.waitForLog(`all records are sealed with the first key: others are needed for cookies only, and for as long as sessions live" key=` + keyID(t, key))
	if err := apply(key); err != nil {
		t.Errorf("the old line, when it is time: %v", err)
	}
	if opens(cookie) {
		t.Error("what the removed key has sealed opens")
	}
	if k, err := s.store.SigningKeys(t.Context()); err != nil || k.SigningKey == nil {
		t.Errorf("signing keys: %v", err)
	}
}

// What cannot be taken up is tried every 10 s, and said once.
func TestReloadThatFailsAgainIsSaidOnce(t *testing.T) {
	k := &keyBench{t: t, dir: t.TempDir()}
	l := k.load(seal.NewKey())
	s, stop, err := k.start(l)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	k.waitForLog("all records are sealed")
	r := newReloads(s, l, nil)
	r.retry = time.NewTimer(time.Hour)
	defer r.retry.Stop()
	go r.watch.Run(t.Context())
	k.load(seal.NewKey())
	for i, step := range []struct {
		why  string
		want int // lines in the log
	}{{"change", 1}, {byRetry, 1}, {byRetry, 1}, {"SIGHUP", 2}, {byRetry, 2}} {
		r.reload(t.Context(), step.why)
		if got := strings.Count(k.logs.String(), "configuration cannot be taken up"); got != step.want {
			t.Fatalf("after reload %d (%s): the log says it %d times, want %d:\n%s", i+1, step.why, got, step.want, k.logs.String())
		}
	}
}
