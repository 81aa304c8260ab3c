package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dexidp/dex/storage"

	"gatehouse/test/peers"
)

// A trip answers requests in place of a network (http.RoundTripper). What a real API server does, the suite test/cluster/store shows; here is what it does
// seldom or never on command.
type trip func(*http.Request) (status int, header http.Header, body string)

func (f trip) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	code, header, body := f(r)
	if header == nil {
		header = http.Header{}
	}
	return &http.Response{StatusCode: code, Header: header, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
}

// onTrip returns a driver whose calls f answers.
func onTrip(f trip) *kubernetesDriver {
	return &kubernetesDriver{api: &kubeClient{
		collection: &url.URL{Scheme: "https", Host: "kubernetes", Path: "/apis/gatehouse.internal/v1/namespaces/n/records"},
		http:       &http.Client{Transport: f},
		token:      func(fresh bool) (string, error) { return fmt.Sprintf("fresh-%t", fresh), nil },
	}}
}

func busy(code int, after string) (int, http.Header, string) {
	return code, http.Header{"Retry-After": {after}}, `{"kind":"Status","message":"later"}`
}

func gone() (int, http.Header, string) {
	return http.StatusGone, nil, `{"kind":"Status","code":410,"reason":"Expired","message":"too old resource version"}`
}

// objectText is an object as an API server would give it.
func objectText(t testing.TB, op Op, version int64) string {
	t.Helper()
	o := objectOf(op)
	o.Metadata.ResourceVersion = fmt.Sprint(version)
	b, err := json.Marshal(o)
	must(t, err)
	return string(b)
}

func TestKubernetesWaitsAsLongAsItIsTold(t *testing.T) {
	for name, tt := range map[string]struct {
		code  int
		after string
		calls int
		took  time.Duration // at least, and at most a quarter more
	}{
		"429":                          {429, "2", 5, 8 * time.Second},
		"503":                          {503, "1", 5, 4 * time.Second},
		"far too long is cut":          {429, "86400", 5, 4 * kubeMaxWait},
		"not a number":                 {429, "Fri, 31 Dec 1999 23:59:59 GMT", 5, 4 * time.Second},
		"503 that does not ask for it": {503, "", 1, 0},
		"500 is no matter of waiting":  {500, "1", 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var calls atomic.Int64
				d := onTrip(func(*http.Request) (int, http.Header, string) { calls.Add(1); return busy(tt.code, tt.after) })
				start := time.Now()
				_, err := d.Read(t.Context(), "k", "id")
				if err == nil || errors.Is(err, storage.ErrNotFound) || !strings.Contains(err.Error(), fmt.Sprint(tt.code)) {
					t.Errorf("got %v, want the server's answer", err)
				}
				if got := int(calls.Load()); got != tt.calls {
					t.Errorf("%d calls, want %d", got, tt.calls)
				}
				if took := time.Since(start); took < tt.took || took > tt.took*5/4+time.Microsecond {
					t.Errorf("it took %v, want %v or up to a quarter more", took, tt.took)
				}
			})
		})
	}
}

func TestKubernetesWaitEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := onTrip(func(*http.Request) (int, http.Header, string) { return busy(429, "9") })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start := time.Now()
		_, err := d.Read(ctx, "k", "id")
		if took := time.Since(start); !errors.Is(err, context.DeadlineExceeded) || took != time.Second {
			t.Errorf("got %v after %v, want the context's end after 1s", err, took)
		}
	})
}

// A write that was answered 503 may have been made: what the next try says of it ("there is one already") is no outcome.
func TestKubernetesOutcomeAfterADoubtfulTry(t *testing.T) {
	for name, tt := range map[string]struct {
		first   int
		outcome bool
	}{"429 says that nothing was done": {429, true}, "503 says nothing": {503, false}} {
		for verb, second := range map[Verb]int{Create: 409, Put: 409, Delete: 404} {
			synctest.Test(t, func(t *testing.T) {
				o := op(verb, "a", "", "x", 7)
				var calls int
				d := onTrip(func(r *http.Request) (int, http.Header, string) {
					if r.Method == http.MethodGet {
						return 200, nil, objectText(t, o, 8)
					}
					if calls++; calls == 1 {
						return busy(tt.first, "1")
					}
					return second, nil, `{"kind":"Status","message":"no"}`
				})
				_, err := d.Write(t.Context(), []Op{o})
				if err == nil || isOutcome(err) != tt.outcome {
					t.Errorf("%s, verb %d: got %v, want an outcome: %t", name, verb, err, tt.outcome)
				}
			})
		}
	}
}

