package identity

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"gatehouse/connectors"
	"gatehouse/connectors/ldap"

	"github.com/dexidp/dex/connector"
	dexconnectors "github.com/dexidp/dex/server/connectors"
	"github.com/dexidp/dex/storage"
)

// An Account is whom a typed name belongs to, as a directory has found it. Nothing is proven yet, and it may be nobody's.
type Account interface {
	// Key is what attempts are counted by: the same for every spelling of the name.
	Key() string
}

// A finder is a connector that finds the account of a name before it looks at the password, so that attempts are counted by account.
type finder interface {
	Find(ctx context.Context, name string) (Account, error)
	Authenticate(ctx context.Context, a Account, password string) (connectors.Identity, error)
	MaxFailures() int // that the directory's own lock-out leaves room for; 0: it is not known
}

// A failureCounter is a finder that knows how long its directory counts a failure; 0: it does not.
type failureCounter interface{ FailureWindow() time.Duration }

// A changer is a finder at which users can replace their passwords.
type changer interface {
	ChangePassword(ctx context.Context, a Account, old, changed string) error
	// UserID is that of the account's user, "" where it has none.
	UserID(a Account) string
}

// A lookuper is a connector that says who users are now. The answers are in the order of the ids.
type lookuper interface {
	Lookup(ctx context.Context, userIDs []string) ([]connectors.Answer, error)
}

// An ldapDirectory is our own LDAP connector as doors and Dex know one. It has no Login: nothing goes around the counting.
type ldapDirectory struct{ *ldap.Connector }

var errForeignAccount = errors.New("the account is of another directory")

// Find implements finder.
func (d ldapDirectory) Find(ctx context.Context, name string) (Account, error) {
	a, err := d.Connector.Find(ctx, name)
	if err != nil {
		return nil, err
	}
	return a, nil
}

// Authenticate implements finder.
func (d ldapDirectory) Authenticate(ctx context.Context, a Account, password string) (connectors.Identity, error) {
	own, ok := a.(*ldap.Account)
	if !ok {
		return connectors.Identity{}, errForeignAccount
	}
	return d.Connector.Authenticate(ctx, own, password)
}

// ChangePassword implements changer.
func (d ldapDirectory) ChangePassword(ctx context.Context, a Account, old, changed string) error {
	own, ok := a.(*ldap.Account)
	if !ok {
		return errForeignAccount
	}
	return d.Connector.ChangePassword(ctx, own, old, changed)
}

// UserID implements changer.
func (d ldapDirectory) UserID(a Account) string {
	own, ok := a.(*ldap.Account)
	if !ok {
		return ""
	}
	return d.Connector.UserID(own)
}

// Refresh implements connector.RefreshConnector.
func (d ldapDirectory) Refresh(ctx context.Context, _ connector.Scopes, id connector.Identity) (connector.Identity, error) {
	return refresh(ctx, d.Connector, id)
}

// refresh asks who a user is now. Whoever may not go on is an error.
func refresh(ctx context.Context, l lookuper, id connector.Identity) (connector.Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, directoryTimeout)
	defer cancel()
	answers, err := l.Lookup(ctx, []string{id.UserID})
	switch {
	case err != nil:
		return connector.Identity{}, refusal(err)
	case len(answers) != 1:
		return connector.Identity{}, refusal(fmt.Errorf("got %d answers for one user", len(answers)))
	case answers[0].Err != nil:
		return connector.Identity{}, answers[0].Err
	case answers[0].Identity.UserID != id.UserID:
		return connector.Identity{}, refusal(errors.New("the answer is of another user"))
	}
	return dexIdentity(answers[0].Identity), nil
}

func dexIdentity(id connectors.Identity) connector.Identity {
	return connector.Identity{
		UserID: id.UserID, Username: id.Name, PreferredUsername: id.PreferredUsername, Email: id.Email, EmailVerified: id.EmailVerified, Groups: id.Groups,
	}
}

// resolver opens our own connectors, and every other one as Dex does.
func resolver(dex dexconnectors.ResolveFunc, now func() time.Time, log *slog.Logger) dexconnectors.ResolveFunc {
	return func(c storage.Connector) (connector.Connector, error) {
		if c.Type == typeOIDC {
			return openOIDC(dex, c)
		}
		if c.Type != "ldap" {
			return dex(c)
		}
		o := ldap.Options{Now: now}
		if log != nil {
			o.Log = log.With("connector", c.ID)
		}
		own, err := ldap.Open(c.Config, o)
		if err != nil {
			return nil, err
		}
		return ldapDirectory{own}, nil
	}
}

const (
	// directoryTimeout is how long one sign-in may take at a directory, all requests together.
	directoryTimeout = 20 * time.Second
	// directorySlots is how many sign-ins are at one directory at a time. They cost little CPU here, but a connection each.
	directorySlots = 32
	// directoryQueue is how many may wait for their turn.
	directoryQueue = 256
)

// queues are the workers of directories, by connector id: one that hangs keeps nobody from another.
type queues struct {
	mu   sync.Mutex
	byID map[string]*workers
}

func newQueues() *queues { return &queues{byID: map[string]*workers{}} }

