package spnego

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
)

// maxToken is what is read of a token, in bytes. A ticket of a user in a thousand groups has some 20 kB; Windows allows 48 kB.
const maxToken = 64 << 10

// ntlm is how NTLM messages begin (MS-NLMP section 2.2.1).
var ntlm = []byte("NTLMSSP\x00")

// Mechanisms and token ids (RFC 4178 section 3, RFC 4121 section 4.1, MS-SPNG section 1.9). Never assigned to.
var (
	oidSPNEGO  = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 2}
	oidKRB5    = asn1.ObjectIdentifier{1, 2, 840, 113554, 1, 2, 2}
	oidMSKRB5  = asn1.ObjectIdentifier{1, 2, 840, 48018, 1, 2, 2} // a mistake of Windows 2000 that Windows has kept
	oidNTLM    = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 2, 10}
	tokenAPReq = []byte{1, 0}
	tokenAPRep = []byte{2, 0}
)

// negTokenInit is RFC 4178 section 4.2.1. What is not used is left unread, so that it can be anything.
type negTokenInit struct {
	MechTypes   []asn1.ObjectIdentifier `asn1:"explicit,tag:0"`
	ReqFlags    asn1.BitString          `asn1:"explicit,optional,tag:1"`
	MechToken   []byte                  `asn1:"explicit,optional,tag:2"`
	MechListMIC asn1.RawValue           `asn1:"optional,tag:3"`
}

// negTokenResp is RFC 4178 section 4.2.2.
type negTokenResp struct {
	NegState      asn1.Enumerated       `asn1:"explicit,tag:0"`
	SupportedMech asn1.ObjectIdentifier `asn1:"explicit,optional,tag:1"`
	ResponseToken []byte                `asn1:"explicit,optional,omitempty,tag:2"`
}

// An apReq is a Kerberos request as it came: not yet opened.
type apReq struct {
	messages.APReq

	mech asn1.ObjectIdentifier // as the client calls Kerberos; nil: it sent Kerberos without SPNEGO
}

// parse reads a token as far as it is readable without a key.
func parse(token []byte) (*apReq, error) {
	switch {
	case len(token) > maxToken:
		return nil, &Refusal{TooLong, fmt.Errorf("got %d bytes, want at most %d", len(token), maxToken)}
	case bytes.HasPrefix(token, ntlm):
		return nil, &Refusal{NTLM, errNTLM}
	}
	mech, inner, err := unwrap(token)
	if err != nil {
		return nil, &Refusal{Malformed, err}
	}
	req := &apReq{}
	if mech.Equal(oidSPNEGO) {
		req.mech, inner, err = negotiated(inner)
		if err != nil {
			return nil, err
		}
		if bytes.HasPrefix(inner, ntlm) {
			return nil, &Refusal{NTLM, errNTLM}
		}
		if mech, inner, err = unwrap(inner); err != nil {
			return nil, &Refusal{Malformed, err}
		}
	}
	if !mech.Equal(oidKRB5) && !mech.Equal(oidMSKRB5) || !bytes.HasPrefix(inner, tokenAPReq) {
		return nil, &Refusal{Malformed, errors.New("the token is no Kerberos request")}
	}
	if err := req.Unmarshal(inner[len(tokenAPReq):]); err != nil {
		return nil, &Refusal{Malformed, errors.New("the Kerberos request cannot be read")} // the library quotes what it got
	}
	if req.PVNO != 5 || req.Ticket.TktVNO != 5 || len(req.Ticket.SName.NameString) == 0 {
		return nil, &Refusal{Malformed, errors.New("the ticket is of another protocol, or for nobody")}
	}
	if isSet(req.APOptions.Bytes, flags.APOptionUseSessionKey) {
		return nil, &Refusal{Malformed, errors.New("user-to-user authentication is not offered")}
	}
	return req, nil
}

// unwrap takes the mechanism off a token (RFC 2743 section 3.1).
func unwrap(token []byte) (mech asn1.ObjectIdentifier, inner []byte, err error) {
	var outer asn1.RawValue
	rest, err := asn1.Unmarshal(token, &outer)
	if err != nil || len(rest) > 0 || outer.Class != asn1.ClassApplication || outer.Tag != 0 || !outer.IsCompound {
		return nil, nil, errors.New("not a GSS-API token")
	}
	if inner, err = asn1.Unmarshal(outer.Bytes, &mech); err != nil {
		return nil, nil, errors.New("a GSS-API token without a mechanism")
	}
	return mech, inner, nil
}

