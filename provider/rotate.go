package provider

import (
	"context"
	"errors"
	"time"
)

// A Rotation says what became of the signing keys.
type Rotation struct {
	KeyID     string    // of the new key
	SignsFrom time.Time // when it begins to sign
	Withdrawn []string  // ids of the keys that verify nothing any more
}

// RotateKeys makes a new signing key. It is published first, and signs once every replica must know it; what earlier keys signed stays
// good until it expires. With now it signs at once, and the earlier keys are withdrawn: whatever they signed is refused from
// now on, on every replica. Sessions go on either way: they do not rest on tokens.
func (p *Provider) RotateKeys(context.Context, bool) (Rotation, error) {
	return Rotation{}, errors.New("provider: rotation of keys is not there yet")
}
