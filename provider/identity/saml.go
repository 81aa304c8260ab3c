package identity

import (
	"bytes"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"time"
)

// sessionEnd returns when the identity provider's own session ends, the zero time if it does not say: the earliest SessionNotOnOrAfter of any
// AuthnStatement (SAML 2.0 Core section 2.7.2). It is for a response that was accepted.
//
// Which part of the response was signed does not matter here. What was signed is in it, in these very bytes, and so is its statement: whatever else
// somebody has put around it can make the session shorter only.
func sessionEnd(response string) (end time.Time, err error) {
	raw, err := base64.StdEncoding.DecodeString(response)
	if err != nil {
		return end, fmt.Errorf("identity: decode SAML response: %w", err)
	}
	for d := xml.NewDecoder(bytes.NewReader(raw)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return end, nil
		}
		if err != nil {
			return time.Time{}, fmt.Errorf("identity: read SAML response: %w", err)
		}
		e, ok := token.(xml.StartElement)
		if !ok || e.Name.Local != "AuthnStatement" {
			continue
		}
		for _, a := range e.Attr {
			if a.Name.Local != "SessionNotOnOrAfter" {
				continue
			}
			at, err := time.Parse(time.RFC3339, a.Value)
			if err != nil {
				return time.Time{}, fmt.Errorf("identity: SessionNotOnOrAfter %.40q of a SAML response: want a time such as 2006-01-02T15:04:05Z", a.Value)
			}
			if end.IsZero() || at.Before(end) {
				end = at
			}
		}
	}
}
