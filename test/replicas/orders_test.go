package replicas

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/lestrrat-go/jwx/v2/jwk"
	"github.com/lestrrat-go/jwx/v2/jws"
	"github.com/lestrrat-go/jwx/v2/jwt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"gatehouse/test/peers"
)

// codeFlow signs an outside client in: the browser at one replica, the code at the next one, userinfo at the first again.
func (f *fleet) codeFlow(t *testing.T) {
	b := f.signedIn(t, ada)
	for i := range f.replicas {
		other := (i + 1) % len(f.replicas)
		tokens := f.tokens(t, b, i, other)
		f.verified(t, tokens.ID, i)
		if status := f.userinfo(t, i, tokens.Access); status != http.StatusOK {
			t.Errorf("userinfo on %s with a token of %s: got %d", f.replicas[i].name, f.replicas[other].name, status)
		}
		t.Logf("code of %s, token of %s, verified with the keys and the userinfo of %s", f.replicas[i].name, f.replicas[other].name, f.replicas[i].name)
	}
}

type tokens struct {
	ID     string `json:"id_token"`
	Access string `json:"access_token"`
}

// tokens has the client get a code of one replica and exchange it at another.
func (f *fleet) tokens(t *testing.T, b *browser, at, exchange int) (out tokens) {
	t.Helper()
	onReplica := &browser{f: f, http: f.direct[at], jar: b.jar}
	query := url.Values{"client_id": {clientID}, "redirect_uri": {clientURL}, "response_type": {"code"}, "scope": {"openid email groups"}, "state": {"s"}}
	p, err := onReplica.visit(t.Context(), http.MethodGet, f.issuer+"/auth?"+query.Encode(), nil)
	if err != nil {
		t.Fatal(err)
	}
	back, err := url.Parse(p.header.Get("Location"))
	if err != nil || back.Query().Get("code") == "" {
		t.Fatalf("no code: %s, %v", p, err)
	}
	form := url.Values{"grant_type": {"authorization_code"}, "code": {back.Query().Get("code")}, "redirect_uri": {clientURL}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, f.issuer+"/token", strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(clientID, url.QueryEscape(clientSecret))
	if p, err = answer(f.direct[exchange], req); err != nil || p.status != http.StatusOK {
		t.Fatalf("token: %s, %v", p, err)
	}
	if err := json.Unmarshal([]byte(p.body), &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// verified verifies a token with the keys that a replica publishes, within a second of now, and returns the id of its key.
func (f *fleet) verified(t *testing.T, token string, replica int) (kid string) {
	t.Helper()
	start, pulse := time.Now(), peers.NewPulse(t)
	for err := f.verify(t, token, replica); err != nil; err = f.verify(t, token, replica) {
		if time.Since(start)-pulse.Still() > time.Second {
			t.Errorf("a token with the keys of %s: %v", f.replicas[replica].name, err)
			break
		}
	}
	m, err := jws.ParseString(token)
	if err != nil {
		t.Fatal(err)
	}
	return m.Signatures()[0].ProtectedHeaders().KeyID()
}

func (f *fleet) verify(t *testing.T, token string, replica int) error {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.issuer+"/keys", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	p, err := answer(f.direct[replica], req)
	if err != nil {
		t.Fatal(err)
	}
	set, err := jwk.ParseString(p.body)
	if err != nil {
		t.Fatalf("keys of %s: %v: %s", f.replicas[replica].name, err, p)
	}
	_, err = jwt.ParseString(token, jwt.WithKeySet(set), jwt.WithIssuer(f.issuer), jwt.WithAudience(clientID))
	return err
}

func (f *fleet) userinfo(t *testing.T, replica int, access string) (status int) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.issuer+"/userinfo", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+access)
	p, err := answer(f.direct[replica], req)
	if err != nil {
		t.Fatal(err)
	}
	return p.status
}

// rotated rotates the keys through one replica: what one signs then the other verifies at once, its published keys follow within a second, and nobody is signed
// out.
func (f *fleet) rotated(t *testing.T) {
	working := f.signedIn(t, ada)
	f.known(t, ada, working)
	l := underLoad(t, ada, working)
	for i, how := range [][]string{{"keys", "rotate", "--now"}, {"keys", "rotate"}, {"keys", "rotate", "--now"}} {
		through := i % len(f.replicas)
		before := f.tokens(t, working, 0, 1)
		old := f.verified(t, before.ID, 0)
		f.replicas[through].command(t, how...)
		start := time.Now()
		for by := range f.replicas {
			fresh := f.tokens(t, working, by, by)
			for at := range f.replicas {
				if status := f.userinfo(t, at, fresh.Access); status != http.StatusOK {
					t.Errorf("%v: userinfo on %s with a fresh token of %s: got %d", how, f.replicas[at].name, f.replicas[by].name, status)
				}
				kid := f.verified(t, fresh.ID, at)
				if withdrawn := len(how) == 3; withdrawn == (kid == old) {
					t.Errorf("%v: %s signs with %s, before it was %s", how, f.replicas[by].name, kid, old)
				}
			}
		}
		t.Logf("%s through %s: %s after it each replica had verified the tokens of each", strings.Join(how, " "), f.replicas[through].name, time.Since(start).Round(time.Millisecond))
		f.signedIn(t, bob)
	}
	l.done(t, "rotated keys")
	f.known(t, ada, working) // also with cookies of before
}

// blocked blocks a user through one replica, is refused by all, and is let in again after the unblock through the other.
func (f *fleet) blocked(t *testing.T) {
	b, others := f.signedIn(t, bob), f.signedIn(t, ada)
	f.known(t, bob, b)
	f.known(t, ada, others)
	l := underLoad(t, ada, others)
	polls := f.watch(t, b)
	blockedAt, pulse := time.Now(), peers.NewPulse(t)
	f.replicas[1].command(t, "users", "block", bob)
	done := time.Now()
	for i, refused := range polls() {
		// The command's own process takes a while to start: the time counts from the end of it, and is mostly before that.
		t.Logf("users block through %s took %s; refused on %s %s after it began, %s after it was done", f.replicas[1].name, done.Sub(blockedAt).Round(time.Millisecond),
			f.replicas[i].name, refused.Sub(blockedAt).Round(time.Millisecond), max(0, refused.Sub(done)).Round(time.Millisecond))
		if late := refused.Sub(done) - pulse.Still(); late > time.Second {
			t.Errorf("%s refused the user %s after the block, want within 1s", f.replicas[i].name, late)
		}
	}
	again := f.browser(t)
	if err := again.signIn(t.Context(), bob); err == nil {
		t.Error("a blocked user has signed in")
	}
	f.replicas[0].command(t, "users", "unblock", bob)
	if err := f.browser(t).signIn(t.Context(), bob); err != nil {
		t.Errorf("after the unblock: %v", err)
	}
	l.done(t, "another user is blocked")
}

// watch asks every replica about a browser's session until it refuses; the function that it returns waits for all, and returns when that was.
func (f *fleet) watch(t *testing.T, b *browser) (refused func() []time.Time) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	at, errs := make([]time.Time, len(f.replicas)), make([]error, len(f.replicas))
	var all sync.WaitGroup
	for i, r := range f.replicas {
		ask := r.asker(t, b)
		all.Go(func() {
			for {
				status, err := ask(ctx)
				if err != nil {
					errs[i] = fmt.Errorf("%s: %w", r.name, err)
					return
				}
				if status != http.StatusOK {
					at[i] = time.Now()
					return
				}
			}
		})
	}
	return func() []time.Time {
		t.Helper()
		all.Wait()
		cancel()
		for _, err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
		return at
	}
}

// asker asks one replica, past Envoy, whether a browser may open the app.
func (r *replica) asker(t *testing.T, b *browser) func(context.Context) (status int, err error) {
	t.Helper()
	conn, err := grpc.NewClient(r.check, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	app, err := url.Parse(b.f.app)
	if err != nil {
		t.Fatal(err)
	}
	var jar []string
	for _, c := range b.jar.Cookies(app) {
		jar = append(jar, c.Name+"="+c.Value)
	}
	client := authv3.NewAuthorizationClient(conn)
	in := &authv3.CheckRequest{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{
		Method: http.MethodGet, Path: "/headers", Host: app.Host, Scheme: "http",
		Headers: map[string]string{":authority": app.Host, ":path": "/headers", ":method": http.MethodGet, ":scheme": "http", "accept": "text/html", "cookie": strings.Join(jar, "; ")},
	}}}}
	return func(ctx context.Context) (int, error) {
		out, err := client.Check(ctx, in)
		if err != nil {
			return 0, err
		}
		if no := out.GetDeniedResponse(); no != nil {
			return int(no.GetStatus().GetCode()), nil
		}
		return http.StatusOK, nil
	}
}