func TestKubernetesReadsOutcomeAfterABusyServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls int
		d := onTrip(func(*http.Request) (int, http.Header, string) {
			if calls++; calls == 1 {
				return busy(503, "1")
			}
			return 404, nil, `{"kind":"Status","message":"no"}`
		})
		if _, err := d.Read(t.Context(), "k", "id"); err != storage.ErrNotFound { //nolint:errorlint // Dex compares with ==
			t.Errorf("got %v, want ErrNotFound itself: a read has nothing to be in doubt about", err)
		}
	})
}

func TestKubernetesReadsTheTokenAgainWhenItIsRefused(t *testing.T) {
	var tokens []string
	d := onTrip(func(r *http.Request) (int, http.Header, string) {
		tokens = append(tokens, r.Header.Get("Authorization"))
		return 401, nil, `{"kind":"Status","message":"Unauthorized"}`
	})
	_, err := d.Read(t.Context(), "k", "id")
	if got := strings.Join(tokens, ","); err == nil || got != "Bearer fresh-false,Bearer fresh-true" {
		t.Errorf("got %v with %s, want an error after a second try with a fresh token", err, got)
	}
}

func TestKubernetesFollowsNoRedirect(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "ca.crt"), peers.NewCA(t, "api CA").PEM, 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "config"), []byte(`{current-context: c, clusters: [{name: k, cluster: {server: "https://api", certificate-authority: ca.crt}}],
 users: [{name: u, user: {token: abc}}], contexts: [{name: c, context: {cluster: k, user: u}}]}`), 0o600))
	api, _, err := KubernetesConfig{KubeConfigFile: filepath.Join(dir, "config")}.client()
	must(t, err)
	api.http.Transport = trip(func(r *http.Request) (int, http.Header, string) {
		if r.URL.Host != "api" {
			t.Errorf("a request went to %s", r.URL)
		}
		return 307, http.Header{"Location": {"https://evil.example/"}}, ""
	})
	d := &kubernetesDriver{api: api}
	if _, err := d.Read(t.Context(), "k", "id"); err == nil || !strings.Contains(err.Error(), "307") {
		t.Errorf("got %v, want the answer 307 as an error", err)
	}
}

// The name of an object is a hash: whoever swaps two objects' names swaps no sessions.
func TestKubernetesRefusesAnObjectOfAnotherName(t *testing.T) {
	d := onTrip(func(*http.Request) (int, http.Header, string) {
		o := objectOf(op(Create, "bob", "", "x", 0))
		o.Metadata.Name, o.Metadata.ResourceVersion = kubeName("k", "alice"), "5"
		b, err := json.Marshal(o)
		must(t, err)
		return 200, nil, string(b)
	})
	if r, err := d.Read(t.Context(), "k", "alice"); err == nil || errors.Is(err, storage.ErrNotFound) {
		t.Errorf("got %+v and %v, want an error", r, err)
	}
}

func TestKubernetesGoesOnWithAScanThatWasForgotten(t *testing.T) {
	var asked []string
	d := onTrip(func(r *http.Request) (int, http.Header, string) {
		token := r.URL.Query().Get("continue")
		asked = append(asked, token)
		switch token {
		case "":
			return 200, nil, `{"metadata":{"resourceVersion":"5","continue":"old"},"items":[` + objectText(t, op(Create, "a", "", "x", 0), 3) + `]}`
		case "old":
			return 410, nil, `{"kind":"Status","code":410,"reason":"Expired","message":"too old","metadata":{"continue":"new"}}`
		}
		return 200, nil, `{"metadata":{"resourceVersion":"9"},"items":[` + objectText(t, op(Create, "b", "", "x", 0), 4) + `]}`
	})
	var got []string
	for r, err := range d.Scan(t.Context(), Query{Kind: "k"}) {
		must(t, err)
		got = append(got, r.ID)
	}
	if strings.Join(got, "") != "ab" || strings.Join(asked, ",") != ",old,new" {
		t.Errorf("got %q after asking %q", got, asked)
	}
}

