// Package store runs the tests of provider/store on a real Kubernetes API server, as an operator sets it up: with the resource and the rights of
// deploy/store-kubernetes, and the token of a service account.
package store

import (
	"os"
	"testing"

	"gatehouse/test/cluster/netns"
)

func TestMain(m *testing.M) { os.Exit(netns.Main(m)) }
