package provider

import (
	"strings"
	"testing"
)

// TestVerifyTakesOneSpelling pins that a token has one spelling only, and that its header says no more than we obey. All but the altered
// signature bits are signed by the current key, so that nothing but the rule refuses them.
func TestVerifyTakesOneSpelling(t *testing.T) {
	m := newMint(t)
	const head = `"alg":"ES256","kid":"current"`
	claims := m.payload(&dice{}, "")
	claims = strings.TrimSuffix(claims, "}") + `,"y":"???>>>"}` // - and _ in the alphabet of URLs, + and / in the other one
	times := func(pairs string) string {
		return `{"iss":"` + issuer + `","aud":"gatehouse","sub":"subject",` + pairs + "}"
	}
	token := func(header, payload string) string {
		input := b64(header) + "." + b64(payload)
		return input + "." + b64(m.sign(&dice{}, input))
	}
	good := token("{"+head+"}", claims)
	part := strings.Split(good, ".")
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	next := string(alphabet[strings.IndexByte(alphabet, good[len(good)-1])+1]) // the last four bits of 64 bytes are unused
	other := strings.NewReplacer("-", "+", "_", "/").Replace(good)
	if other == good {
		t.Fatal("the two alphabets spell the token alike: the test compares nothing")
	}
	for _, tt := range []struct {
		rule, raw string
		ok        bool
	}{
		{"compact", good, true},
		{"more in the header", token(`{"typ":"JWT",`+head+`}`, claims), true},
		{"times", token("{"+head+"}", times(`"exp":1795608060,"iat":1795607000,"nbf":1795607000.5`)), true},

		{"flattened JSON serialisation", `{"payload":"` + part[1] + `","protected":"` + part[0] + `","signature":"` + part[2] + `"}`, false},
		{"general JSON serialisation", `{"payload":"` + part[1] + `","signatures":[{"protected":"` + part[0] + `","signature":"` + part[2] + `"}]}`, false},
		{"blank in front", " " + good, false},
		{"blank behind", good + " ", false},
		{"line feed behind", good + "\n", false},
		{"line break inside", part[0] + "\r\n." + part[1] + "." + part[2], false},
		{"line feed inside the signature", good[:len(good)-4] + "\n" + good[len(good)-4:], false},
		{"padding", good + "==", false},
		{"the other alphabet", other, false},
		{"unused bits at the end", good[:len(good)-1] + next, false},
		{"a dot behind", good + ".", false},
		{"text behind the header", token("{"+head+"}x", claims), false},
		{"text behind the header that is not signed", b64("{"+head+"}x") + "." + part[1] + "." + part[2], false},
		{"an object behind the header that is not signed", b64("{"+head+"}{}") + "." + part[1] + "." + part[2], false},
		{"text behind the claims", token("{"+head+"}", claims+"x"), false},

		{"another algorithm", token(`{"alg":"RS256","kid":"current"}`, claims), false},
		{"another algorithm of the key's type", token(`{"alg":"ES384","kid":"current"}`, claims), false},
		{"no algorithm", token(`{"kid":"current"}`, claims), false},
		{"none", token(`{"alg":"none","kid":"current"}`, claims), false},
		{"HS256", token(`{"alg":"HS256","kid":"current"}`, claims), false},
		{"algorithm in lower case", token(`{"alg":"es256","kid":"current"}`, claims), false},
		{"two algorithms", token(`{"alg":"ES256","kid":"current","alg":"RS256"}`, claims), false},
		{"the algorithm by another name", token(`{"Alg":"ES256","kid":"current"}`, claims), false},
		{"no key", token(`{"alg":"ES256"}`, claims), false},
		{"critical extension", token("{"+head+`,"crit":["exp"],"exp":1}`, claims), false},
		{"critical extension that signs the payload as it is", token("{"+head+`,"crit":["b64"],"b64":true}`, claims), false},
		{"no critical extension, and yet the word", token("{"+head+`,"crit":[]}`, claims), false},

		{"expiry in quotes", token("{"+head+"}", times(`"exp":"1795608060"`)), false},
		{"expiry null", token("{"+head+"}", times(`"exp":null`)), false},
		{"issued in quotes", token("{"+head+"}", times(`"exp":1795608060,"iat":"1795607000"`)), false},
		{"not before in quotes", token("{"+head+"}", times(`"exp":1795608060,"nbf":"1795607000"`)), false},
		{"not before null", token("{"+head+"}", times(`"exp":1795608060,"nbf":null`)), false},
	} {
		tok, err := m.set.Verify(t.Context(), tt.raw, "gatehouse")
		if (err == nil) != tt.ok || (tok.Subject == "subject") != tt.ok {
			t.Errorf("%s: got %+v, %v, want accepted %v", tt.rule, tok, err, tt.ok)
		}
	}
}