// watched answers Head with a version and each watch with lines.
func watched(head *int64, lines func(r *http.Request) string) trip {
	return func(r *http.Request) (int, http.Header, string) {
		if r.URL.Query().Get("watch") == "" {
			return 200, nil, fmt.Sprintf(`{"metadata":{"resourceVersion":"%d"}}`, *head)
		}
		return 200, nil, lines(r)
	}
}

func bookmark(version int64) string {
	return fmt.Sprintf(`{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"%d"}}}`+"\n", version)
}

// An empty answer says that there was nothing: a watch that has not come as far as the cluster had does not say that.
func TestKubernetesChangesAreReadToWhereTheClusterWas(t *testing.T) {
	head := int64(20)
	var from []string
	d := onTrip(watched(&head, func(r *http.Request) string {
		from = append(from, r.URL.Query().Get("resourceVersion"))
		switch len(from) {
		case 1:
			return bookmark(15) // of an API server that lags behind
		case 2:
			return "" // ended without a word
		}
		return `{"type":"MODIFIED","object":` + objectText(t, op(Put, "a", "", "x", 1), 18) + "}\n" + bookmark(21)
	}))
	page, err := d.Changes(t.Context(), 10, 10)
	must(t, err)
	if len(page) != 1 || page[0].Seq != 18 || page[0].ID != "a" {
		t.Errorf("got %+v, want the change at 18", page)
	}
	if got := strings.Join(from, ","); got != "10,15,15" {
		t.Errorf("watched from %s, want 10,15,15", got)
	}
	page, err = d.Changes(t.Context(), 20, 10)
	if err != nil || len(page) != 0 || len(from) != 3 {
		t.Errorf("at the end: got %+v, %v after %d watches; want nothing without another", page, err, len(from))
	}
}

// In a quiet store the cluster goes on, and forgets the place of our last change.
func TestKubernetesRemembersThatNothingHappened(t *testing.T) {
	head := int64(20)
	var from []string
	d := onTrip(watched(&head, func(r *http.Request) string {
		from = append(from, r.URL.Query().Get("resourceVersion"))
		return bookmark(head)
	}))
	for range 3 {
		page, err := d.Changes(t.Context(), 10, 10)
		if err != nil || len(page) != 0 {
			t.Fatalf("got %+v and %v, want nothing", page, err)
		}
		head += 1000
	}
	if _, err := d.Changes(t.Context(), 5, 10); err != nil { // before what is known to be quiet
		t.Fatal(err)
	}
	if got := strings.Join(from, ","); got != "10,20,1020,5" {
		t.Errorf("watched from %s, want 10,20,1020,5", got)
	}
}

func TestKubernetesForgottenChangesAreTrimmed(t *testing.T) {
	head := int64(20)
	line := `{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}`
	in := onTrip(watched(&head, func(*http.Request) string { return line }))
	refused := onTrip(func(r *http.Request) (int, http.Header, string) {
		if r.URL.Query().Get("watch") != "" {
			return gone()
		}
		return 200, nil, `{"metadata":{"resourceVersion":"20"}}`
	})
	for name, d := range map[string]*kubernetesDriver{"a line of the watch": in, "the watch refused": refused} {
		_, err := d.Changes(t.Context(), 10, 10)
		if !errors.Is(err, ErrTrimmed) {
			t.Errorf("%s: got %v, want ErrTrimmed", name, err)
		}
	}
	line = bookmark(20)
	for name, after := range map[string]int64{"from 0, which means anything to a watch": 0, "from what is to come, after a backup": 21} {
		if _, err := in.Changes(t.Context(), after, 10); !errors.Is(err, ErrTrimmed) {
			t.Errorf("%s: got %v, want ErrTrimmed", name, err)
		}
	}
	line = `{"type":"ERROR","object":{"kind":"Status","code":500,"message":"etcd"}}`
	if _, err := in.Changes(t.Context(), 10, 10); err == nil || errors.Is(err, ErrTrimmed) {
		t.Errorf("another error: got %v, want it", err)
	}
}

