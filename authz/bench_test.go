package authz

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"gatehouse/authz/policy"
	"gatehouse/authz/session"
)

// browserRequest is the request of a script in a browser, as test/bench sends it.
func browserRequest(cookie string) request {
	return get("/pipeline/api/v1/runs?page=1", script, "cookie", cookie,
		":authority", appHost, ":path", "/pipeline/api/v1/runs?page=1", ":method", "GET", ":scheme", "https",
		"user-agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Safari/537.36",
		"accept", "application/json, text/plain, */*", "accept-encoding", "gzip, deflate, br", "accept-language", "en-US,en;q=0.9",
		"x-forwarded-for", "10.1.2.3", "x-forwarded-proto", "https", "x-request-id", "3f6d8a10-1111-2222-3333-444455556666",
		"referer", "https://app.example.com/pipeline/", "sec-fetch-dest", "empty", "sec-fetch-site", "same-origin")
}

// nowhere takes the audit log, which is formatted all the same.
type nowhere struct{}

func (nowhere) Write(p []byte) (int, error) { return len(p), nil }

// wire returns a request as it comes over the network.
func (r request) wire(t testing.TB) []byte {
	t.Helper()
	b, err := proto.Marshal(r.proto())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestAllocations bounds what a check of a signed-in user allocates, from the bytes that came in to the bytes that go out,
// audit and metrics on: the rewritten Cookie header and the answer. The pool is left out: the race detector empties it at random.
func TestAllocations(t *testing.T) {
	const limit = 2
	f := newFixture(t)
	f.Audit = nowhere{}
	in := browserRequest("_ga=GA1.2.3.4; " + f.cookie(appHost, "alice")).wire(t)
	c := newCheck()
	got := testing.AllocsPerRun(1000, func() {
		if out := c.of(context.Background(), f.Server, in); !allows(out) { //nolint:usetesting // as a server calls it
			t.Fatalf("got %q", out)
		}
	})
	if got > limit {
		t.Errorf("got %v allocations, want at most %d", got, limit)
	}
}

// allows tells an allow by its first bytes: a status without a code, then an OkHttpResponse.
func allows(a answer) bool { return bytes.HasPrefix(a, []byte{0x0a, 0x00, 0x1a}) }

func BenchmarkCheck(b *testing.B) {
	for _, rules := range []int{10, 1000} {
		b.Run(fmt.Sprintf("rules=%d", rules), func(b *testing.B) {
			var list []policy.Rule
			for i := range rules {
				list = append(list, policy.Rule{Name: fmt.Sprintf("r%d", i), Paths: []string{fmt.Sprintf("/app%d/**", i)}, Groups: []string{"g"}})
			}
			p, err := policy.New(list, policy.DefaultSignedIn)
			if err != nil {
				b.Fatal(err)
			}
			f := newFixture(b, func(c *Config) { c.Policy = p })
			f.Audit = nowhere{}
			in := browserRequest("_ga=GA1.2.3.4; " + f.cookie(appHost, "alice")).wire(b)
			b.ReportAllocs()
			for b.Loop() {
				if out := f.Server.check(b.Context(), in); !allows(out) {
					b.Fatalf("got %q", out)
				}
			}
		})
	}
}

// BenchmarkSessions checks requests of many sessions in random order: what a check costs when nothing of it is in a cache of the CPU.
func BenchmarkSessions(b *testing.B) {
	for _, n := range []int{1_000, 100_000} {
		b.Run(fmt.Sprintf("sessions=%d", n), func(b *testing.B) {
			f := newFixture(b)
			f.Audit = nowhere{}
			m := &memory{sessions: map[string]*session.Session{}}
			wires := make([][]byte, n)
			for i := range wires {
				id := fmt.Sprintf("session-%018d", i)
				f.signIn(id, func(s *session.Session) {
					s.Identity.Groups = []string{"team-a", "team-b", fmt.Sprintf("team-%d", i%500)}
				})
				m.sessions[id] = f.sessions.live[id]
				wires[i] = browserRequest("_ga=GA1.2.3.4; " + f.cookie(appHost, id)).wire(b)
			}
			view := session.NewView(m, session.Options{Idle: time.Hour, Now: func() time.Time { return f.now }})
			defer view.Close(context.WithoutCancel(b.Context())) //nolint:errcheck // nothing is written here
			f.Sessions = view
			for _, w := range wires {
				f.Server.check(b.Context(), w)
			}
			order := rand.New(rand.NewPCG(1, 2))
			b.ReportAllocs()
			for b.Loop() {
				if out := f.Server.check(b.Context(), wires[order.IntN(n)]); !allows(out) {
					b.Fatalf("got %q", out)
				}
			}
		})
	}
}
