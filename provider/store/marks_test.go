package store

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/dexidp/dex/storage"
)

func TestMarks(t *testing.T) {
	onDrivers(t, func(t *testing.T, d Driver) {
		ctx, start := t.Context(), time.Now().UTC().Truncate(time.Second)
		s := newStore(d, Options{}, 0)
		one, two := Print([]byte("one")), Print([]byte("two"))
		want := func(when string, w Mark) {
			t.Helper()
			got, err := s.GetMark(ctx, w.About, w.ID)
			must(t, err)
			if !got.Since.Equal(w.Since) || got.Print != w.Print || got.Pending != w.Pending || got.About != w.About || got.ID != w.ID {
				t.Errorf("%s: got %+v, want %+v", when, got, w)
			}
		}
		if _, err := s.GetMark(ctx, MarkClient, "web"); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("no mark: %v", err)
		}
		must(t, s.CreateMarks(ctx, []Mark{{About: MarkClient, ID: "web", Print: one}}))
		many := []Mark{{About: MarkClient, ID: "web", Print: two}} // there already, in the same batch as others
		for i := range markBatch + 3 {
			many = append(many, Mark{About: MarkPassword, ID: fmt.Sprint("u", i), Print: one})
		}
		must(t, s.CreateMarks(ctx, many))
		want("the first stays", Mark{About: MarkClient, ID: "web", Print: one})
		want("and the others are made", Mark{About: MarkPassword, ID: fmt.Sprint("u", markBatch+2), Print: one})

		set := func(secretPrint string, at time.Time) bool {
			t.Helper()
			news, err := s.SetMark(ctx, MarkClient, "web", secretPrint, at)
			must(t, err)
			return news
		}
		if set(one, start) {
			t.Error("the same secret is news")
		}
		want("the same secret", Mark{About: MarkClient, ID: "web", Print: one})
		if !set(two, start) {
			t.Error("another secret is no news")
		}
		want("another secret", Mark{About: MarkClient, ID: "web", Print: two, Since: start, Pending: true})
		old, err := s.GetMark(ctx, MarkClient, "web")
		must(t, err)
		set("", start.Add(time.Minute))
		must(t, s.SettleMark(ctx, old))
		want("what was settled is not what is", Mark{About: MarkClient, ID: "web", Since: start.Add(time.Minute), Pending: true})
		now, err := s.GetMark(ctx, MarkClient, "web")
		must(t, err)
		must(t, s.SettleMark(ctx, now))
		want("settled", Mark{About: MarkClient, ID: "web", Since: start.Add(time.Minute)})

		// Of processes that read one new file at once, exactly one has news.
		var news int
		var mu sync.Mutex
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				if got, err := s.SetMark(ctx, MarkPassword, "u1", two, start); err != nil || got {
					mu.Lock()
					defer mu.Unlock()
					news++
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
		if news != 1 {
			t.Errorf("%d have news, want 1", news)
		}
		n := 0
		for _, err := range s.Marks(ctx) {
			must(t, err)
			n++
		}
		if n != markBatch+4 {
			t.Errorf("listed %d marks, want %d", n, markBatch+4)
		}
	})
}

func TestWhatWasGivenToAClient(t *testing.T) {
	onDrivers(t, func(t *testing.T, d Driver) {
		ctx, later := t.Context(), time.Now().UTC().Add(time.Hour)
		s := newStore(d, Options{}, 0)
		refs := map[string]*storage.RefreshTokenRef{}
		for _, client := range []string{"web", "box"} {
			must(t, s.CreateAuthCode(ctx, storage.AuthCode{ID: "code-" + client, ClientID: client, Expiry: later}))
			must(t, s.CreateDeviceRequest(ctx, storage.DeviceRequest{UserCode: "user-" + client, DeviceCode: "device-" + client, ClientID: client, Expiry: later}))
			must(t, s.CreateDeviceToken(ctx, storage.DeviceToken{DeviceCode: "device-" + client, Expiry: later}))
			must(t, s.CreateRefresh(ctx, storage.RefreshToken{ID: "refresh-" + client, ClientID: client, ConnectorID: "ldap", Claims: storage.Claims{UserID: "ada"}}))
			refs[client] = &storage.RefreshTokenRef{ID: "refresh-" + client, ClientID: client}
		}
		must(t, s.CreateOfflineSessions(ctx, storage.OfflineSessions{UserID: "ada", ConnID: "ldap", Refresh: refs}))
		for range 2 { // the second time there is nothing to do
			must(t, s.DeleteOf(ctx, "web"))
		}
		for client, want := range map[string]error{"web": storage.ErrNotFound, "box": nil} {
			_, code := s.GetAuthCode(ctx, "code-"+client)
			_, request := s.GetDeviceRequest(ctx, "user-"+client)
			_, token := s.GetDeviceToken(ctx, "device-"+client)
			_, refresh := s.GetRefresh(ctx, "refresh-"+client)
			for what, err := range map[string]error{"code": code, "device request": request, "device token": token, "refresh token": refresh} {
				if !errors.Is(err, want) {
					t.Errorf("%s of %s: %v, want %v", what, client, err, want)
				}
			}
		}
		o, err := s.GetOfflineSessions(ctx, "ada", "ldap")
		must(t, err)
		if o.Refresh["web"] != nil || o.Refresh["box"] == nil {
			t.Errorf("references: %v", o.Refresh)
		}
	})
}

func TestSessionsAreTallied(t *testing.T) {
	onDrivers(t, func(t *testing.T, d Driver) {
		ctx, now := t.Context(), time.Now().UTC()
		s := newStore(d, Options{}, 0)
		for i, x := range []struct {
			user string
			life time.Duration
		}{{"ada", time.Hour}, {"ada", time.Hour}, {"ada", -time.Second}, {"a:da", time.Hour}} {
			must(t, s.CreateAuthSession(ctx, storage.AuthSession{
				ID: fmt.Sprint(i), UserID: x.user, ConnectorID: "ldap", IdleExpiry: now.Add(x.life), AbsoluteExpiry: now.Add(2 * time.Hour),
			}))
		}
		tally, err := s.TallySessions(ctx, now)
		must(t, err)
		for user, want := range map[string]int{"ada": 2, "a:da": 1, "a": 0} {
			if got := tally.Of(user, "ldap"); got != want {
				t.Errorf("%s has %d sessions, want %d", user, got, want)
			}
		}
	})
}
