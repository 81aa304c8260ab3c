package handoff

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"gatehouse/internal/seal"
)

func fixedRing(f *testing.F) *seal.Ring {
	f.Helper()
	r, err := seal.NewRing([][]byte{bytes.Repeat([]byte{3}, seal.KeySize)}, PurposeRequest, PurposeTicket, PurposeCookie)
	if err != nil {
		f.Fatal(err)
	}
	return r
}

// FuzzOpenCookie holds that a session cookie is one of its host only, says what was sealed, and that nothing else is a
// session cookie: neither a part of it, nor a ticket, nor a request, nor what a client makes up.
func FuzzOpenCookie(f *testing.F) {
	r := fixedRing(f)
	f.Add("abcdefghijklmnopqrstuvwxyz234567", "app.example.com", "x.apps.example.com", int64(1_795_000_000), "__Host-gatehouse", uint16(3))
	f.Add("", "a", "A", int64(0), "", uint16(0))
	f.Add("s", "app.example.com", "app.example.com.", int64(-1), "\"", uint16(200))
	f.Add(strings.Repeat("s", 400), "", "a", int64(1)<<62, "a", uint16(1))
	f.Fuzz(func(t *testing.T, session, host, other string, issued int64, garbage string, at uint16) {
		v := SealCookie(r, host, session, time.Unix(issued, 0))
		id, when, err := OpenCookie([]byte("dst"), r, host, v)
		switch fits := session != "" && len(v) <= 512; {
		case fits && (err != nil || string(id) != session || when.Unix() != issued):
			t.Fatalf("got %q, %v, %v, want %q of %d", id, when, err, session, issued)
		case !fits && !errors.Is(err, seal.ErrInvalid):
			t.Fatalf("without a session, or too long: got %q, %v, want ErrInvalid", id, err)
		}
		cut := int(at) % len(v)
		bad := map[string]string{
			"cut": v[:cut], "with a blank": v + " ", "quoted": `"` + v + `"`, "garbage": garbage, "extended": v + garbage + "A",
			"a ticket":                        Ticket{Session: session, Host: host, Expiry: t0}.Seal(r),
			"a request":                       Request{Host: host, Expiry: t0}.Seal(r),
			"of this session for any purpose": r.Seal(PurposeTicket, host, append(make([]byte, 8), session...)),
		}
		for name, value := range bad {
			if id, _, err := OpenCookie(nil, r, host, value); !errors.Is(err, seal.ErrInvalid) {
				t.Fatalf("%s: %q opens as %q, %v", name, value, id, err)
			}
		}
		if host != other {
			if id, _, err := OpenCookie(nil, r, other, v); !errors.Is(err, seal.ErrInvalid) {
				t.Fatalf("the cookie of %q opens for %q: %q, %v", host, other, id, err)
			}
		}
	})
}

