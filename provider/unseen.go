package provider

import (
	"embed"
	"io/fs"
)

// unseen has Dex's pages that no browser gets: that of the connectors, which is how Dex says that a request is good. Each is there to
// be made in no time.
//
//go:embed unseen
var unseen embed.FS

// dexFiles are the files of Dex's own pages.
type dexFiles struct{ fs.FS }

// Open implements fs.FS.
func (f dexFiles) Open(name string) (fs.File, error) {
	if name == "templates/login.html" {
		return unseen.Open("unseen/login.html")
	}
	return f.FS.Open(name)
}
