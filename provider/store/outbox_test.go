package store

import (
	"errors"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/internal/seal"

	"github.com/dexidp/dex/storage"
)

func newNotice(id string, now time.Time) Notice {
	return Notice{ID: id, ClientID: "web", SessionID: "sid", UserID: "u", ConnectorID: "c", Created: now, Due: now, Expiry: now.Add(time.Hour)}
}

func allNotices(t *testing.T, s *Store) map[string]Notice {
	t.Helper()
	all := map[string]Notice{}
	must(t, s.Notices(t.Context(), func(n Notice) bool { all[n.ID] = n; return true }))
	return all
}

func TestEndSessionKeepsItsNotices(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store) {
		ctx, now := t.Context(), time.Now().UTC()
		must(t, s.CreateAuthSession(ctx, storage.AuthSession{ID: "sid", UserID: "u", ConnectorID: "c", AbsoluteExpiry: now.Add(time.Hour), IdleExpiry: now.Add(time.Hour)}))
		var told []Change
		stop := s.Subscribe(func(c Change) { told = append(told, c) })
		defer stop()
		list := make([]Notice, 2*noticeBatch+3)
		for i := range list {
			list[i] = newNotice("n"+strconv.Itoa(i), now)
		}
		must(t, s.EndSession(ctx, "sid", list))
		if got := len(allNotices(t, s)); got != len(list) {
			t.Errorf("%d notices, want %d", got, len(list))
		}
		if _, err := s.GetAuthSession(ctx, "sid"); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("the session: %v", err)
		}
		if len(told) != 1 || told[0].ID != "sid" || told[0].UserID != "u" || !told[0].Deleted {
			t.Errorf("subscribers were told %+v, want the one deletion", told)
		}
		wantErr(t, s.EndSession(ctx, "sid", []Notice{newNotice("late", now)}), storage.ErrNotFound)
		if _, there := allNotices(t, s)["late"]; there {
			t.Error("a session that was gone left a notice")
		}
	})
}

func TestNoticeIsClaimedOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store) {
		ctx, now := t.Context(), time.Now().UTC()
		must(t, s.CreateAuthSession(ctx, storage.AuthSession{ID: "sid", UserID: "u", ConnectorID: "c"}))
		must(t, s.EndSession(ctx, "sid", []Notice{newNotice("n", now)}))
		if _, ok, err := s.ClaimNotice(ctx, "n", now.Add(-time.Second), time.Minute); ok || err != nil {
			t.Errorf("before it is due: %v, %v", ok, err)
		}
		var won atomic.Int64
		inParallel(t, 20, func(int) error {
			n, ok, err := s.ClaimNotice(ctx, "n", now, time.Minute)
			if ok {
				won.Add(1)
				if n.Tries != 1 || !n.Due.Equal(now.Add(time.Minute)) {
					t.Errorf("claimed as %+v", n)
				}
			}
			return err
		})
		if got := won.Load(); got != 1 {
			t.Errorf("%d claimed it, want 1", got)
		}
		if _, ok, err := s.ClaimNotice(ctx, "n", now.Add(time.Minute), time.Minute); !ok || err != nil {
			t.Errorf("after the lease: %v, %v", ok, err)
		}
		must(t, s.DeferNotice(ctx, "n", now.Add(time.Hour)))
		if got := allNotices(t, s)["n"]; got.Tries != 2 || !got.Due.Equal(now.Add(time.Hour)) {
			t.Errorf("deferred to %+v", got)
		}
		must(t, s.DeleteNotice(ctx, "n"))
		if _, ok, err := s.ClaimNotice(ctx, "n", now.Add(2*time.Hour), time.Minute); ok || err != nil {
			t.Errorf("when it is gone: %v, %v", ok, err)
		}
	})
}

func TestNoticeExpires(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store) {
		ctx, now := t.Context(), time.Now().UTC()
		must(t, s.CreateAuthSession(ctx, storage.AuthSession{ID: "sid", UserID: "u", ConnectorID: "c", AbsoluteExpiry: now.Add(9 * time.Hour), IdleExpiry: now.Add(9 * time.Hour)}))
		must(t, s.EndSession(ctx, "sid", []Notice{newNotice("n", now)}))
		_, err := s.GarbageCollect(ctx, now.Add(time.Hour+keptAfter-time.Second))
		must(t, err)
		if len(allNotices(t, s)) != 1 {
			t.Error("it was collected before whoever sends it could give it up")
		}
		_, err = s.GarbageCollect(ctx, now.Add(time.Hour+keptAfter+time.Second))
		must(t, err)
		if len(allNotices(t, s)) != 0 {
			t.Error("it stays for ever")
		}
	})
}

