package main

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/proto"

	"gatehouse/test/peers"
)

// TestMain lets the test binary be one of its servers.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == serveCommand {
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// TestEveryRowRuns runs everything but oauth2-proxy, which takes a minute to compile, through a real Envoy and against the built
// binary. It looks at no time.
func TestEveryRowRuns(t *testing.T) {
	o := options{gatehouse: peers.Binary(t), otherProxy: none, markdown: true, only: regexp.MustCompile(""), log: t.Output()}.quick()
	var out bytes.Buffer
	if err := compare(t.Context(), o, &out); err != nil {
		t.Fatal(err)
	}
	number := regexp.MustCompile(`^[\d,]*[1-9][\d,.]*$|^[\d,]+\.\d*[1-9]\d*$`)
	seen := map[string]int{}
	for line := range strings.Lines(out.String()) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "| "), " | ")
		if len(cells) != 9 || cells[0] == "load" {
			continue
		}
		load, _, _ := strings.Cut(cells[0], ",")
		seen[load]++
		for _, i := range []int{2, 3, 5, 6, 7, 8} {
			if !number.MatchString(cells[i]) {
				t.Errorf("%s: %s: cell %d is %q, want a number above 0", cells[0], cells[1], i, cells[i])
			}
		}
	}
	for load, want := range map[string]int{"direct": 9, "Envoy": 9, "rules": 4, "sessions": 5, "control": 3} {
		if seen[load] != want {
			t.Errorf("%s: got %d rows, want %d, in:\n%s", load, seen[load], want, out.String())
		}
	}
	if n := strings.Count(out.String(), "| pass |") + strings.Count(out.String(), "| **missed** |"); n != 6 {
		t.Errorf("got %d targets, want 6 without oauth2-proxy, in:\n%s", n, out.String())
	}
}

func TestAServerThatChecksNothingIsFound(t *testing.T) {
	s, err := startChild(t.Context(), t.TempDir(), "no-op")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	}()
	s.cookies = []string{"session=0123456789"}
	err = load{parallel: 1}.prove(t.Context(), s)
	if err == nil || !strings.Contains(err.Error(), "forged") {
		t.Errorf("got %v, want an error about a forged session", err)
	}
}

func TestAllows(t *testing.T) {
	ok := &authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: &authv3.OkHttpResponse{}}}
	denied := &authv3.CheckResponse{HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: &authv3.DeniedHttpResponse{}}}
	marshal := func(m proto.Message) []byte {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, tt := range []struct {
		name   string
		answer []byte
		want   bool
	}{
		{"denied", marshal(denied), false},
		{"empty", nil, false},
		{"cut", marshal(ok)[:1], false},
		{"allowed and denied", append(marshal(ok), marshal(denied)...), false},
		{"allowed", marshal(ok), true},
	} {
		if got := allows(tt.answer); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestBlankMakesTheRequestOfEachCookie(t *testing.T) {
	cookies := []string{"s=aaaaaaaa", "s=bbbbbbbb"}
	b, err := newBlank(cookies)
	if err != nil {
		t.Fatal(err)
	}
	buf := b.buffer()
	for _, c := range cookies {
		b.put(buf, c)
		var got authv3.CheckRequest
		if err := proto.Unmarshal(buf, &got); err != nil {
			t.Fatal(err)
		}
		want := checkRequest(http.MethodGet, host, path, append(headers(), [2]string{"cookie", "_ga=GA1.2.3.4; " + c}))
		if !proto.Equal(&got, want) {
			t.Errorf("%s: got %v, want %v", c, &got, want)
		}
	}
	if _, err := newBlank([]string{"s=a", "s=bb"}); err == nil {
		t.Error("cookies of two lengths were taken")
	}
}

func TestCallHTTP(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := r.Cookie("s")
		switch {
		case err != nil || r.Host != host || r.URL.Path != "/oauth2/auth" || r.Header.Get("Sec-Fetch-Mode") != "cors":
			w.WriteHeader(http.StatusBadRequest)
		case c.Value == "good":
			w.WriteHeader(http.StatusAccepted)
			_, _ = io.WriteString(w, "Authenticated")
		case c.Value == "long": // without content-length
			w.(http.Flusher).Flush()
		default:
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer s.Close()
	c, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	call := callHTTP(c, requestHead("/oauth2/auth"), http.StatusAccepted)
	for _, tt := range []struct {
		cookie string
		ok     bool
	}{{"s=good", true}, {"s=bad", false}, {"s=good", true}, {"s=long", false}} {
		if err := call(t.Context(), tt.cookie); (err == nil) != tt.ok {
			t.Errorf("%s: got error %v, want ok %v", tt.cookie, err, tt.ok)
		}
	}
}

func TestReadAnswerRefusesWhatIsCut(t *testing.T) {
	for _, text := range []string{"", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab", "HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", "HTTP/1.1 abc\r\n\r\n"} {
		if status, err := readAnswer(bufio.NewReader(strings.NewReader(text))); err == nil {
			t.Errorf("%q: got status %d, want an error", text, status)
		}
	}
}

func TestASignInMustLeadBack(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := r.Cookie("s")
		switch {
		case r.Method == http.MethodPost && r.PostFormValue("login") == "ada" && r.PostFormValue("password") == "secret":
			http.SetCookie(w, &http.Cookie{Name: "s", Value: "1", Path: "/"})
			http.Redirect(w, r, r.FormValue("back"), http.StatusSeeOther)
		case err == nil:
			_, _ = io.WriteString(w, "the app, or a page that asks for consent")
		case r.URL.Path == "/app":
			_, _ = io.WriteString(w, `<form class="x" method="post" action="/login?a=b&amp;back=/app">`)
		default:
			_, _ = io.WriteString(w, `<form class="x" method="post" action="/login?a=b&amp;back=/consent">`)
		}
	}))
	defer s.Close()
	for _, tt := range []struct {
		name, path, password string
		cookies              int
		err                  string
	}{
		{"signed in", "/app", "secret", 1, ""},
		{"something else is asked first", "/asked", "secret", 0, "/consent, want"},
		{"a wrong password", "/app", "wrong", 0, "/login"},
	} {
		cookies, err := signIn(t.Context(), s.Client().Transport, s.URL+tt.path, "ada", tt.password)
		if len(cookies) != tt.cookies || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: got %v, %v, want %d cookies and error %q", tt.name, cookies, err, tt.cookies, tt.err)
		}
	}
}

