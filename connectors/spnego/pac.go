package spnego

import (
	"errors"
	"fmt"
	"slices"

	"github.com/jcmturner/gokrb5/v8/iana/adtype"
	"github.com/jcmturner/gokrb5/v8/pac"
	"github.com/jcmturner/gokrb5/v8/types"
)

const (
	maxBuffers = 64 // of a PAC
	logonInfo  = 1  // MS-PAC section 2.4
)

var errPAC = errors.New("what the ticket says of its user's account cannot be read")

// accountOf returns the security identifier of the account that an opened ticket was issued to, "" if the KDC does not tell: Active Directory does, in the
// ticket's privilege attribute certificate (MS-PAC section 2.5). It is sealed with the ticket, so that nobody but the KDC can have written it.
func accountOf(data types.AuthorizationData) (string, error) {
	for _, outer := range data {
		var inner types.AuthorizationData
		if outer.ADType != adtype.ADIfRelevant {
			continue
		}
		if inner.Unmarshal(outer.ADData) != nil {
			return "", errPAC
		}
		for _, d := range inner {
			if d.ADType == adtype.ADWin2KPAC {
				return accountIn(d.ADData)
			}
		}
	}
	return "", nil
}

// accountIn returns the account that a PAC is of.
func accountIn(b []byte) (string, error) {
	var p pac.PACType
	if len(b) < 8 || b[0] > maxBuffers || b[1]|b[2]|b[3] != 0 || p.Unmarshal(b) != nil {
		return "", errPAC
	}
	at := slices.IndexFunc(p.Buffers, func(i pac.InfoBuffer) bool { return i.ULType == logonInfo })
	if at < 0 {
		return "", errPAC
	}
	size, total := uint64(p.Buffers[at].CBBufferSize), uint64(len(b))
	from := p.Buffers[at].Offset
	if from > total || size > total-from {
		return "", errPAC
	}
	var info pac.KerbValidationInfo
	if info.Unmarshal(b[from:from+size]) != nil || info.UserID == 0 || len(info.LogonDomainID.SubAuthority) == 0 {
		return "", errPAC
	}
	return fmt.Sprintf("%s-%d", info.LogonDomainID.String(), info.UserID), nil
}
