package identity

import (
	"context"
	"errors"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"
)

func noRest() error { return nil }

// FuzzMatches holds that matches and bcrypt.CompareHashAndPassword are of one mind.
func FuzzMatches(f *testing.F) {
	for _, password := range []string{"", "x", "open sesame 7", "\x00", "\xff\xfe", strings.Repeat("ä", 36), strings.Repeat("a", 72)} {
		hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(hash), password)
		f.Add(string(hash), password+"x")
		f.Add(strings.Replace(string(hash), "$2a$", "$2y$", 1), password)
		f.Add(strings.Replace(string(hash), "$2a$", "$2b$", 1), password)
		f.Add(string(hash[:59])+".", password)
		f.Add(string(hash[:29])+"x"+string(hash[30:]), password)
	}
	// Of another implementation: the test vectors of OpenBSD and of John the Ripper.
	f.Add("$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW", "U*U")
	f.Add("$2a$05$CCCCCCCCCCCCCCCCCCCCC.VGOzA784oUp/Z0DY336zx7pLYAy0lwK", "U*U*")
	f.Add("$2$04$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeWx", "U*U")
	f.Add("$2a$10$", "x")
	f.Add("", "")
	f.Add("$2a$04$CCCCCCCCCCCCCCCCCCCC*.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW", "x")
	f.Fuzz(func(t *testing.T, hash, password string) {
		if cost, err := bcrypt.Cost([]byte(hash)); err == nil && cost > 5 || len(password) > maxBcrypt {
			return
		}
		want := bcrypt.CompareHashAndPassword([]byte(hash), []byte(password)) == nil
		got, err := matches([]byte(hash), []byte(password), 7, noRest)
		if got != want || got && err != nil {
			t.Errorf("%q and %q: got %v (%v), want %v", hash, password, got, err, want)
		}
	})
}

func TestHashKnowsItsPassword(t *testing.T) {
	const vector = "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"
	if ok, err := matches([]byte(vector), []byte("U*U"), 1, noRest); err != nil || !ok {
		t.Errorf("the right password: %v, %v", ok, err)
	}
	if ok, err := matches([]byte(vector), []byte("U*V"), 1, noRest); err != nil || ok {
		t.Errorf("a wrong password: %v, %v", ok, err)
	}
}

func TestHashRestsAndGivesUp(t *testing.T) {
	hash, err := bcrypt.GenerateFromPassword([]byte("right"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	rests := 0
	ok, err := matches(hash, []byte("right"), 4, func() error { rests++; return nil })
	if err != nil || !ok || rests != 4 { // 1<<4 rounds
		t.Errorf("got %v, %v after %d rests, want 4", ok, err, rests)
	}
	rests = 0
	ok, err = matches(hash, []byte("right"), 4, func() error {
		if rests++; rests == 2 {
			return context.Canceled
		}
		return nil
	})
	if ok || !errors.Is(err, context.Canceled) || rests != 2 {
		t.Errorf("got %v, %v after %d rests, want to give up at the second", ok, err, rests)
	}
}
