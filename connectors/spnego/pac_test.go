package spnego

import (
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/jcmturner/gokrb5/v8/iana/adtype"
	"github.com/jcmturner/gokrb5/v8/test/testdata"
	"github.com/jcmturner/gokrb5/v8/types"
)

// somePAC is one that Active Directory has written.
func somePAC(t testing.TB) []byte {
	t.Helper()
	b, err := hex.DecodeString(testdata.MarshaledPAC_AD_WIN2K_PAC)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAccountInAPAC(t *testing.T) {
	t.Parallel()
	b := somePAC(t)
	want, err := accountIn(b)
	if err != nil || !strings.HasPrefix(want, "S-1-5-21-") || strings.Count(want, "-") != 7 {
		t.Fatalf("got %q, %v, want a SID of a domain", want, err)
	}
	for n := range b { // cut short
		func() {
			defer func() { _ = recover() }() // Accept does that
			if got, err := accountIn(b[:n]); err == nil && got != want {
				t.Errorf("the first %d bytes: got %q, want %q or an error", n, got, want)
			}
		}()
	}
	for name, change := range map[string]func(b []byte){
		"of many buffers":          func(b []byte) { b[0] = 200 },
		"of very many buffers":     func(b []byte) { b[3] = 0x7f },
		"without logon info":       func(b []byte) { b[8] = 99 },
		"that begins behind":       func(b []byte) { binary.LittleEndian.PutUint64(b[16:], 1<<63+5) },
		"that is longer than it":   func(b []byte) { binary.LittleEndian.PutUint32(b[12:], 1<<31) },
		"whose logon info is none": func(b []byte) { clear(b[binary.LittleEndian.Uint64(b[16:]):]) },
	} {
		broken := append([]byte{}, b...)
		if broken[8] != logonInfo {
			t.Fatalf("the first buffer is of type %d", broken[8])
		}
		change(broken)
		if got, err := accountIn(broken); err == nil {
			t.Errorf("a PAC %s: got %q, want an error", name, got)
		}
	}
}

func TestAccountOfATicket(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		data types.AuthorizationData
		fail bool
	}{
		"without data":       {nil, false},
		"with other data":    {types.AuthorizationData{{ADType: 99, ADData: []byte("x")}}, false},
		"with broken data":   {types.AuthorizationData{{ADType: adtype.ADIfRelevant, ADData: []byte("x")}}, true},
		"with an empty list": {types.AuthorizationData{{ADType: adtype.ADIfRelevant, ADData: []byte{0x30, 0}}}, false},
	} {
		if got, err := accountOf(tt.data); got != "" || (err != nil) != tt.fail {
			t.Errorf("a ticket %s: got %q, %v", name, got, err)
		}
	}
}
