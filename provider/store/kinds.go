package store

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/dexidp/dex/storage"
)

// localConnector is the connector of stored passwords in Dex (server/connectors).
const localConnector = "local"

// keysID is the ID of the one record of its kind.
const keysID = "keys"

// A kind says how values of one of Dex's types are kept.
type kind[T any] struct {
	name    Kind
	id      func(*T) string
	user    func(*T) (userID, connectorID string) // nil: values belong to nobody
	claims  func(*T) storage.Claims               // nil: values carry none
	expires func(*T) time.Time                    // nil: never
	named   func(Record) T                        // what a record tells that cannot be read; nil: nothing
	owned   bool                                  // found by user
	logged  bool
	flat    bool // nothing in a value points anywhere: a copy is one's own
}

// The kinds; never assigned to.
var (
	authRequests = kind[storage.AuthRequest]{
		name:    KindAuthRequest,
		id:      func(v *storage.AuthRequest) string { return v.ID },
		user:    func(v *storage.AuthRequest) (string, string) { return v.Claims.UserID, v.ConnectorID },
		claims:  func(v *storage.AuthRequest) storage.Claims { return v.Claims },
		expires: func(v *storage.AuthRequest) time.Time { return v.Expiry },
	}
	authCodes = kind[storage.AuthCode]{
		name:    KindAuthCode,
		id:      func(v *storage.AuthCode) string { return v.ID },
		user:    func(v *storage.AuthCode) (string, string) { return v.Claims.UserID, v.ConnectorID },
		claims:  func(v *storage.AuthCode) storage.Claims { return v.Claims },
		expires: func(v *storage.AuthCode) time.Time { return v.Expiry },
	}
	refreshTokens = kind[storage.RefreshToken]{
		name:   KindRefreshToken,
		id:     func(v *storage.RefreshToken) string { return v.ID },
		user:   func(v *storage.RefreshToken) (string, string) { return v.Claims.UserID, v.ConnectorID },
		claims: func(v *storage.RefreshToken) storage.Claims { return v.Claims },
	}
	offlineSessions = kind[storage.OfflineSessions]{
		name: KindOffline,
		id:   func(v *storage.OfflineSessions) string { return userRecord(v.UserID, v.ConnID) },
		user: func(v *storage.OfflineSessions) (string, string) { return v.UserID, v.ConnID },
	}
	deviceRequests = kind[storage.DeviceRequest]{
		name:    KindDeviceRequest,
		id:      func(v *storage.DeviceRequest) string { return v.UserCode },
		expires: func(v *storage.DeviceRequest) time.Time { return v.Expiry },
	}
	deviceTokens = kind[storage.DeviceToken]{
		name:    KindDeviceToken,
		id:      func(v *storage.DeviceToken) string { return v.DeviceCode },
		expires: func(v *storage.DeviceToken) time.Time { return v.Expiry },
	}
	sessions = kind[storage.AuthSession]{
		name:    KindSession,
		id:      func(v *storage.AuthSession) string { return v.ID },
		user:    func(v *storage.AuthSession) (string, string) { return v.UserID, v.ConnectorID },
		expires: func(v *storage.AuthSession) time.Time { return earlier(v.IdleExpiry, v.AbsoluteExpiry) },
		named: func(r Record) storage.AuthSession {
			user, connector, _ := unpair(r.Owner)
			return storage.AuthSession{ID: r.ID, UserID: user, ConnectorID: connector}
		},
		owned:  true,
		logged: true,
	}
	identities = kind[Identity]{
		name:   KindIdentity,
		id:     func(v *Identity) string { return userRecord(v.UserID, v.ConnectorID) },
		user:   func(v *Identity) (string, string) { return v.UserID, v.ConnectorID },
		claims: func(v *Identity) storage.Claims { return v.Claims },
		named: func(r Record) Identity {
			user, connector, _ := unpair(r.ID)
			return Identity{UserIdentity: storage.UserIdentity{UserID: user, ConnectorID: connector}}
		},
		logged: true,
	}
	passwords = kind[storage.Password]{
		name:   KindPassword,
		id:     func(v *storage.Password) string { return strings.ToLower(v.Email) },
		user:   func(v *storage.Password) (string, string) { return v.UserID, localConnector },
		logged: true,
	}
	clients = kind[storage.Client]{
		name:   KindClient,
		id:     func(v *storage.Client) string { return v.ID },
		logged: true,
	}
	connectors = kind[storage.Connector]{
		name:   KindConnector,
		id:     func(v *storage.Connector) string { return v.ID },
		logged: true,
	}
	signingKeys = kind[Keys]{
		name:   KindKeys,
		id:     func(*Keys) string { return keysID },
		logged: true,
	}
)

