package main

import (
	"context"
	"crypto/rand"
	"debug/buildinfo"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
)

const (
	otherPackage = "github.com/oauth2-proxy/oauth2-proxy/v7"
	otherSignIns = 8 // it remembers no session: one costs as much as another
)

// startOAuth2Proxy starts oauth2-proxy as its documentation sets it up for an ext_authz filter, with its default session store
// (an encrypted cookie with all tokens), metrics and request log on, and signs in at a Gatehouse that is the provider for
// as long as that takes.
func startOAuth2Proxy(ctx context.Context, folder, binary, gatehouse string) (_ *server, err error) {
	a, err := freeAddresses(ctx, 2)
	if err != nil {
		return nil, err
	}
	origin := "http://" + a[0]
	issuer, err := newProduct(ctx, folder, 0)
	if err != nil {
		return nil, err
	}
	issuer.Issuer, issuer.Callback, issuer.Secret = "http://"+issuer.Web+"/dex", origin+"/oauth2/callback", rand.Text()
	provider, err := issuer.start(ctx, gatehouse, "")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, provider.stop()) }()
	if folder, err = os.MkdirTemp(folder, "oauth2-proxy-"); err != nil {
		return nil, err
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	answers := func(ctx context.Context) error {
		return fetch(ctx, &http.Client{Transport: transport}, origin+"/ping")
	}
	process, err := startProgram(ctx, folder, []string{"OAUTH2_PROXY_CLIENT_SECRET=" + issuer.Secret, "OAUTH2_PROXY_COOKIE_SECRET=" + rand.Text() + rand.Text()[:6]},
		answers, binary, "--http-address", a[0], "--metrics-address", a[1], "--provider", "oidc", "--oidc-issuer-url", issuer.Issuer,
		"--client-id", "oauth2-proxy", "--redirect-url", issuer.Callback, "--scope", "openid email profile groups",
		"--code-challenge-method", "S256", "--approval-prompt", "auto", "--email-domain", "*", "--upstream", "static://200", "--reverse-proxy", "--trusted-proxy-ip", "127.0.0.1/32",
		"--set-xauthrequest", "--skip-provider-button", "--cookie-secure=false", "--session-cookie-minimal=false")
	if err != nil {
		return nil, err
	}
	s := &server{name: "oauth2-proxy", process: process, address: a[0], plain: true}
	s.cookies, err = inParallel(1, otherSignIns, func(i int) (string, error) {
		cookies, err := signIn(ctx, transport, origin+"/", fmt.Sprintf("user%d@example.com", i), password)
		var parts []string
		for _, c := range cookies {
			if c.Name == "_oauth2_proxy" || strings.HasPrefix(c.Name, "_oauth2_proxy_") && !strings.Contains(c.Name, "csrf") {
				parts = append(parts, c.Name+"="+c.Value) // in parts if it is large
			}
		}
		return strings.Join(parts, "; "), err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("sign in at oauth2-proxy: %w; the end of its log:\n%s", err, process.Tail(2000)), s.stop())
	}
	return s, nil
}

// otherVersion returns the version of the built oauth2-proxy.
func otherVersion(binary string) (string, error) {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return "", err
	}
	for _, d := range info.Deps {
		if d.Path == otherPackage {
			return d.Version, nil
		}
	}
	return info.Main.Version, nil
}
