package store

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"
)

// A Kind names a set of records. IDs are unique within a kind.
type Kind string

// The kinds of records. Changes of those marked "logged" are in the change log.
const (
	KindAuthRequest   Kind = "auth_request"
	KindAuthCode      Kind = "auth_code"
	KindRefreshToken  Kind = "refresh_token"
	KindOffline       Kind = "offline_sessions"
	KindDeviceRequest Kind = "device_request"
	KindDeviceToken   Kind = "device_token"
	KindSession       Kind = "auth_session"  // logged
	KindIdentity      Kind = "user_identity" // logged
	KindPassword      Kind = "password"      // logged
	KindClient        Kind = "client"        // logged
	KindConnector     Kind = "connector"     // logged
	KindKeys          Kind = "keys"          // logged
	KindSpentCode     Kind = "spent_code"
	KindReplay        Kind = "replay"
	KindVouched       Kind = "vouched"
	KindMark          Kind = "mark"
	KindOutbox        Kind = "outbox"
	KindUpstream      Kind = "upstream_session"
	KindSeen          Kind = "seen"
	KindGrants        Kind = "upstream_grants"
)

var (
	// ErrConflict means that a record is no longer of the version that was to be replaced.
	ErrConflict = errors.New("store: record was changed meanwhile")
	// ErrTrimmed means that changes after the given place in the log are gone: whoever reads the log must
	// forget all that it knows and go on from Log.Head.
	ErrTrimmed = errors.New("store: change log no longer reaches back that far")
)

// A Record is one stored value. Data is never modified by whoever gets it.
type Record struct {
	Kind    Kind
	ID      string
	Owner   string    // a second, not unique key; empty: none
	Version int64     // set by the driver; never used twice for an ID, even after deletion; never 0
	Expires time.Time // when Sweep may delete it, between the years 1970 and 2262; zero: never
	Data    []byte
}

// A Verb is what an Op does.
type Verb int

const (
	Create Verb = iota + 1 // store.ErrAlreadyExists of Dex if there is such a record
	Put                    // replace the record of Record.Version; ErrConflict if it has another version, Dex's ErrNotFound if it is gone
	Delete                 // delete it whatever its version; Dex's ErrNotFound if it is gone
)

// An Op is a change of one record, with what the change log is to say about it.
type Op struct {
	Verb    Verb
	Record  Record   // Delete reads only Kind and ID, Create ignores Version
	Changes []Change // of a kind whose deletions are logged each Delete has some
}

// A Change says that a record is no longer what it was. It carries no content: readers forget what they know
// and read again. The zero Kind means that anything may have changed.
type Change struct {
	Seq         int64 // place in the change log; the changes of one Write share it; 0 where the outcome of a write is not known
	Kind        Kind
	ID          string
	UserID      string // set for sessions, identities and passwords
	ConnectorID string // goes with UserID
	Deleted     bool
	At          time.Time // clock of the writer
	Origin      string    // names the write; see Store.Follow
}

// A Query selects records of one kind, narrowed by owner if that is not empty.
type Query struct {
	Kind  Kind
	Owner string
}

// A Backend keeps versioned records. It is safe for concurrent use, honours contexts, and its reads see
// every write that returned before they began.
type Backend interface {
	// Read returns a record, expired or not, or Dex's storage.ErrNotFound itself, unwrapped.
	Read(ctx context.Context, kind Kind, id string) (Record, error)
	// Scan yields the selected records in no particular order: each that exists throughout the scan once.
	// It holds no lock and no connection while the caller looks at a record, and ends after an error.
	Scan(ctx context.Context, q Query) iter.Seq2[Record, error]
	// Write makes all of the changes durable, or none, the change log's entries included, and returns their
	// Seq (0 if there are none). storage.ErrNotFound, storage.ErrAlreadyExists and ErrConflict mean that
	// nothing was written; after any other error the outcome is unknown. See Sequential for the exception.
	Write(ctx context.Context, ops []Op) (seq int64, err error)
}

// A Sequential is a Driver that cannot do all or nothing with several ops, since its database has no transactions over several records (Kubernetes). Its Write
// makes the ops one after the other, each with its own changes in one step, and stops at the first that fails. That one's outcome errors are returned only if it
// was the first op; after any other error those before it stay. The changes of each op have a Seq of their own, in the order of ops; the last of them is returned.
//
// Whoever writes several ops therefore puts first what decides, and orders them so that to stop after any of them is safe.
type Sequential interface{ Sequential() }

// A Log is the change log. Seq is the order of commits: once a change is visible, none with a smaller Seq may
// appear any more. (Where commits may overtake each other the driver must not show a change before all
// smaller ones are decided, or keep them from overtaking: see postgresDriver. etcd's revisions are such an order by nature.)
type Log interface {
	// Head returns a place in the log: no change so far has a larger Seq, and each that is yet to come has one.
	Head(ctx context.Context) (int64, error)
	// Changes returns the changes of up to limit writes after the given Seq (of a change, or of Head), in order, those of one write
	// always together; none means that there were no more when it was called. ErrTrimmed if some of them were trimmed, or forgotten by the database.
	Changes(ctx context.Context, after int64, limit int) ([]Change, error)
}

// A Waker is a Driver that hears of other processes' writes without asking. Being woken only makes Store.Follow read the change log
// at once: a wake-up that is lost delays changes by Options.FeedInterval, and one too many costs a read.
type Waker interface {
	// Wake calls woken whenever the change log may have grown, until ctx is done, and then returns. It connects again by itself, with
	// pauses, and calls woken after each time that it could not hear. woken returns at once.
	Wake(ctx context.Context, woken func())
}

// A Sweeper deletes what is out of date, at most limit per call, and returns how many.
type Sweeper interface {
	// Sweep deletes records whose expiry is before the given time, by an index, checking and deleting in one
	// step: a record whose expiry is moved meanwhile stays. It leaves no trace in the change log.
	Sweep(ctx context.Context, kind Kind, before time.Time, limit int) (int, error)
	// Trim deletes entries of the change log that were written before the given time, the oldest first. Where the database forgets them by
	// itself (Kubernetes), it deletes what is kept of deleted records for the log's sake.
	Trim(ctx context.Context, before time.Time, limit int) (int, error)
}

// A Driver is a database for a Store.
type Driver interface {
	Backend
	Log
	Sweeper
	io.Closer
}
