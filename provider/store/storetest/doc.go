// Package storetest has the tests of the contract of store.Driver, and of a store over one, for every database that there is a driver for.
package storetest