// negotiated returns the mechanism that the client begins with, and its token. Another one would need more rounds.
func negotiated(b []byte) (mech asn1.ObjectIdentifier, token []byte, err error) {
	var choice asn1.RawValue
	var n negTokenInit
	if _, err := asn1.Unmarshal(b, &choice); err != nil || choice.Class != asn1.ClassContextSpecific || choice.Tag != 0 {
		return nil, nil, &Refusal{Malformed, errors.New("not the beginning of a negotiation")}
	}
	if _, err := asn1.Unmarshal(choice.Bytes, &n); err != nil || len(n.MechTypes) == 0 {
		return nil, nil, &Refusal{Malformed, errors.New("a negotiation without mechanisms")}
	}
	switch mech = n.MechTypes[0]; {
	case mech.Equal(oidKRB5), mech.Equal(oidMSKRB5):
		return mech, n.MechToken, nil
	case slices.ContainsFunc(n.MechTypes, oidNTLM.Equal):
		return nil, nil, &Refusal{NTLM, errNTLM}
	}
	return nil, nil, &Refusal{Malformed, errors.New("the client does not begin with Kerberos")}
}

// reply is the answer that ends the negotiation. With a mutual request it proves to the client who we are (RFC 4120 section 3.2.4).
func (r *apReq) reply() ([]byte, error) {
	var rep []byte
	if isSet(r.APOptions.Bytes, flags.APOptionMutualRequired) {
		var err error
		if rep, err = r.apRep(); err != nil {
			return nil, err
		}
	}
	if r.mech == nil {
		return rep, nil
	}
	b, err := asn1.Marshal(negTokenResp{SupportedMech: r.mech, ResponseToken: rep}) // 0: accept-completed
	if err != nil {
		return nil, fmt.Errorf("spnego: %w", err)
	}
	return tagged(asn1.ClassContextSpecific, 1, b)
}

// Application tags of Kerberos messages (RFC 4120 section 5.10).
const (
	tagAPRep        = 15
	tagEncAPRepPart = 27
)

func (r *apReq) apRep() ([]byte, error) {
	plain, err := asn1.Marshal(struct {
		CTime time.Time `asn1:"generalized,explicit,tag:0"`
		Cusec int       `asn1:"explicit,tag:1"`
	}{r.Authenticator.CTime.UTC(), r.Authenticator.Cusec})
	if err == nil {
		plain, err = tagged(asn1.ClassApplication, tagEncAPRepPart, plain)
	}
	var sealed types.EncryptedData
	if err == nil {
		sealed, err = crypto.GetEncryptedData(plain, r.Ticket.DecryptedEncPart.Key, keyusage.AP_REP_ENCPART, 0)
	}
	var rep []byte
	if err == nil {
		rep, err = asn1.Marshal(struct {
			PVNO    int                 `asn1:"explicit,tag:0"`
			MsgType int                 `asn1:"explicit,tag:1"`
			EncPart types.EncryptedData `asn1:"explicit,tag:2"`
		}{5, tagAPRep, sealed})
	}
	if err == nil {
		rep, err = tagged(asn1.ClassApplication, tagAPRep, rep)
	}
	var mech []byte
	if err == nil {
		mech, err = asn1.Marshal(oidKRB5)
	}
	if err != nil {
		return nil, fmt.Errorf("spnego: %w", err)
	}
	return tagged(asn1.ClassApplication, 0, slices.Concat(mech, tokenAPRep, rep))
}

func tagged(class, tag int, b []byte) ([]byte, error) {
	return asn1.Marshal(asn1.RawValue{Class: class, Tag: tag, IsCompound: true, Bytes: b})
}

// isSet reports whether bit n of Kerberos flags is set (RFC 4120 section 5.2.8).
func isSet(b []byte, n int) bool { return n/8 < len(b) && b[n/8]&(0x80>>(n%8)) != 0 }
