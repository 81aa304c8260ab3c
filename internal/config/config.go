// Package config reads the configuration file: one YAML document, read strictly, every mistake told at once with
// its line and its fix. A configuration file of Dex is a valid file; what Gatehouse adds is the gateway block.
//
// The package reads neither files nor the environment by itself: Options bring both.
package config

import (
	"errors"
	"io/fs"
	"os"
	"reflect"
	"time"
)

// Options bring in the world outside the file. In the zero value no variable is set and no file exists.
type Options struct {
	// Lookup returns the value of an environment variable, and whether it is set.
	Lookup func(name string) (value string, ok bool)

	// ReadFile and Mode return the content and the permissions of a file that the configuration names.
	ReadFile func(name string) ([]byte, error)
	Mode     func(name string) (fs.FileMode, error)

	// Now tells the time that certificates are looked at. Nil: time.Now.
	Now func() time.Time

	// Connector checks the config block of a connector of the given type, a JSON object. Each error that it
	// returns (one, or several joined) is reported at the line of the field that its method Field() string
	// names, such as userSearch.baseDN, or at that of the connector. Nil: blocks are not checked.
	Connector func(typ string, config []byte) error
}

// OS returns the options of a program that runs: its environment and its files.
func OS() Options {
	return Options{
		Lookup:   os.LookupEnv,
		ReadFile: os.ReadFile,
		Mode: func(name string) (fs.FileMode, error) {
			info, err := os.Stat(name)
			if err != nil {
				return 0, err
			}
			return info.Mode(), nil
		},
	}
}

func (o Options) withDefaults() Options {
	if o.Lookup == nil {
		o.Lookup = func(string) (string, bool) { return "", false }
	}
	if o.ReadFile == nil {
		o.ReadFile = func(string) ([]byte, error) { return nil, fs.ErrNotExist }
	}
	if o.Mode == nil {
		o.Mode = func(string) (fs.FileMode, error) { return 0, fs.ErrNotExist }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// Load reads the file at path; see Parse.
func Load(path string, opts Options) (*Config, Warnings, error) {
	data, err := opts.withDefaults().ReadFile(path)
	if err != nil {
		return nil, nil, Errors{{File: path, Msg: fileProblem(err)}}
	}
	return Parse(path, data, opts)
}

// Parse reads data, the content of the file called name. The error is of type Errors and holds every mistake;
// warnings come with it or without.
func Parse(name string, data []byte, opts Options) (*Config, Warnings, error) {
	opts = opts.withDefaults()
	r := newReport(name)
	c := new(Config)
	c.setDefaults()
	if root := r.document(data); root != nil {
		d := &decoder{report: r, env: opts.Lookup}
		d.decode(root, reflect.ValueOf(c).Elem(), "")
		(&checker{decoder: d, opts: opts, c: c}).check()
	}
	errs, warns := r.sorted()
	if len(errs) > 0 {
		return nil, warns, errs
	}
	c.places = placesOf(c, r)
	return c, warns, nil
}

// fileProblem says why a file cannot be read, without its name: the caller has it.
func fileProblem(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "the file does not exist"
	case errors.Is(err, fs.ErrPermission):
		return "the file may not be read: give this user the permission"
	}
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		err = pathErr.Err
	}
	return "the file cannot be read: " + err.Error()
}
