//go:build tools

// Package tools pins the Envoy Gateway of a test cluster; install.sh builds it. A module of its own: none of this is a
// dependency of the product.
package tools

import (
	_ "github.com/envoyproxy/gateway/cmd/envoy-gateway"
)