// TestCPUTime compares the process clock with getrusage(2), which only tells it of one's own process.
func TestCPUTime(t *testing.T) {
	usage := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	clock := func() time.Duration {
		d, err := cpuTime(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	const slack = 20 * time.Millisecond // what getrusage may not have seen yet
	// The garbage collector, say, may run between two looks: each at the clock is between two at the usage.
	before, begin, begun := usage(), clock(), usage()
	for usage()-begun < 200*time.Millisecond {
	}
	least, got := usage()-begun, clock()-begin
	if most := usage() - before; got < least-slack || got > most+slack {
		t.Errorf("got %v of CPU time, getrusage says %v to %v", got, least, most)
	}
	if _, err := cpuTime(1 << 22); err == nil { // above the kernel's largest pid
		t.Error("got a CPU time of a process that does not exist")
	}
}

func TestTargets(t *testing.T) {
	r := report{many: 100_000, rows: []row{
		{load: "direct, 1 parallel", server: "no-op", cpu: 100},
		{load: "direct, 1 parallel", server: "gatehouse, 10 rules", cpu: 60},
		{load: "direct, 8 parallel", server: "no-op", cpu: 50},
		{load: "direct, 8 parallel", server: "gatehouse, 10 rules", cpu: 40},
		{load: "rules, 8 parallel", server: "gatehouse, 10 rules", cpu: 40},
		{load: "rules, 8 parallel", server: "gatehouse, 10,000 rules", cpu: 48},
	}}
	for i := range r.rows {
		r.rows[i].rounds = []float64{1}
	}
	var out bytes.Buffer
	err := r.print(&out, options{markdown: true, enforce: true})
	if err == nil || !strings.Contains(err.Error(), "10,000 rules to 10: got 1.20, want at most 1.10") || strings.Contains(err.Error(), "no-op") {
		t.Errorf("got error %v, want one about 10,000 rules alone", err)
	}
	for _, want := range []string{
		"| a check, direct, to the no-op server's | 0.75 (aim 0.66) | 0.70 | 0.80 | pass |\n",
		"| 10,000 rules to 10 | 1.10 | 1.20 | 1.20 | **missed** |\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("got\n%s\nwant a line %s", out.String(), want)
		}
	}
	if err := r.print(io.Discard, options{}); err != nil {
		t.Errorf("a missed target is an error although that was not asked for: %v", err)
	}
}

func TestTheRatioIsOfAllRoundsTogether(t *testing.T) {
	yardstick := []sample{{checks: 100, took: time.Second, cpu: time.Millisecond}, {checks: 300, took: time.Second, cpu: 3 * time.Millisecond}}
	samples := []sample{{checks: 100, took: time.Second, cpu: 2 * time.Millisecond}, {checks: 300, took: 2 * time.Second, cpu: 3 * time.Millisecond}}
	r := newRow(load{}, &server{}, samples, yardstick, 0)
	if r.cpu != 12.5 || r.ratio != 1.25 || r.rounds[0] != 1 || r.rounds[1] != 2 || r.perSecond != 150 {
		t.Errorf("got %+v, want 12.5 us, ratio 1.25, rounds 1 and 2, 150/s", r)
	}
}

func TestThousands(t *testing.T) {
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", 100_000: "100,000", 1_234_567: "1,234,567"} {
		if got := thousands(n); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
