package provider

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"gatehouse/internal/seal"
	"gatehouse/provider/store"
)

// fullDriver is one that takes no writes while it is full.
type fullDriver struct {
	store.Driver
	is atomic.Bool
}

func (d *fullDriver) Write(ctx context.Context, ops []store.Op) (int64, error) {
	if d.is.Load() {
		return 0, errors.New("disk full")
	}
	return d.Driver.Write(ctx, ops)
}

// poll is what a device is told that asks for its tokens: an error, or "" when it gets them.
func (d device) poll(w *world) (status int, problem string) {
	w.t.Helper()
	status, answer := w.formPost("/token", url.Values{"grant_type": {deviceGrant}, "device_code": {d.code}, "client_id": {d.client}})
	problem, _ = answer["error"].(string)
	if problem == "" && answer["access_token"] == nil {
		w.t.Fatalf("a device got %d %v", status, answer)
	}
	return status, problem
}

// Whichever access to the storage fails, and whichever from one on, a device goes on asking (RFC 8628 section 3.5), and gets its tokens at last.
func TestDeviceComesAgainWhileTheStorageDoesNotAnswer(t *testing.T) {
	clk, full := &clock{}, &fullDriver{Driver: store.MemoryDriver()}
	d := &unreadDriver{Driver: full}
	st, err := store.New(t.Context(), d, store.Options{Now: clk.now})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, edited(t, everyWay(t), "expiry: {", "expiry: {deviceRequests: 24h, "), st, seal.NewKey(), clk)
	if err := w.provider.Reconcile(t.Context()); err != nil { // there are marks
		t.Fatal(err)
	}
	dev := w.newDevice("tv", "", "openid offline_access")
	poll := func() (int, string) {
		clk.add(10 * time.Second) // else it is too fast
		return dev.poll(w)
	}
	failing := func(phase string, want string) {
		t.Helper()
		d.fail(0, false)
		if _, got := poll(); got != want {
			t.Fatalf("%s: %q, want %q", phase, got, want)
		}
		reads, held := d.reads.Load(), 0
		for n := int64(1); n <= reads; n++ {
			for _, all := range []bool{false, true} {
				d.fail(n, all)
				switch status, got := poll(); {
				case got == "slow_down" && status == http.StatusBadRequest:
					held++
				case got != want:
					t.Errorf("%s, read %d of %d fails, and those after it (%v): %d %s", phase, n, reads, all, status, got)
				}
			}
		}
		d.fail(0, false)
		if held == 0 {
			t.Errorf("%s: no read of %d failed", phase, reads)
		}
	}
	failing("before the user agrees", "authorization_pending")
	full.is.Store(true)
	if status, got := poll(); got != "slow_down" || status != http.StatusBadRequest {
		t.Errorf("when nothing can be written: %d %s", status, got)
	}
	full.is.Store(false)
	if !dev.agree(w.browser()) {
		t.Fatal("the user may not agree")
	}
	failing("afterwards", "")
	if _, err := w.provider.Block(t.Context(), "local", "u1", Forever); err != nil {
		t.Fatal(err)
	}
	if status, got := poll(); status != http.StatusBadRequest || got != "invalid_request" {
		t.Errorf("when the user is blocked: %d %s", status, got)
	}
}

// A user who agrees while nobody can say whether they were cut off has agreed: that is asked again when the device fetches its tokens.
func TestUserAgreesWhileTheStorageDoesNotSay(t *testing.T) {
	clk, d := &clock{}, &blink{Driver: store.MemoryDriver()}
	counting := &countingDriver{Driver: d}
	st, err := store.New(t.Context(), counting, store.Options{Now: clk.now})
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, everyWay(t), st, seal.NewKey(), clk)
	for name, block := range map[string]bool{"who stays": false, "who is blocked since": true} {
		dev := w.newDevice("tv", "", "openid offline_access")
		around := func(kind store.Kind) func() {
			if kind != store.KindDeviceToken {
				return func() {}
			}
			return func() { d.shut.Store(new(store.KindIdentity)) }
		}
		counting.around.Store(&around)
		agreed := dev.agree(w.browser())
		shut := d.shut.Swap(nil) != nil
		counting.around.Store(nil)
		if !agreed || !shut {
			t.Fatalf("%s: agreed %v, the storage failed %v", name, agreed, shut)
		}
		if block {
			if err := w.provider.setBlocked(t.Context(), "local", "u1", Forever); err != nil { // what a block does first
				t.Fatal(err)
			}
		}
		if _, problem := dev.poll(w); problem != map[bool]string{true: "invalid_request"}[block] {
			t.Errorf("%s: the device is told %q", name, problem)
		}
		if block {
			if err := w.provider.Unblock(t.Context(), "local", "u1"); err != nil {
				t.Fatal(err)
			}
		}
	}
}
