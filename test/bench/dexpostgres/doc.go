// Package dexpostgres measures the store in PostgreSQL against plain Dex's of the same version on the same server:
//
//	cd test/bench/dexpostgres && go test -bench . -benchtime 3s
package dexpostgres