// encode and decode are the only places where a value becomes bytes and back. The bytes are sealed and opened where they go to
// the driver and come from it (see counted), so that no kind can be forgotten. Decoded values share no memory with the store or with each other.
func (k *kind[T]) encode(v *T) (Record, error) {
	if err := k.check(v); err != nil {
		return Record{}, err
	}
	data, err := json.Marshal(v)
	if err != nil {
		return Record{}, fmt.Errorf("store: encode %s: %w", k.name, err)
	}
	r := Record{Kind: k.name, ID: k.id(v), Data: data}
	if k.expires != nil {
		r.Expires = expiry(k.expires(v))
	}
	if k.owned {
		r.Owner = pair(k.user(v))
	}
	return r, nil
}

func (k *kind[T]) decode(r Record) (T, error) {
	var v T
	if err := json.Unmarshal(r.Data, &v); err != nil {
		var zero T
		return zero, &UnreadError{k.name, fmt.Errorf("store: stored %s cannot be read: %w", k.name, err)}
	}
	return v, nil
}

// check refuses values without an ID and those whose identifying texts are not UTF-8. JSON would replace the
// bad bytes, and two users whose names differ only there would become one.
func (k *kind[T]) check(v *T) error {
	id := k.id(v)
	if id == "" {
		return fmt.Errorf("store: %s without an ID", k.name)
	}
	texts := []string{id}
	if k.user != nil {
		user, connector := k.user(v)
		texts = append(texts, user, connector)
	}
	if k.claims != nil {
		c := k.claims(v)
		texts = append(texts, c.UserID, c.Username, c.PreferredUsername, c.Email)
		texts = append(texts, c.Groups...)
	}
	for _, s := range texts {
		if !utf8.ValidString(s) {
			return fmt.Errorf("store: %s: an ID, name, e-mail or group is not UTF-8: let the connector take it from a text attribute", k.name)
		}
	}
	return nil
}

// changes returns the entries of the change log for a value that becomes another. Either may be nil. A value
// that changes hands is told to both users.
func (k *kind[T]) changes(id string, before, after *T) []Change {
	if !k.logged {
		return nil
	}
	c := Change{Kind: k.name, ID: id, Deleted: after == nil}
	if k.user == nil {
		return []Change{c}
	}
	var out []Change
	for _, v := range []*T{before, after} {
		if v == nil {
			continue
		}
		c.UserID, c.ConnectorID = k.user(v)
		if len(out) == 0 || out[0] != c {
			out = append(out, c)
		}
	}
	if len(out) == 0 {
		out = append(out, c)
	}
	return out
}

// pair joins two texts so that no other two give the same result: it tells the length of the first.
func pair(a, b string) string { return strconv.Itoa(len(a)) + ":" + a + ":" + b }

// unpair returns what pair has joined.
func unpair(s string) (a, b string, ok bool) {
	length, rest, ok := strings.Cut(s, ":")
	n, err := strconv.Atoi(length)
	if !ok || err != nil || n < 0 || n >= len(rest) || rest[n] != ':' {
		return "", "", false
	}
	a, b = rest[:n], rest[n+1:]
	return a, b, pair(a, b) == s // a number can be written in several ways
}

// userRecord returns the ID of a user's record. It is "" for nobody at no connector, which check refuses: pair would give that an ID too.
func userRecord(userID, connectorID string) string {
	if userID == "" && connectorID == "" {
		return ""
	}
	return pair(userID, connectorID)
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// expiry makes t fit for Record.Expires. In Dex a zero expiry is one long past, in a Record it is none.
func expiry(t time.Time) time.Time {
	if first := time.Unix(0, 1); t.Before(first) {
		return first
	}
	if last := time.Unix(0, 1<<63-1); t.After(last) {
		return last
	}
	return t
}