// Wake goes on through errors, with pauses, and wakes after each time that it could not hear.
func TestKubernetesWakeConnectsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		d := onTrip(func(r *http.Request) (int, http.Header, string) {
			n := calls.Add(1)
			if n%3 == 0 {
				return 500, nil, "down"
			}
			if r.URL.Query().Get("watch") != "" {
				return gone()
			}
			return 200, nil, `{"metadata":{"resourceVersion":"20"}}`
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var woken atomic.Int64
		d.Wake(ctx, func() { woken.Add(1) })
		if got := calls.Load(); got < 10 || got > 60 {
			t.Errorf("%d calls in a minute without a server, want some and not many", got)
		}
		if woken.Load() < 3 {
			t.Errorf("woken %d times, want once after each connection", woken.Load())
		}
	})
}

func TestKubeConfigs(t *testing.T) {
	dir := t.TempDir()
	ca := peers.NewCA(t, "api CA")
	must(t, os.WriteFile(filepath.Join(dir, "ca.crt"), ca.PEM, 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "token"), []byte("abc.def\n"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "crlf"), []byte("abc\r\nX-Evil: 1"), 0o600))
	config := func(cluster, user, more string) string {
		return `{apiVersion: v1, kind: Config, current-context: c, clusters: [{name: k, cluster: {server: "https://api:6443", ` + cluster + `}}],
 users: [{name: u, user: {` + user + `}}], contexts: [{name: c, context: {cluster: k, user: u, namespace: auth}}]` + more + `}`
	}
	const good, tokenFile = `certificate-authority: ca.crt`, `tokenFile: token`
	for name, tt := range map[string]struct{ text, want string }{
		"a token's file":          {config(good, tokenFile, ""), ""},
		"a token":                 {config(good, `token: abc`, ""), ""},
		"preferences are allowed": {config(good, tokenFile, `, preferences: {}`), ""},
		"exec":                    {config(good, `exec: {command: aws}`, ""), "exec and auth-provider run a program"},
		"auth-provider":           {config(good, `auth-provider: {name: gcp}`, ""), "exec and auth-provider run a program"},
		"exec beside a token":     {config(good, `token: abc, exec: {command: aws}`, ""), "exec and auth-provider run a program"},
		"insecure":                {config(`insecure-skip-tls-verify: true`, tokenFile, ""), "give certificate-authority"},
		"proxy":                   {config(good+`, proxy-url: "http://p"`, tokenFile, ""), "proxy-url"},
		"password":                {config(good, `username: a, password: b`, ""), "use token or tokenFile"},
		"impersonation":           {config(good, tokenFile+`, as: admin`, ""), "impersonation"},
		"no CA":                   {config(`tls-server-name: x`, tokenFile, ""), "certificate-authority: it is missing"},
		"a CA that is none":       {config(`certificate-authority: token`, tokenFile, ""), "no CA certificate"},
		"nobody":                  {config(good, ``, ""), "neither token, tokenFile nor client-certificate"},
		"a token with a header":   {config(good, `tokenFile: crlf`, ""), "does not hold one"},
		"an unknown field":        {config(good, tokenFile, `, currentcontext: x`), "currentcontext"},
		"an unknown context":      {strings.Replace(config(good, tokenFile, ""), "current-context: c", "current-context: d", 1), `"d" is not among the contexts`},
		"an unknown user":         {strings.Replace(config(good, tokenFile, ""), "name: u,", "name: x,", 1), "is not in the file"},
		"plain http":              {strings.Replace(config(good, tokenFile, ""), "https://", "http://", 1), "no https URL"},
		"a namespace like a path": {strings.Replace(config(good, tokenFile, ""), "namespace: auth", "namespace: ../x", 1), "namespace"},
		"not YAML":                {"[", "kubeConfigFile"},
	} {
		path := filepath.Join(dir, "config")
		must(t, os.WriteFile(path, []byte(tt.text), 0o600))
		client, where, err := KubernetesConfig{KubeConfigFile: path}.client()
		switch {
		case tt.want == "" && (err != nil || where != "namespace auth at api:6443" || client.collection.String() != "https://api:6443/apis/gatehouse.internal/v1/namespaces/auth/records"):
			t.Errorf("%s: got %q and %v", name, where, err)
		case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
	for name, c := range map[string]KubernetesConfig{"neither": {}, "both": {InCluster: true, KubeConfigFile: "x"}} {
		if _, _, err := c.client(); err == nil || !strings.Contains(err.Error(), "either inCluster: true or kubeConfigFile") {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestKubernetesInAPod(t *testing.T) {
	dir := t.TempDir()
	env := map[string]string{"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
	c := KubernetesConfig{InCluster: true, account: dir, getenv: func(k string) string { return env[k] }}
	ca := peers.NewCA(t, "api CA")
	for _, step := range []struct{ file, text, want string }{
		{"ca.crt", string(ca.PEM), "ca.crt"},
		{"token", "first", "automountServiceAccountToken"},
		{"namespace", "auth", "namespace"},
	} {
		if _, _, err := c.client(); err == nil || !strings.Contains(err.Error(), step.want) {
			t.Errorf("without %s: got %v", step.file, err)
		}
		must(t, os.WriteFile(filepath.Join(dir, step.file), []byte(step.text), 0o600))
	}
	client, where, err := c.client()
	must(t, err)
	if where != "namespace auth at [fd00::1]:443" {
		t.Errorf("it calls %s", where)
	}
	must(t, os.WriteFile(filepath.Join(dir, "token"), []byte("second"), 0o600))
	kept, err := client.token(false)
	must(t, err)
	fresh, err := client.token(true)
	must(t, err)
	if kept != "first" || fresh != "second" {
		t.Errorf("got %q, and %q when the first is refused; want first and second", kept, fresh)
	}
	env = nil
	if _, _, err := c.client(); err == nil || !strings.Contains(err.Error(), "KUBERNETES_SERVICE_HOST") {
		t.Errorf("outside of a pod: got %v", err)
	}
}

func TestATokenFileIsReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "token")
		must(t, os.WriteFile(path, []byte("first"), 0o600))
		token := tokenFile(path)
		_, err := token(false)
		must(t, err)
		must(t, os.WriteFile(path, []byte("second"), 0o600))
		<-time.After(kubeTokenAge - time.Second) // of synctest
		if got, err := token(false); err != nil || got != "first" {
			t.Errorf("before its time: got %q, %v; want first", got, err)
		}
		<-time.After(time.Second) // of synctest
		if got, err := token(false); err != nil || got != "second" {
			t.Errorf("after a minute: got %q, %v; want second", got, err)
		}
	})
}

// A code is spent by whoever deletes it, also where a Write is not all or nothing: what comes after it may be lost, and nobody gets tokens.
func TestACodeIsSpentOnceWithoutTransactions(t *testing.T) {
	ctx := t.Context()
	d := &sequential{memory: newMemory()}
	s := newStore(d, Options{}, 0)
	must(t, s.CreateAuthCode(ctx, storage.AuthCode{ID: "c"}))
	lost := errors.New("connection lost")
	d.fail = func(op Op) error {
		if op.Record.Kind == KindSpentCode {
			return lost
		}
		return nil
	}
	wantErr(t, s.SpendAuthCode(ctx, "c", SpentCode{}), lost)
	d.fail = nil
	wantErr(t, s.SpendAuthCode(ctx, "c", SpentCode{}), storage.ErrNotFound)
}

// A sequential driver makes the ops of a Write one by one.
type sequential struct {
	*memory

	fail func(Op) error
}

func (d *sequential) Sequential() {}

func (d *sequential) Write(ctx context.Context, ops []Op) (seq int64, err error) {
	for _, op := range ops {
		if d.fail != nil {
			if err := d.fail(op); err != nil {
				return 0, err
			}
		}
		if seq, err = d.memory.Write(ctx, []Op{op}); err != nil {
			return 0, err
		}
	}
	return seq, nil
}