// Without transactions a process that dies between the two leaves a notice whose session lives, and never the other way round.
func TestSessionEndsAfterItsNoticesWithoutTransactions(t *testing.T) {
	ctx, now := t.Context(), time.Now().UTC()
	d := &sequential{memory: newMemory()}
	s := newStore(d, Options{}, 0)
	must(t, s.CreateAuthSession(ctx, storage.AuthSession{ID: "sid", UserID: "u", ConnectorID: "c"}))
	lost := errors.New("connection lost")
	for name, fails := range map[string]func(Op) bool{
		"at the notice":   func(op Op) bool { return op.Record.Kind == KindOutbox },
		"at the deletion": func(op Op) bool { return op.Verb == Delete },
	} {
		d.fail = func(op Op) error {
			if fails(op) {
				return lost
			}
			return nil
		}
		wantErr(t, s.EndSession(ctx, "sid", []Notice{newNotice(name, now)}), lost)
		if _, err := s.GetAuthSession(ctx, "sid"); err != nil {
			t.Errorf("%s: the session is gone: %v", name, err)
		}
	}
	if _, there := allNotices(t, s)["at the deletion"]; !there {
		t.Error("the session's deletion was tried before its notice was stored")
	}
	d.fail = nil
	must(t, s.EndSession(ctx, "sid", []Notice{newNotice("n", now)}))
	if _, there := allNotices(t, s)["n"]; !there {
		t.Error("no notice")
	}
}

func TestUpstreamSessionsAreFoundByClaim(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store) {
		ctx, end := t.Context(), time.Now().UTC().Add(time.Hour)
		for _, v := range []UpstreamSession{
			{SessionID: "a", ConnectorID: "c", Claim: "sid", Value: "up", Expiry: end},
			{SessionID: "b", ConnectorID: "c", Claim: "sid", Value: "up", Expiry: end},
			{SessionID: "a", ConnectorID: "c", Claim: "sub", Value: "up", Expiry: end},
			{SessionID: "d", ConnectorID: "other", Claim: "sid", Value: "up", Expiry: end},
		} {
			must(t, s.PutUpstreamSession(ctx, v))
		}
		must(t, s.PutUpstreamSession(ctx, UpstreamSession{SessionID: "b", ConnectorID: "c", Claim: "sid", Value: "newer", Expiry: end}))
		for value, want := range map[string]string{"up": "a", "newer": "b"} {
			got, err := s.UpstreamSessions(ctx, "c", "sid", value)
			if must(t, err); len(got) != 1 || got[0].SessionID != want {
				t.Errorf("%s: %+v, want %s", value, got, want)
			}
		}
		must(t, s.DeleteUpstreamSession(ctx, "a", "sid"))
		if got, err := s.UpstreamSessions(ctx, "c", "sid", "up"); err != nil || len(got) != 0 {
			t.Errorf("after the deletion: %+v, %v", got, err)
		}
	})
}

func TestSeenOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, s *Store) {
		ctx, end := t.Context(), time.Now().UTC().Add(time.Hour)
		var first atomic.Int64
		inParallel(t, 10, func(int) error {
			ok, err := s.MarkSeen(ctx, "p", "x", end)
			if ok {
				first.Add(1)
			}
			return err
		})
		if got := first.Load(); got != 1 {
			t.Errorf("%d were the first", got)
		}
		for _, tt := range []struct {
			purpose, id string
			want        bool
		}{{"p", "x", true}, {"q", "x", false}, {"p", "y", false}} {
			if got, err := s.Seen(ctx, tt.purpose, tt.id); err != nil || got != tt.want {
				t.Errorf("%s %s: %v, %v", tt.purpose, tt.id, got, err)
			}
		}
	})
}

// A notice that does not open, or is none, keeps nobody from the others.
func TestUnreadableNoticeHoldsUpNoOther(t *testing.T) {
	s := Memory(Options{})
	s.driver.sealer = sealerOf(t, seal.NewKey())
	for i, id := range []string{"a", "b", "c", "d"} {
		must(t, s.CreateAuthSession(t.Context(), newSession(id, "alice")))
		must(t, s.EndSession(t.Context(), id, []Notice{{ID: "n" + id, ClientID: "web", SessionID: id, Due: epoch.Add(time.Duration(i)), Expiry: epoch.Add(time.Hour)}}))
	}
	overwrite(t, s, KindOutbox, "na", []byte(sealedMark+"of a key that is gone"))
	overwrite(t, s, KindOutbox, "nc", []byte("{"))
	var got []string
	err := s.Notices(t.Context(), func(n Notice) bool { got = append(got, n.ID); return true })
	slices.Sort(got)
	if err == nil || !slices.Equal(got, []string{"nb", "nd"}) {
		t.Errorf("got %v, %v, want nb and nd, and an error", got, err)
	}
}
