package hosts

import "testing"

func TestLoopback(t *testing.T) {
	for host, want := range map[string]bool{
		"localhost": true, "auth.localhost": true, "127.0.0.1": true, "127.66.3.4": true, "[::1]": true, "::1": true,
		"auth.example.com": false, "localhost.example.com": false, "notlocalhost": false, "10.0.0.1": false, "0.0.0.0": false, "[2001:db8::1]": false, "": false,
	} {
		if got := Loopback(host); got != want {
			t.Errorf("%q: %v, want %v", host, got, want)
		}
	}
}
