// A module of its own, whose tests `go test ./...` of the product does not run: they need a control plane that takes minutes to build.
module gatehouse/test/cluster

go 1.26.0

require golang.org/x/sys v0.50.0

replace gatehouse => ../..
