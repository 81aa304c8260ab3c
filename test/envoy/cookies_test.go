package envoy

import (
	"crypto/rand"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
)

// cookieRows show cookies. Where none counts, nobody is signed in: a navigation is led to the sign-in.
func cookieRows() (all []row) {
	const family = "cookies"
	signIn, ok := refused(http.StatusFound), passes(http.StatusOK)
	for _, c := range []struct {
		name    string
		cookies []string // each a Cookie header
		as      string   // who that makes
		want    *verdict
		direct  *verdict // where Envoy answers by itself
	}{
		{"one that is good", []string{"gatehouse-dev={user}"}, user, ok, nil},
		{"garbage", []string{"gatehouse-dev=" + rand.Text()}, "", signIn, nil},
		{"garbage that is no base64", []string{`gatehouse-dev=%00"<>\`}, "", signIn, nil},
		{"empty", []string{"gatehouse-dev="}, "", signIn, nil},
		{"no equals sign", []string{"gatehouse-dev"}, "", signIn, nil},
		{"damaged", []string{"gatehouse-dev={damaged}"}, "", signIn, nil},
		{"damaged in its key id", []string{"gatehouse-dev={damaged key id}"}, "", signIn, nil},
		{"damaged in its nonce", []string{"gatehouse-dev={damaged nonce}"}, "", signIn, nil},
		{"damaged in its time", []string{"gatehouse-dev={damaged time}"}, "", signIn, nil},
		{"damaged in its tag", []string{"gatehouse-dev={damaged tag}"}, "", signIn, nil},
		{"a good one and the same with a damaged tag", []string{"gatehouse-dev={admin}; gatehouse-dev={damaged tag}"}, administrator, ok, nil},
		{"cut short", []string{"gatehouse-dev=AAAA"}, "", signIn, nil},
		{"50 kB", []string{"gatehouse-dev=" + strings.Repeat("A", 50<<10)}, "", signIn, nil},
		{"64 kB", []string{"gatehouse-dev=" + strings.Repeat("A", 64<<10)}, "", byEnvoy(http.StatusRequestHeaderFieldsTooLarge), signIn},
		{"200 cookies of the app's, and a good one", []string{strings.Repeat("a=b; ", 200) + "gatehouse-dev={user}"}, user, ok, nil},
		{"200 of ours, one of them good", []string{strings.Repeat("gatehouse-dev=x; ", 200) + "gatehouse-dev={user}"}, "", signIn, nil},
		{"200 Cookie headers", strings.Split(strings.Repeat("a=b ", 199)+"gatehouse-dev={user}", " "), user, byEnvoy(http.StatusRequestHeaderFieldsTooLarge), ok},
		{"two good ones of two users", []string{"gatehouse-dev={user}; gatehouse-dev={admin}"}, "", signIn, nil},
		{"the same, the other way round", []string{"gatehouse-dev={admin}; gatehouse-dev={user}"}, "", signIn, nil},
		{"two good ones in two headers", []string{"gatehouse-dev={user}", "gatehouse-dev={admin}"}, "", signIn, nil},
		{"two good ones and a comma", []string{"gatehouse-dev={user},gatehouse-dev={admin}"}, "", signIn, nil},
		{"a good one and garbage", []string{"gatehouse-dev={user}; gatehouse-dev=x"}, user, ok, nil},
		{"garbage and a good one", []string{"gatehouse-dev=x; gatehouse-dev={user}"}, user, ok, nil},
		{"garbage and a good one in two headers", []string{"gatehouse-dev=x", "gatehouse-dev={user}"}, user, ok, nil},
		{"a good one and a stranger's", []string{"gatehouse-dev={stranger}; gatehouse-dev={user}"}, user, ok, nil},
		{"another host's", []string{"gatehouse-dev={admin@portal}"}, "", signIn, nil},
		{"a good one and another host's of another user", []string{"gatehouse-dev={user}; gatehouse-dev={admin@portal}"}, user, ok, nil},
		{"sealed with an unknown key", []string{"gatehouse-dev={stranger}"}, "", signIn, nil},
		{"the issuer's own", []string{"gatehouse-dev={admin sso}"}, "", signIn, nil},
		{"the issuer's own, by its name", []string{"gatehouse-sso={admin sso}"}, "", signIn, nil},
		{"a name that begins like ours", []string{"gatehouse-devX={admin}"}, "", signIn, nil},
		{"a name that ends like ours", []string{"x-gatehouse-dev={admin}"}, "", signIn, nil},
		{"our name in other case", []string{"Gatehouse-Dev={admin}"}, "", signIn, nil},
		{"the name for https", []string{"__Host-gatehouse={admin}"}, "", signIn, nil},
		{"the name of the pre-cookie", []string{"gatehouse-dev-login={admin}"}, "", signIn, nil},
		{"quoted", []string{`gatehouse-dev="{admin}"`}, "", signIn, nil},
		{"in the value of another", []string{"a=gatehouse-dev={admin}"}, "", signIn, nil},
		{"in the path parameter of an old cookie", []string{`$Version=1; gatehouse-devx={admin}; $Path=/`}, "", signIn, nil},
	} {
		r := row{family: family, name: c.name, as: c.as, both: c.want, direct: c.direct}
		for _, v := range c.cookies {
			r.lines = append(r.lines, "Cookie: "+v)
		}
		all = append(all, r)
		if c.want.byEnvoy {
			continue
		}
		r.name, r.target, r.both = c.name+", where anyone may", "/public/headers", passes(http.StatusOK)
		all = append(all, r)
	}
	return append(all, passingRows()...)
}

// passingRows check what of a Cookie header the app gets.
func passingRows() (all []row) {
	const family = "cookies"
	for _, c := range []struct {
		name, cookie, want string
		as                 string
	}{
		{"apps' cookies pass unchanged", `a=1; b="x y"; c=; d==; e; _xsrf=2|a|b`, `a=1; b="x y"; c=; d==; e; _xsrf=2|a|b`, ""},
		{"ours are cut", "gatehouse-dev={user}", "", user},
		{"ours are cut from between", `a=1; gatehouse-dev={user}; b="x, y"; gatehouse-sso=1; gatehouse-dev-login=2; gatehouse-dev-issuer-login=3; c=3`, `a=1; b="x, y"; c=3`, user},
		{"ours are cut at the edges", "gatehouse-dev={user}; a=1; gatehouse-sso=1", "a=1", user},
		{"ours are cut behind a comma", "a=1,gatehouse-dev={user},b=2", "a=1; b=2", user},
		{"those for https are cut too", "__Host-gatehouse=1; a=1; __Host-gatehouse-login=2; __Host-gatehouse-issuer-login=3", "a=1", ""},
		{"ours without a value are cut", "gatehouse-dev; a=1; gatehouse-dev=", "a=1", ""},
		{"names that begin like ours pass", "gatehouse-devX=1; gatehouse-dev-loginX=2", "gatehouse-devX=1; gatehouse-dev-loginX=2", ""},
		{"blanks around our name", "a=1;  gatehouse-dev =x;b=2", "a=1; b=2", ""},
		{"nobody's garbage is cut", "gatehouse-dev=garbage; a=1", "a=1", ""},
	} {
		all = append(all, row{
			family: family, name: c.name, as: c.as, target: "/public/headers", lines: []string{"Cookie: " + c.cookie}, both: passes(http.StatusOK),
			check: func(t testing.TB, _ *world, p *page) {
				var h map[string]string
				if err := json.Unmarshal([]byte(p.body), &h); err != nil {
					t.Fatal(err)
				}
				if got, there := h["cookie"]; got != c.want || there != (c.want != "") {
					t.Errorf("the app sees cookies %q (%v), want %q", got, there, c.want)
				}
			},
		})
	}
	return all
}
