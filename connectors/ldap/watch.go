package ldap

import (
	"context"

	"gatehouse/connectors"
)

// Watch calls f for each change that the directory tells of, until ctx ends or the directory stops telling. It returns ErrNoWatch where
// the directory cannot, or the configuration does not want it. f must not block.
func (c *Connector) Watch(ctx context.Context, f func(connectors.Change)) error { return ErrNoWatch }
