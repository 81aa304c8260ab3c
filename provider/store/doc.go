// Package store keeps what the provider must remember: who is signed in, clients, users, keys and the
// short-lived records of a sign-in. It implements Dex's storage.Storage once, over a small [Driver];
// a database only has to keep versioned records.
//
// # Updates
//
// An update reads a record, runs the caller's function with no lock and no transaction held, and writes the
// result only if the record's version is still the one that was read; else it starts again. An updater may
// therefore take its time (ask a directory), read the store and update other records. It may run more than
// once, as the contract of storage.Storage says.
//
// # Changes
//
// Each create, update and delete of a session, user identity, password, client, connector or key set is
// recorded in the change log by the transaction that makes it. Subscribers hear of a change of this process
// before the call that made it returns, and of other processes' changes from [Store.Follow], which reads the
// log. Garbage collection records nothing: an expired session is dead by its own times.
package store
