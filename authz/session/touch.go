package session

import (
	"context"
	"errors"
	"log/slog"
	"time"
)

// A touch is activity that is to be written to the store.
type touch struct {
	shard *shard
	entry *entry
	id    string // of its session
	at    time.Time
}

// queue takes a touch if there is room; it never waits.
func (v *View) queue(t touch) bool {
	select {
	case v.touches <- t:
		return true
	default:
		v.touchesDropped.Add(1)
		return false
	}
}

// writeTouches writes what is queued until the view is closed and nothing is left.
func (v *View) writeTouches() {
	for {
		select {
		case t := <-v.touches:
			v.write(t)
		case <-v.quit:
			for {
				select {
				case t := <-v.touches:
					v.write(t)
				default:
					return
				}
			}
		}
	}
}

func (v *View) write(t touch) {
	ctx, cancel := context.WithTimeout(v.ctx, touchTimeout)
	defer cancel()
	s, err := v.guard(ctx, t.id, func() (*Session, error) { return v.store.Touch(ctx, t.id, t.at) })
	failed := err != nil && !errors.Is(err, ErrNotFound)
	if failed {
		v.touchErrors.Add(1)
	}
	if v.touchFailing.Swap(failed) != failed { // say it once, not for every session
		if failed {
			v.logger.LogAttrs(ctx, slog.LevelWarn, "activity of sessions is not written, sessions in use go on from memory", slog.Any("error", err))
		} else {
			v.logger.LogAttrs(ctx, slog.LevelInfo, "activity of sessions is written again")
		}
	}
	t.shard.touched(t, s, err)
}

// touched takes the result of a touch, if its entry is still there.
func (sh *shard) touched(t touch, s *Session, err error) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	e := t.entry
	if sh.entries[t.id] != e {
		return
	}
	switch {
	case errors.Is(err, ErrNotFound), err == nil && s.User != e.session.User:
		sh.drop(e)
	case err != nil:
		e.touched = t.at.Add(min(touchEvery, sh.view.every) - sh.view.every).UnixMilli() // try again in a minute
	case !s.LastActivity.Before(e.session.LastActivity): // results may overtake each other
		if m := e.session.Memo.Load(); m != nil {
			s.Memo.Store(m)
		}
		e.session = s
		sh.entries[s.ID] = e // its key has been part of the former session's memory, as has the user's
		if sh.users[s.User] == e {
			sh.users[s.User] = e
		}
	}
}
