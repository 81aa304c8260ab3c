package front

import (
	"errors"
	"net/http"
	"sync"
	"time"

	"gatehouse/internal/inproc"
	"gatehouse/web"

	"github.com/dexidp/dex/server/oauth2"
	"github.com/dexidp/dex/storage"
)

// A device asks before any user is there (RFC 8628 section 3.1), and Dex stores what it asks for.
const (
	maxDevices       = 10_000 // that wait for their user, in all
	devicesPerWindow = 20     // new ones of a network
	deviceWindow     = 10 * time.Minute
	maxDeviceForm    = 4 << 10 // of a request, all of which is stored, in bytes
)

// Devices count the devices that wait for their user. The zero value is ready; one is for the whole process.
type Devices struct {
	mu        sync.Mutex
	waiting   []time.Time // when each expires, the oldest first
	recent    []arrival   // of known networks within deviceWindow, the oldest first
	byNetwork map[string]int
}

type arrival struct {
	network string
	at      time.Time
}

// take counts one more device, which waits for life: StatusOK. Else it returns the status to refuse it with, and in what time it may come again.
func (d *Devices) take(now time.Time, life time.Duration, network string) (status int, wait time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget(now)
	if d.byNetwork[network] >= devicesPerWindow {
		for _, a := range d.recent {
			if a.network == network {
				return http.StatusTooManyRequests, a.at.Add(deviceWindow).Sub(now)
			}
		}
	}
	if len(d.waiting) >= maxDevices {
		return http.StatusServiceUnavailable, d.waiting[0].Sub(now)
	}
	d.waiting = append(d.waiting, now.Add(life))
	if network != "" {
		if d.byNetwork == nil {
			d.byNetwork = map[string]int{}
		}
		d.byNetwork[network]++
		d.recent = append(d.recent, arrival{network, now})
	}
	return http.StatusOK, 0
}

// forget drops what does not count any more. The caller holds the lock.
func (d *Devices) forget(now time.Time) {
	for len(d.waiting) > 0 && !now.Before(d.waiting[0]) {
		d.waiting = d.waiting[1:]
	}
	for len(d.recent) > 0 && now.Sub(d.recent[0].at) >= deviceWindow {
		network := d.recent[0].network
		if d.byNetwork[network]--; d.byNetwork[network] == 0 {
			delete(d.byNetwork, network)
		}
		d.recent = d.recent[1:]
	}
}

// deviceCode is Dex's device authorization endpoint (RFC 8628 section 3.1) for clients that exist and know their secret, which Dex
// asks for only once the user has signed in; and for so many devices at a time.
func (f *Front) deviceCode(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxDeviceForm)
	if err := r.ParseForm(); err != nil || len(r.URL.RawQuery) > maxDeviceForm {
		f.oauthError(w, http.StatusBadRequest, oauth2.InvalidRequest, "the request is malformed or too long")
		return
	}
	c, err := f.Storage.GetClient(r.Context(), r.Form.Get("client_id"))
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		f.fail(w, r, web.Unavailable, err)
		return
	}
	secret := r.Form.Get("client_secret")
	if err != nil || c.ID == GatewayClient || (c.Secret != "" || secret != "") && !sameSecret(c.Secret, secret) {
		f.oauthError(w, http.StatusUnauthorized, oauth2.InvalidClient, "there is no such client, or its client_secret is missing or wrong")
		return
	}
	status, wait := f.Devices.take(f.Now(), f.DevicesFor, f.network(r))
	if status != http.StatusOK {
		if f.warned.devices.due(f.Now()) {
			f.Log.WarnContext(r.Context(), "too many devices wait for their user", "client", c.ID, "ip", remoteIP(r), "request_id", requestID(r))
		}
		w.Header().Set("Retry-After", seconds(wait))
		f.oauthError(w, status, "temporarily_unavailable", "too many devices wait for their user")
		return
	}
	f.api(w, r)
}

// deviceGrant is Dex's device grant (RFC 8628 section 3.4). Where the storage does not answer, Dex says that the code is not good, or that the server failed: then a device
// has to give up, and its user has agreed in vain. It is to come again, and not as soon (section 3.5, slow_down).
func (f *Front) deviceGrant(w http.ResponseWriter, r *http.Request) {
	ctx, e := withExchange(r.Context())
	resp, err := inproc.Serve(http.HandlerFunc(f.api), r.WithContext(ctx))
	if err != nil {
		f.fail(w, r, web.Internal, err)
		return
	}
	defer resp.Body.Close()
	if e.Unanswered && resp.StatusCode != http.StatusOK {
		f.Log.WarnContext(r.Context(), "a device is told to come again: the storage does not say whether its user has agreed", "request_id", requestID(r))
		f.oauthError(w, http.StatusBadRequest, oauth2.DeviceTokenSlowDown, "it is not known now whether the user has agreed")
		return
	}
	copyAnswer(w, resp)
}
