// Package signin measures sign-ins against plain Dex of the same version, each with its own storage on the same database:
//
//	cd test/bench/signin && go test -bench . -benchtime 3s
package signin
