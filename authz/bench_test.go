package authz

import (
	"context"
	"fmt"
	"log/slog"
	"testing"

	"gatehouse/authz/policy"
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

// TestAllocations bounds what a check of a signed-in user allocates, audit and metrics on. Where it was measured these are 6:
// two for the opened cookie and one for its id, one for the whole answer, one for the rewritten Cookie header, one for the
// audit record. The rest is room for a pool that the collector has emptied.
func TestAllocations(t *testing.T) {
	const limit = 8
	f := newFixture(t)
	f.Audit = slog.New(slog.NewJSONHandler(nowhere{}, nil))
	in := browserRequest("_ga=GA1.2.3.4; " + f.cookie(appHost, "alice")).proto()
	got := testing.AllocsPerRun(1000, func() {
		if r, err := f.Check(context.Background(), in); err != nil || r.GetOkResponse() == nil { //nolint:usetesting // as a server calls it
			t.Fatalf("got %v, %v", r, err)
		}
	})
	t.Logf("%v allocations", got)
	if got > limit {
		t.Errorf("got %v allocations, want at most %d", got, limit)
	}
}

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
			f.Audit = slog.New(slog.NewJSONHandler(nowhere{}, nil))
			in := browserRequest("_ga=GA1.2.3.4; " + f.cookie(appHost, "alice")).proto()
			b.ReportAllocs()
			for b.Loop() {
				if r, err := f.Check(b.Context(), in); err != nil || r.GetOkResponse() == nil {
					b.Fatal(r, err)
				}
			}
		})
	}
}
