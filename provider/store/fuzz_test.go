package store

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/dexidp/dex/storage"
)

// held says what a test needs of one kind, whatever its type.
type held func(t *testing.T, data []byte)

// holds returns the check of one kind: bytes that are read are written, and read again as the same.
func holds[T any](k *kind[T]) held {
	return func(t *testing.T, data []byte) {
		t.Helper()
		v, err := k.decode(Record{Kind: k.name, Data: data})
		if err != nil {
			var zero T
			if !reflect.DeepEqual(v, zero) {
				t.Fatalf("%s: %q is refused, and yet something of it is left: %+v", k.name, data, v)
			}
			return
		}
		r, err := k.encode(&v)
		if err != nil {
			if k.id(&v) != "" && !strings.Contains(err.Error(), "encode") {
				t.Fatalf("%s: %q is read as %+v, and that is refused: %v", k.name, data, v, err)
			}
			return
		}
		again, err := k.decode(r)
		if err != nil {
			t.Fatalf("%s: %q was written and cannot be read: %v", k.name, r.Data, err)
		}
		r2, err := k.encode(&again)
		if err != nil || !bytes.Equal(r2.Data, r.Data) || r2.ID != r.ID || r2.Owner != r.Owner || !r2.Expires.Equal(r.Expires) {
			t.Fatalf("%s: %+v becomes %+v, %v", k.name, r, r2, err)
		}
		if r.ID == "" || !utf8.ValidString(r.ID) || !utf8.ValidString(r.Owner) {
			t.Fatalf("%s: %+v has no name that every database keeps", k.name, r)
		}
		if k.expires != nil && (r.Expires.Before(time.Unix(0, 1)) || r.Expires.After(time.Unix(0, 1<<63-1))) {
			t.Fatalf("%s: %+v expires when no Record may", k.name, r)
		}
	}
}

func kinds() []held {
	return []held{
		holds(&authRequests), holds(&authCodes), holds(&refreshTokens), holds(&offlineSessions), holds(&deviceRequests), holds(&deviceTokens), holds(&sessions), holds(&identities),
		holds(&passwords), holds(&clients), holds(&connectors),
		func(t *testing.T, data []byte) { // keys have one ID, whatever is in them
			t.Helper()
			if v, err := signingKeys.decode(Record{Data: data}); err == nil {
				if r, err := signingKeys.encode(&v); err == nil {
					if _, err := signingKeys.decode(r); err != nil {
						t.Fatalf("%q was written and cannot be read: %v", r.Data, err)
					}
				}
			}
		},
	}
}

// FuzzDecode reads bytes that a damaged or foreign database could hold, as each kind.
func FuzzDecode(f *testing.F) {
	all := kinds()
	for i := range all {
		for _, s := range []string{
			"", "null", "{}", "[]", `{"ID":"a"}`, `{"ID":"a","UserID":"u","ConnectorID":"c","ConnID":"c","Expiry":"9999-12-31T23:59:59Z","Email":"A@B","UserCode":"x","DeviceCode":"y"}`,
			`{"ID":"a","Expiry":"0000-01-01T00:00:00Z","Claims":{"UserID":"\ud800","Groups":[null,"\u0000"]}}`, `{"id":"a","ID":"b"}`, `{"ID":"a","IdleExpiry":"2026-11-25T12:00:00+23:59","ClientStates":{"x":null}}`,
			`{"ID":1}`, `{"ID":"a"}{"ID":"b"}`, "\xff", `{"ID":"\xff"}`, `{"SigningKey":{"kty":"RSA"}}`, `{"SigningKey":null,"VerificationKeys":[{}]}`, strings.Repeat("[", 20_000), `{"Hash":"!"}`,
		} {
			f.Add(uint8(i), []byte(s))
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, data []byte) { all[int(which)%len(all)](t, data) })
}

// FuzzUsers holds that no two users share a record, whatever their names: what is stored of one comes back as it was, or is refused.
func FuzzUsers(f *testing.F) {
	for _, s := range [][4]string{{"a", "b", "a", "b"}, {"1:a", "b", "1", "a:b"}, {"", "ldap", "ldap", ""}, {"a:", "b", "a", ":b"}, {"\xff", "a", "\xfe", "a"}, {"\ufffd", "a", "\xff", "a"}, {"12:a", "", "1", "2:a:"}, {"é", "a", "e\u0301", "a"}, {"", "", "a", "b"}} {
		f.Add(s[0], s[1], s[2], s[3])
	}
	f.Fuzz(func(t *testing.T, user, connector, user2, connector2 string) {
		same := user == user2 && connector == connector2
		if (pair(user, connector) == pair(user2, connector2)) != same {
			t.Fatalf("%q of %q and %q of %q are %q and %q", user, connector, user2, connector2, pair(user, connector), pair(user2, connector2))
		}
		v := storage.AuthSession{ID: "id", UserID: user, ConnectorID: connector}
		r, err := sessions.encode(&v)
		if text := utf8.ValidString(user) && utf8.ValidString(connector); (err == nil) != text {
			t.Fatalf("session of %q of %q: %v, and its names are UTF-8: %v", user, connector, err, text)
		}
		if err != nil {
			return
		}
		if back, err := sessions.decode(r); err != nil || back.UserID != user || back.ConnectorID != connector || r.Owner != pair(user, connector) {
			t.Fatalf("session of %q of %q comes back as that of %q of %q, by %q: %v", user, connector, back.UserID, back.ConnectorID, r.Owner, err)
		}
		u := Identity{UserIdentity: storage.UserIdentity{UserID: user, ConnectorID: connector, Claims: storage.Claims{UserID: user, Email: user2, Groups: []string{connector2}}}}
		if r, err := identities.encode(&u); err == nil {
			if user+connector == "" {
				t.Fatalf("an identity of nobody is kept as %q", r.ID)
			}
			if back, err := identities.decode(r); err != nil || back.Claims.Email != user2 || back.Claims.Groups[0] != connector2 || r.ID != pair(user, connector) {
				t.Fatalf("%+v comes back as %+v, %v", u, back, err)
			}
		} else if user+connector != "" && utf8.ValidString(user2) && utf8.ValidString(connector2) {
			t.Fatalf("%+v is refused: %v", u, err)
		}
	})
}
