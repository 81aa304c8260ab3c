package spnego

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jcmturner/gokrb5/v8/iana/etypeID"

	"gatehouse/test/spnegotest"
)

func TestConfigOfDexIsTaken(t *testing.T) {
	k := spnegotest.New(t)
	text := `{"enabled": true, "keytabPath": "` + k.Keytab() + `", "spn": "HTTP/auth.example.test", "keytabPrincipal": "HTTP/auth.example.test",
		"maxClockSkew": 300, "expectedRealm": "AD.EXAMPLE.TEST", "usernameFromPrincipal": "userPrincipalName", "fallbackToPassword": true}`
	var c Config
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		t.Fatal(err)
	}
	if all := c.Check(); len(all) > 0 {
		t.Errorf("mistakes: %v", all)
	}
}

func TestConfigMistakes(t *testing.T) {
	k := spnegotest.New(t)
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	whole, err := os.ReadFile(k.Keytab())
	if err != nil {
		t.Fatal(err)
	}
	old := spnegotest.New(t)
	old.Rekey(1, "a passphrase", etypeID.RC4_HMAC)
	for name, tt := range map[string]struct {
		config   Config
		key, fix string
	}{
		"no keytab":                  {Config{}, "keytabPath", "ktpass"},
		"a keytab that is not there": {Config{KeytabPath: filepath.Join(dir, "nowhere")}, "keytabPath", "must exist and be readable"},
		"a folder":                   {Config{KeytabPath: dir}, "keytabPath", "not a regular file"},
		"an empty file":              {Config{KeytabPath: write("empty", nil)}, "keytabPath", "export it again"},
		"a text file":                {Config{KeytabPath: write("text", []byte("HTTP/auth.example.test\n"))}, "keytabPath", "export it again"},
		"half a keytab":              {Config{KeytabPath: write("half", whole[:len(whole)-9])}, "keytabPath", "export it again"},
		"a key that is too short":    {Config{KeytabPath: write("short", bytes.ReplaceAll(whole, []byte{0, 18, 0, 32}, []byte{0, 18, 0, 31}))}, "keytabPath", "export it again"},
		"two megabytes":              {Config{KeytabPath: write("big", append(whole, make([]byte, 2<<20)...))}, "keytabPath", "more than 1048576 bytes"},
		"keys of another service":    {Config{KeytabPath: k.Keytab(), SPN: "HTTP/other.example.test"}, "keytabPath", "but for HTTP/auth.example.test@AD.EXAMPLE.TEST"},
		"keys of another realm":      {Config{KeytabPath: k.Keytab(), SPN: "HTTP/auth.example.test@OTHER.TEST"}, "keytabPath", "but for HTTP/auth.example.test@AD.EXAMPLE.TEST"},
		"keys of another principal":  {Config{KeytabPath: k.Keytab(), KeytabPrincipal: "svc-http"}, "keytabPath", "no key for svc-http"},
		"RC4 keys":                   {Config{KeytabPath: old.Keytab()}, "keytabPath", "msDS-SupportedEncryptionTypes"},
		"a host as SPN":              {Config{KeytabPath: k.Keytab(), SPN: "auth.example.test"}, "spn", "such as HTTP/auth.example.com"},
		"a URL as SPN":               {Config{KeytabPath: k.Keytab(), SPN: "https://auth.example.test"}, "spn", "such as HTTP/auth.example.com"},
		"a principal with a space":   {Config{KeytabPath: k.Keytab(), KeytabPrincipal: "svc http"}, "keytabPrincipal", "klist -k"},
		"a skew of a day":            {Config{KeytabPath: k.Keytab(), MaxClockSkew: 86400}, "maxClockSkew", "NTP"},
		"a negative skew":            {Config{KeytabPath: k.Keytab(), MaxClockSkew: -1}, "maxClockSkew", "NTP"},
		"a skew beyond all":          {Config{KeytabPath: k.Keytab(), MaxClockSkew: 1 << 62}, "maxClockSkew", "NTP"},
		"a user as realm":            {Config{KeytabPath: k.Keytab(), ExpectedRealm: "alice@AD.EXAMPLE.TEST"}, "expectedRealm", "AD.EXAMPLE.COM"},
		"another mapping":            {Config{KeytabPath: k.Keytab(), UsernameFromPrincipal: "mail"}, "usernameFromPrincipal", "userPrincipalName"},
	} {
		t.Run(name, func(t *testing.T) {
			if all := tt.config.Check(); len(all) > 0 && tt.key == "keytabPath" {
				t.Errorf("not enabled, and yet: %v", all)
			}
			tt.config.Enabled = true
			all := tt.config.Check()
			if len(all) != 1 || all[0].Field() != tt.key || !strings.Contains(all[0].Error(), tt.fix) {
				t.Errorf("got %v, want one about %s with %q", all, tt.key, tt.fix)
			}
			if _, err := New(tt.config, nil, nil); err == nil {
				t.Error("New takes it")
			}
		})
	}
}

func TestAllMistakesAtOnce(t *testing.T) {
	c := Config{Enabled: true, SPN: "x", MaxClockSkew: -1, UsernameFromPrincipal: "y", ExpectedRealm: "a/b"}
	if all := c.Check(); len(all) != 5 {
		t.Errorf("got %d mistakes, want 5: %v", len(all), all)
	}
}

// The library quotes the bytes of a keytab that it cannot read.
func TestMistakeShowsNoKey(t *testing.T) {
	const secret = "SECRET-KEY-BYTES-SECRET-KEY-BYTES"
	p := filepath.Join(t.TempDir(), "k")
	for _, b := range [][]byte{
		append([]byte{5, 2, 0, 0, 1, 0}, secret...),
		append([]byte{5, 2, 0, 0, 0, 30}, secret...),
		append([]byte{5, 1}, secret...),
	} {
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		c := Config{Enabled: true, KeytabPath: p}
		all := c.Check()
		if len(all) != 1 || strings.Contains(all[0].Error(), "SECRET") {
			t.Errorf("%x: %v", b[:6], all)
		}
	}
}

func FuzzKeytab(f *testing.F) {
	k := spnegotest.New(f)
	b, err := os.ReadFile(k.Keytab())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{5, 2, 0x80, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{5, 1, 1, 0, 0, 0, 0})
	f.Fuzz(func(_ *testing.T, b []byte) { // it returns at all
		_, _ = parseKeytab(b)
	})
}