// FuzzOpenTicket holds that tickets and requests say what was sealed until the nanosecond of their expiry, that neither is the other,
// and that nothing else is either.
func FuzzOpenTicket(f *testing.F) {
	r := fixedRing(f)
	f.Add("session", "app.example.com", "/a?b=c", "bind", int64(TicketLifetime), "garbage")
	f.Add("", "", "//evil.com", "", int64(-1), "")
	f.Add("s", "app.example.com", "/\r\n\x00\xff<script>", "b", int64(1), `{"h":"evil.com"}`)
	f.Add("s", "app.example.com", strings.Repeat("/a", 4<<10), "b", int64(0), "A")
	f.Fuzz(func(t *testing.T, session, host, back, bind string, life int64, garbage string) {
		expiry := t0.Add(time.Duration(life) % (1000 * time.Hour))
		ticket := Ticket{Session: session, Host: host, Return: back, Bind: bind, Expiry: expiry}
		request := Request{Host: host, Return: back, Bind: bind, Expiry: expiry}
		text := utf8.ValidString(session + "\x00" + host + "\x00" + back + "\x00" + bind)
		sealed, sealedRequest := ticket.Seal(r), request.Seal(r)
		for at, want := range map[time.Duration]error{-1: nil, 0: ErrExpired, 1: ErrExpired, time.Hour: ErrExpired} {
			if len(sealed) <= maxSealed {
				if got, err := OpenTicket(r, sealed, expiry.Add(at)); !errors.Is(err, want) || text && got != ticket {
					t.Fatalf("ticket %v after its expiry: got %+v, %v, want %+v, %v", at, got, err, ticket, want)
				}
			}
			if len(sealedRequest) <= maxSealed {
				if got, err := OpenRequest(r, sealedRequest, expiry.Add(at)); !errors.Is(err, want) || text && got != request {
					t.Fatalf("request %v after its expiry: got %+v, %v, want %+v, %v", at, got, err, request, want)
				}
			}
		}
		for _, bad := range []string{sealedRequest, garbage, sealed + "A", sealed[1:], sealed[:len(sealed)-1], SealCookie(r, "", session, t0)} {
			if got, err := OpenTicket(r, bad, t0.Add(-10_000*time.Hour)); !errors.Is(err, seal.ErrInvalid) || got != (Ticket{}) {
				t.Fatalf("%q is a ticket: %+v, %v", bad, got, err)
			}
		}
		for _, bad := range []string{sealed, garbage, sealedRequest + "A", SealCookie(r, "", session, t0)} {
			if got, err := OpenRequest(r, bad, t0.Add(-10_000*time.Hour)); !errors.Is(err, seal.ErrInvalid) || got != (Request{}) {
				t.Fatalf("%q is a request: %+v, %v", bad, got, err)
			}
		}
	})
}

// FuzzParsePreCookie holds that a pre-cookie has one spelling, which may stand in a header, and that none that a client
// makes up binds it to another's sign-in or loops for longer than the window.
func FuzzParsePreCookie(f *testing.F) {
	good := PreCookie{Random: strings.Repeat("A", 26), Rounds: 3, Since: t0}
	for _, v := range []string{
		good.String(), "", "..", good.Random + ".0.0", good.Random + ".007.0", good.Random + ".0.+1", good.Random + ".0.-0", good.Random + ".0.ABC",
		good.Random + ".255.0", good.Random + ".0.1y2p0ij32e8e7", good.Random + ".0.-1y2p0ij32e8e8", strings.Repeat("\xff", 26) + ".0.0",
		strings.Repeat(" ", 26) + ".1.1", strings.Repeat(`"`, 26) + ".1.1", "\r\nSet-Cookie: a=b; c=defgh.1.1",
	} {
		f.Add(v, int64(0))
		f.Add(v, int64(time.Minute))
	}
	f.Fuzz(func(t *testing.T, v string, later int64) {
		c, ok := ParsePreCookie(v)
		if !ok {
			if c != (PreCookie{}) {
				t.Fatalf("%q: got %+v without ok", v, c)
			}
			return
		}
		if c.String() != v {
			t.Fatalf("%q is read as %q", v, c.String())
		}
		if strings.ContainsFunc(v, func(c rune) bool {
			return c != '.' && c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z')
		}) {
			t.Fatalf("%q is accepted: it goes back into a Set-Cookie header", v)
		}
		if !c.Bound(c.Bind()) || c.Bound(good.Bind()) != (c.Random == good.Random) || c.Bound("") {
			t.Fatalf("%q is bound to another's sign-in, or not to its own", v)
		}
		now := c.Since.Add(time.Duration(later))
		for _, progress := range []bool{false, true} {
			next := c.Next(now, progress)
			if next.Bound(c.Bind()) {
				t.Fatalf("%q still redeems after %q", v, next)
			}
			if again, ok := ParsePreCookie(next.String()); !ok || again.Random != next.Random || again.Rounds != next.Rounds || again.Since.Unix() != next.Since.Unix() {
				t.Fatalf("%q is followed by %q, which is read as %+v, %v", v, next, again, ok)
			}
		}
		if c.Looping(c.Since.Add(RoundsWindow)) {
			t.Fatalf("%q loops on after the window", v)
		}
	})
}
