package provider

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"html"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/crewjam/saml"
	"github.com/crewjam/saml/logger"

	"gatehouse/internal/seal"
	"gatehouse/provider/store"
)

// A samlIDP is a SAML identity provider that signs its assertions, with one user.
type samlIDP struct {
	saml.IdentityProvider

	end *time.Time // of its session, as it says; nil: it does not
}

func (p *samlIDP) GetServiceProvider(_ *http.Request, id string) (*saml.EntityDescriptor, error) {
	if id != issuer {
		return nil, os.ErrNotExist
	}
	return &saml.EntityDescriptor{EntityID: issuer, SPSSODescriptors: []saml.SPSSODescriptor{{
		AssertionConsumerServices: []saml.IndexedEndpoint{{Binding: saml.HTTPPostBinding, Location: issuer + "/callback", Index: 1}},
	}}}, nil
}

func (p *samlIDP) GetSession(http.ResponseWriter, *http.Request, *saml.IdpAuthnRequest) *saml.Session {
	text := func(name, value string) saml.Attribute {
		return saml.Attribute{Name: name, NameFormat: "urn:oasis:names:tc:SAML:2.0:attrname-format:basic", Values: []saml.AttributeValue{{Type: "xs:string", Value: value}}}
	}
	return &saml.Session{
		ID: "s", Index: "i", NameID: "ida", CreateTime: time.Now(), ExpireTime: time.Now().Add(time.Hour),
		CustomAttributes: []saml.Attribute{text("email", "ida@example.org"), text("name", "Ida")},
	}
}

// MakeAssertion says when the session ends, which the library's own does not.
func (p *samlIDP) MakeAssertion(r *saml.IdpAuthnRequest, s *saml.Session) error {
	if err := (saml.DefaultAssertionMaker{}).MakeAssertion(r, s); err != nil {
		return err
	}
	r.Assertion.AuthnStatements[0].SessionNotOnOrAfter = p.end
	return nil
}

// newSAMLIDP returns an identity provider and the connector that trusts it.
func newSAMLIDP(t *testing.T) (*samlIDP, string) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	certificate := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "idp"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, certificate, certificate, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if certificate, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	at := func(path string) url.URL { return url.URL{Scheme: "https", Host: "idp.example.org", Path: path} }
	p := &samlIDP{}
	p.IdentityProvider = saml.IdentityProvider{
		Key: crypto.PrivateKey(key), Certificate: certificate, Logger: logger.DefaultLogger, MetadataURL: at("/metadata"), SSOURL: at("/sso"),
		ServiceProviderProvider: p, SessionProvider: p, AssertionMaker: p, SignatureMethod: "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256",
	}
	ca := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	return p, fmt.Sprintf(`
connectors:
- {type: saml, id: up, name: SAML, config: {ssoURL: "https://idp.example.org/sso", entityIssuer: %q, caData: %s, usernameAttr: name, emailAttr: email, redirectURI: "https://sso.example.com/dex/callback"}}
`, issuer, ca)
}

// answer is the provider's response to what Gatehouse's form posts to it.
func (p *samlIDP) answer(t *testing.T, b *browser) string {
	t.Helper()
	m := regexp.MustCompile(`name="SAMLRequest" value="([^"]*)"`).FindStringSubmatch(b.page)
	if m == nil {
		t.Fatalf("no form: %d %s", b.code, b.page)
	}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "https://idp.example.org/sso", strings.NewReader(url.Values{"SAMLRequest": {html.UnescapeString(m[1])}}.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	w := httptest.NewRecorder()
	p.ServeSSO(w, r)
	m = regexp.MustCompile(`name="SAMLResponse" value="([^"]*)"`).FindStringSubmatch(w.Body.String())
	if m == nil {
		t.Fatalf("the identity provider answers %d %s", w.Code, w.Body)
	}
	return html.UnescapeString(m[1])
}

// A session ends when that of the identity provider does, and nobody but the provider can make it longer.
func TestSAMLSessionEndsWithTheProviders(t *testing.T) {
	now := time.Now().UTC().Truncate(time.Second)
	soon, later := now.Add(2*time.Hour), now.Add(1000*time.Hour)
	statement := func(value string) string {
		return `<samlp:Extensions><x:AuthnStatement xmlns:x="urn:x" SessionNotOnOrAfter="` + value + `"/></samlp:Extensions><saml:Issuer`
	}
	for _, tt := range []struct {
		name string
		end  *time.Time
		add  string // in front of the response's issuer: only the assertion is signed then
		want time.Time
	}{
		{"it says nothing", nil, "", now.Add(168 * time.Hour)},
		{"it ends sooner than ours would", &soon, "", soon},
		{"it ends later", &later, "", now.Add(168 * time.Hour)},
		{"somebody adds a later end", &soon, statement(later.Format(time.RFC3339)), soon},
		{"somebody adds an earlier end", &later, statement(soon.Format(time.RFC3339)), soon},
		{"somebody adds one in another time zone", &later, statement(soon.In(time.FixedZone("", 3600)).Format(time.RFC3339)), soon},
		{"it has ended", new(now.Add(-time.Second)), "", time.Time{}},
		{"somebody adds nonsense", &soon, statement("never"), time.Time{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			clk := &clock{}
			p, connectors := newSAMLIDP(t)
			w := newWorld(t, strings.Replace(testConfig, "gateway:\n", connectors+"gateway:\n", 1), store.Memory(store.Options{Now: clk.now}), seal.NewKey(), clk)
			b := w.browser().get("https://app.example.com/page")
			b.get(b.link())
			relay := relayRE.FindStringSubmatch(b.page)
			p.end = tt.end
			response := p.answer(t, b)
			if tt.add != "" {
				raw, err := base64.StdEncoding.DecodeString(response)
				if err != nil {
					t.Fatal(err)
				}
				changed := strings.Replace(string(raw), "<saml:Issuer", tt.add, 1)
				response = base64.StdEncoding.EncodeToString([]byte(changed))
			}
			b.do(http.MethodPost, issuer+"/callback", url.Values{"RelayState": {relay[1]}, "SAMLResponse": {response}}, http.Header{"Origin": {"https://idp.example.org"}})
			all, err := w.provider.Sessions(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if tt.want.IsZero() {
				if b.code != http.StatusServiceUnavailable || len(all) != 0 {
					t.Errorf("got %d and %d sessions, want 503 and none: %s", b.code, len(all), b.page)
				}
				return
			}
			if b.page != "hello ida@example.org [] at /page" || len(all) != 1 {
				t.Fatalf("got %d %s", b.code, b.page)
			}
			if got := all[0].AbsoluteExpiry; got.Before(tt.want) || got.After(tt.want.Add(time.Since(now))) {
				t.Errorf("the session ends at %s, want %s", got, tt.want)
			}
			if all[0].IdleExpiry.After(all[0].AbsoluteExpiry) {
				t.Errorf("it is idle until %s, after its end", all[0].IdleExpiry)
			}
			if !tt.want.Equal(soon) {
				return
			}
			for i := range 9 { // however busy its user is
				_, err := w.provider.Touch(t.Context(), all[0].ID, clk.now())
				if over := !clk.now().Before(soon); (err != nil) != over {
					t.Errorf("after %d quarters of an hour: %v", i, err)
				}
				clk.add(15 * time.Minute)
			}
			if b.get("https://x.apps.example.com/page"); strings.HasPrefix(b.page, "hello") {
				t.Errorf("signed on after the end: %d %s", b.code, b.page)
			}
		})
	}
}