func (q *queues) of(id string) *workers {
	q.mu.Lock()
	defer q.mu.Unlock()
	w, ok := q.byID[id]
	if !ok {
		w = newWorkers(directorySlots)
		w.most = directoryQueue
		q.byID[id] = w
	}
	return w
}

func (q *queues) state() (waiting int, refused uint64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, w := range q.byID {
		n, no := w.state()
		waiting, refused = waiting+n, refused+no
	}
	return waiting, refused
}

// An attempt does something with an account that needs the user's password.
type attempt func(ctx context.Context, a Account) error

// counted makes an attempt at a directory: counted by the typed name before anything is asked, and by the account that it leads to.
// Names that lead nowhere are counted in the same way.
func (d *Door) counted(ctx context.Context, f finder, in Login, try attempt) error {
	done, err := d.doors.begin(ctx, d.ID, in, d.quota(f))
	if err != nil {
		return err
	}
	failed := false
	defer func() { done(failed) }() // should the connector panic, too
	ctx, cancel := context.WithTimeout(ctx, directoryTimeout)
	defer cancel()
	var took time.Duration
	busy := d.doors.directories.of(d.ID).do(ctx, in.Network, func() {
		begin := time.Now()
		err = d.atAccount(ctx, f, in.User, try)
		took = time.Since(begin)
	})
	if busy != nil {
		return busy
	}
	if failed = untold(err); failed {
		d.pace.hold(ctx, took)
	}
	return err
}

// A pace makes failures take equally long, whatever was found on the way: as long as the slowest of the last ones. The zero value is ready.
type pace struct {
	mu   sync.Mutex
	last [64]time.Duration
	n    int
}

const (
	slowestPace = 2 * time.Second
	// timerStep is what a timer may be late by. Who has nothing to wait for waits that long too.
	timerStep = time.Millisecond
)

// hold waits for what is missing after a failure that took so long.
func (p *pace) hold(ctx context.Context, took time.Duration) {
	p.mu.Lock()
	p.last[p.n%len(p.last)] = min(took, slowestPace)
	p.n++
	slowest := slices.Max(p.last[:])
	p.mu.Unlock()
	wait := time.NewTimer(max(0, slowest-took) + timerStep)
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
	}
}

// quota is how often a user may fail here: less often than the directory takes.
func (d *Door) quota(f finder) quota {
	var counted time.Duration
	if c, ok := f.(failureCounter); ok {
		counted = c.FailureWindow()
	}
	return d.doors.opts.Limits.quota().below(f.MaxFailures(), counted)
}

// untold reports whether err is one of the refusals that pages do not tell from a wrong password: these are the ones that count.
func untold(err error) bool {
	var no *connectors.Refusal
	return errors.As(err, &no) && no.Reason.Untold()
}

// atAccount finds the account and makes the attempt, if it has any left.
func (d *Door) atAccount(ctx context.Context, f finder, name string, try attempt) error {
	a, err := f.Find(ctx, name)
	if err != nil {
		return refusal(err)
	}
	q := d.quota(f) // by now the directory may have told
	done, err := d.doors.accounts.beginWithin(ctx, d.ID+"\x00"+a.Key(), q.failures, q.within)
	if no := (*connectors.Refusal)(nil); errors.As(err, &no) && no.Reason == connectors.Throttled {
		// To say so would tell that the names belong to one account. It takes as long as a password that is wrong.
		if s, err := d.stranger(ctx, f); err == nil {
			_ = try(ctx, s)
		}
		return &connectors.Refusal{Reason: connectors.ThrottledAccount}
	}
	if err != nil {
		return err
	}
	failed := false
	defer func() { done(failed) }()
	if err := try(ctx, a); err != nil {
		failed = untold(err)
		return refusal(err)
	}
	return nil
}

// stranger returns an account that is nobody's.
func (d *Door) stranger(ctx context.Context, f finder) (Account, error) {
	if s := d.nobody.Load(); s != nil {
		return *s, nil
	}
	s, err := f.Find(ctx, rand.Text())
	if err == nil {
		d.nobody.Store(&s)
	}
	return s, err
}

// Changes reports whether users can choose a new password here.
func (d *Door) Changes() bool {
	_, ok := d.inner.(changer)
	return ok
}

// ChangePassword replaces a user's password by another one: that of in is the proof. It returns whose it was. Every error is a *connectors.Refusal.
func (d *Door) ChangePassword(ctx context.Context, in Login, changed string) (userID string, err error) {
	f, finds := d.inner.(finder)
	c, changes := d.inner.(changer)
	if !finds || !changes {
		return "", &connectors.Refusal{Reason: connectors.Unavailable, Err: errors.New("passwords cannot be changed here")}
	}
	if !in.clean() {
		return "", &connectors.Refusal{Reason: connectors.WrongCredentials}
	}
	if !possiblePassword(changed) {
		return "", &connectors.Refusal{Reason: connectors.PasswordRejected, Changeable: true}
	}
	err = d.counted(ctx, f, in, func(ctx context.Context, a Account) error {
		err := c.ChangePassword(ctx, a, in.Password, changed)
		if err == nil {
			userID = c.UserID(a)
		}
		return err
	})
	return userID, err
}
