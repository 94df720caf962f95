// Package rotation lets one embedded log follow another: [Plan] names the next log
// and says when it begins, [Store.Create] makes it, [VerifyComplete] finds that an ended log
// holds all that it promised, and [Store.Freeze] closes it for good. What was decided
// is kept in the state file of the logs (ctlog.Config.StateFile).
package rotation

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/read"
	"github.com/mayfly-ca/mayfly/ctlog/external"
	"github.com/mayfly-ca/mayfly/ctlog/inclusion"
	"github.com/mayfly-ca/mayfly/ctlog/remote"
	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/statefile"
)

// Kind is what kind of answer a Refusal is.
type Kind int

// The kinds.
const (
	NotNow     Kind = iota // the logs, or the time, don't allow it
	Misasked               // it was asked for in a way that can't be
	Unverified             // a log isn't what it has to be
)

// Refusal is why a step can't be taken, and what to do.
type Refusal struct {
	Kind Kind
	Fix  string // an imperative sentence without a full stop
	Err  error
}

func (r *Refusal) Error() string { return r.Err.Error() }

// Unwrap is the reason.
func (r *Refusal) Unwrap() error { return r.Err }

func refuse(kind Kind, fix, format string, args ...any) error {
	return &Refusal{Kind: kind, Fix: fix, Err: fmt.Errorf(format, args...)}
}

// Store has the logs of a configuration, for the one command that changes them.
type Store struct {
	Config ctlog.Config

	check func(ctlog.Config) error
	file  *statefile.File
}

// Open opens the state file that c names. A second command on it is refused. check
// tells whether the whole configuration is good with other logs; nothing is written
// that it refuses.
func Open(c ctlog.Config, check func(ctlog.Config) error) (_ *Store, err error) {
	s := &Store{Config: c, check: check}
	if s.file, err = statefile.Open(string(c.StateFile)); err != nil {
		return nil, err
	}
	// The state may have changed since the configuration was read.
	if s.Config.State, err = ctlog.ReadState(string(c.StateFile)); err == nil {
		err = check(s.Config)
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close lets other commands change the logs.
func (s *Store) Close() { s.file.Close() }

// with is the configuration with another state, and whether that is good.
func (s *Store) with(next *ctlog.State) (ctlog.Config, error) {
	c := s.Config
	c.State = next
	if err := s.check(c); err != nil {
		return c, fmt.Errorf("the logs would have faults: %w", err)
	}
	return c, nil
}

// write keeps next: all of it or nothing.
func (s *Store) write(next *ctlog.State) error {
	c, err := s.with(next)
	if err != nil {
		return err
	}
	if err := s.file.Write(next); err != nil {
		return err
	}
	s.Config = c
	return nil
}

// clone is a state whose lists can be changed.
func clone(s *ctlog.State) *ctlog.State {
	return &ctlog.State{Version: s.Version, Logs: slices.Clone(s.Logs), Ends: slices.Clone(s.Ends), Frozen: slices.Clone(s.Frozen)}
}

// same reports whether two URLs are of one log.
func same(a, b string) bool { return strings.TrimSuffix(a, "/") == strings.TrimSuffix(b, "/") }

// Export makes a state file, which must not be there yet, of the states that c has
// itself: its shards, its frozen logs and the end of the first log.
func Export(c ctlog.Config, path string) error {
	next := ctlog.NewState()
	next.Logs, next.Frozen = c.Shards, c.Frozen
	if !c.Embedded.End.IsZero() {
		next.Ends = []ctlog.End{{URL: c.Embedded.URL, End: c.Embedded.End}}
	}
	return statefile.Create(path, next)
}

// TakeUp is how long a running service may need to take a change up.
const TakeUp = 10 * time.Second

// Request is what is asked of the next log; the zero value asks for nothing.
type Request struct {
	At     time.Time // when it begins
	Yearly bool      // it begins with the next year
	URL    string
	Key    setting.KeyRef // a key that is there already
	Force  bool           // it may begin before clients can know it
}

// Plan is a log that follows another.
type Plan struct {
	Before, Next ctlog.EmbeddedConfig

	newKey string // the file of the key that is to be made; empty where there is one
	state  *ctlog.State
}

// Plan decides all about the next log, and makes nothing. The error is a *Refusal
// where it is no fault of the configuration that would come of it.
func (s *Store) Plan(r Request, now time.Time) (Plan, error) {
	own := s.Config.Own()
	p := Plan{Before: own[len(own)-1]}
	if p.Before.Start.After(now) {
		return p, refuse(NotNow, "run it again when that log is in use, or change its start where it is defined",
			"the next log is there already: %s, from %s", p.Before.URL, p.Before.Start.UTC().Format(time.RFC3339))
	}
	start, err := r.start(p.Before.End, now, s.Config.Propagation)
	if err != nil {
		return p, err
	}
	p.Next = p.Before
	p.Next.Start, p.Next.End = start, time.Time{}
	p.Next.Forced = start.Before(now.Add(s.Config.Propagation))
	label := freeLabel(s.Config, p.Before, start)
	if p.Next.URL = r.URL; p.Next.URL == "" {
		p.Next.URL = relabelURL(p.Before.URL, label)
	}
	p.Next.Directory = setting.Path(relabel(string(p.Before.Directory), label))
	p.Next.MarkFile = setting.Path(relabel(string(p.Before.MarkFile), label))
	file, isFile := strings.CutPrefix(string(p.Before.Key), "file:")
	switch {
	case r.Key != "":
		p.Next.Key, p.Next.Passphrase = r.Key, setting.Secret{}
	case !isFile:
		return p, refuse(Misasked, "make an ECDSA key on P-256 there and name it with --key", "the last log's key is in a KMS, and a log has a key of its own")
	default:
		p.newKey = relabel(file, label)
		p.Next.Key = setting.KeyRef("file:" + p.newKey)
	}
	if p.state, err = s.following(p.Before, p.Next); err != nil {
		return p, err
	}
	_, err = s.with(p.state)
	return p, err
}

// following is the state in which next follows before.
func (s *Store) following(before, next ctlog.EmbeddedConfig) (*ctlog.State, error) {
	state := clone(s.Config.State)
	ended := before.End.Equal(next.Start)
	for i, log := range state.Logs {
		if same(log.URL, before.URL) {
			state.Logs[i].End, ended = next.Start, true
		}
	}
	for i, e := range state.Ends {
		if same(e.URL, before.URL) {
			state.Ends[i].End, ended = next.Start, true
		}
	}
	switch {
	case ended:
	case before.End.IsZero():
		state.Ends = append(state.Ends, ctlog.End{URL: before.URL, End: next.Start})
	default:
		return nil, refuse(NotNow, "remove that end from the configuration, or begin the next log with --at then",
			"the configuration ends the log %s at %s", before.URL, before.End.UTC().Format(time.RFC3339))
	}
	state.Logs = append(state.Logs, next)
	return state, nil
}

// start is when the new log begins, after one that ends at the moment given.
func (r Request) start(end, now time.Time, propagation time.Duration) (time.Time, error) {
	earliest := now.Add(propagation).Truncate(time.Minute).Add(time.Minute).UTC()
	start := earliest
	switch {
	case r.Force && r.At.IsZero() && !r.Yearly && !end.After(now):
		return start, refuse(Misasked, "say when with --at, such as --at "+now.Add(2*time.Minute).UTC().Truncate(time.Second).Format(time.RFC3339),
			"--force alone changes nothing: a log begins when clients can know it, unless it is told when")
	case !r.At.IsZero():
		start = r.At
	case r.Yearly:
		start = time.Date(now.UTC().Year()+1, 1, 1, 0, 0, 0, 0, time.UTC)
	case end.After(now):
		start = end
	}
	start = start.UTC()
	switch {
	case start.Before(now.Add(TakeUp)):
		return start, refuse(Misasked, "give a later time with --at", "%s is past, or too near for a running service to take it up", start.Format(time.RFC3339))
	case start.Before(now.Add(propagation)) && !r.Force:
		return start, refuse(NotNow, "give a later time with --at; or --force, and clients refuse the new log's certificates until they fetch the trusted root",
			"%s is sooner than clients can know the new log, from %s on (ctlog.propagation)", start.Format(time.RFC3339), earliest.Format(time.RFC3339))
	}
	return start, nil
}

// yearPart is the part of a name that tells logs apart: a year, and which of that year.
var yearPart = regexp.MustCompile(`^(.*?)([-/])?[0-9]{4}(-[0-9]+)?$`)

// freeLabel is the year of start, with a number where a log has that already.
func freeLabel(c ctlog.Config, before ctlog.EmbeddedConfig, start time.Time) string {
	taken := make(map[string]bool)
	for _, log := range c.Own() {
		taken[strings.TrimSuffix(log.URL, "/")] = true
	}
	for _, log := range c.FrozenLogs() {
		taken[strings.TrimSuffix(log.URL, "/")] = true
	}
	label := strconv.Itoa(start.Year())
	for n := 2; taken[relabelURL(before.URL, label)] || exists(relabel(string(before.Directory), label)); n++ {
		label = fmt.Sprintf("%d-%d", start.Year(), n)
	}
	return label
}

// exists reports whether anything is at path, or might be.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !os.IsNotExist(err)
}

// relabelURL puts the label in the place of a year at the end of the path, or after it.
func relabelURL(raw, label string) string {
	u, err := url.Parse(strings.TrimSuffix(raw, "/"))
	if err != nil {
		return raw
	}
	if m := yearPart.FindStringSubmatch(u.Path); m != nil {
		u.Path = m[1] + m[2] + label
	} else {
		u.Path += "/" + label
	}
	return u.String()
}

// relabel puts the label into the name of a file or folder: before what begins with
// its first dot, in the place of a year.
func relabel(path, label string) string {
	folder, name := filepath.Split(filepath.Clean(path))
	name, extension, dotted := strings.Cut(name, ".")
	if m := yearPart.FindStringSubmatch(name); m != nil {
		name = m[1]
	}
	name += "-" + label
	if dotted {
		name += "." + extension
	}
	return filepath.Join(folder, name)
}

// Keys makes and opens private keys of logs.
type Keys interface {
	// Make makes a key on P-256 in a file that isn't there yet, encrypted where a
	// passphrase is named.
	Make(file string, passphrase setting.Secret) error
	Open(ctx context.Context, key setting.KeyRef, passphrase setting.Secret) (ctlog.Signer, error)
}

// Create makes the log of a plan of this store and writes it down. What it made is
// taken away again when it fails: nobody has seen it.
func (s *Store) Create(ctx context.Context, p Plan, keys Keys) (err error) {
	dir := string(p.Next.Directory)
	var made []string
	defer func() {
		if err != nil {
			for _, path := range made {
				err = errors.Join(err, os.RemoveAll(path))
			}
		}
	}()
	paths := []string{dir, string(p.Next.MarkFile)}
	if p.newKey != "" {
		paths = append(paths, p.newKey)
	}
	for _, path := range paths {
		if exists(path) {
			return refuse(NotNow, "move it away; nothing is overwritten", "%s: %w", path, os.ErrExist)
		}
	}
	if p.newKey != "" {
		if err := keys.Make(p.newKey, p.Next.Passphrase); err != nil {
			if errors.Is(err, os.ErrPermission) {
				return refuse(NotNow, "make an ECDSA key on P-256 elsewhere and name it with --key", "the new log's key can't be made beside the last one's: %w", err)
			}
			return err
		}
		made = append(made, p.newKey)
	}
	signer, err := keys.Open(ctx, p.Next.Key, p.Next.Passphrase)
	if err != nil {
		return err
	}
	if err := durable.MakeFolder(filepath.Dir(dir), 0o755); err != nil { // the log is public
		return err
	}
	// Whoever makes the folder makes the log: another at the same time has nothing to take away.
	if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // the log is public
		return err
	}
	made = append(made, dir, string(p.Next.MarkFile))
	if err := durable.OwnerAsFolder(dir); err != nil {
		return err
	}
	if err := embedded.Create(ctx, p.Next, embedded.Options{Signer: signer}); err != nil {
		return err
	}
	return s.write(p.state)
}

// Ended is the log of c called url, or without a name the first that has ended: one
// to freeze. The error is a *Refusal.
func Ended(c ctlog.Config, url string, now time.Time) (ctlog.EmbeddedConfig, error) {
	own := c.Own()
	for i, log := range own {
		if url != "" && !same(url, log.URL) {
			continue
		}
		ended := !log.End.IsZero() && !log.End.After(now)
		switch {
		case url == "" && !ended:
			continue
		case !ended:
			return log, refuse(NotNow, "wait for its end; mayfly log rotate gives it one", "the log %s has not ended", log.URL)
		case i == len(own)-1:
			return log, refuse(NotNow, "make the next one first: mayfly log rotate", "no log follows %s", log.URL)
		}
		return log, nil
	}
	if url != "" {
		return ctlog.EmbeddedConfig{}, refuse(NotNow, "`mayfly log list` shows the URLs; name one of this CA's that isn't frozen", "there is no log %s to freeze", url)
	}
	return ctlog.EmbeddedConfig{}, refuse(NotNow, "`mayfly log list` shows when each ends; `mayfly log rotate` gives the last one an end", "there is no such log that has ended and isn't frozen")
}

// Complete is a log that was found to hold all that it promised.
type Complete struct {
	Log    ctlog.EmbeddedConfig
	Report maintain.Report

	spki []byte
}

// VerifyComplete reads an ended log from the first entry to the last, and the audit trail
// beside it: the last checkpoint covers every entry, the mark fits, and every
// certificate which the trail says is in the log is in it. What the monitor remembers
// of the trail is no proof, and isn't read. progress may be nil. The error is a
// *Refusal where the log isn't complete.
func VerifyComplete(ctx context.Context, log ctlog.EmbeddedConfig, trail func(since time.Time) inclusion.Trail, progress func(done, total uint64)) (c Complete, err error) {
	c.Log = log
	dir := string(log.Directory)
	c.Report, err = maintain.Verify(ctx, dir, maintain.VerifyOptions{MarkFile: string(log.MarkFile), Progress: progress})
	switch {
	case err != nil:
		return c, refuse(Unverified, "keep the directory as it is, and restore the log from a copy that verifies", "the log in %s is damaged: %w", dir, err)
	case c.Report.Unpublished > 0:
		return c, refuse(NotNow, "let the service run, which publishes them, and try again", "%d entries are in no checkpoint yet", c.Report.Unpublished)
	}
	owner, err := logdir.Dir(dir).Owner()
	if err != nil {
		return c, err
	}
	c.spki = owner.Key
	about := ctlog.Description{
		ID: sha256.Sum256(c.spki), SPKI: c.spki, URL: strings.TrimSuffix(log.URL, "/"), Start: log.Start, End: log.End,
	}
	archive, err := read.OpenArchive(about, read.Options{Dir: logdir.Dir(dir)})
	if err != nil {
		return c, err
	}
	pending, err := inclusion.Pending(ctx, inclusion.Options{
		Trail: trail,
		Logs:  []remote.Log{{Description: about, URL: "http://embedded", Client: remote.Local(archive.Local())}},
	}, log.Start)
	if err != nil {
		return c, err
	}
	if len(pending) > 0 {
		return c, refuse(Unverified, "keep the log as it is, and find out why: mayfly_ctlog_promises_overdue and the service's log tell more",
			"%d certificates that the log promised aren't in it; the first has the serial number %s", len(pending), pending[0])
	}
	return c, nil
}

// Freeze writes the log's public key beside its directory, the state file and, last,
// the end into the directory. It gives the key's file.
func (s *Store) Freeze(c Complete, now time.Time) (keyFile string, err error) {
	// The proof takes hours for a large log, and meanwhile other commands move it.
	if !slices.ContainsFunc(s.Config.Own(), func(l ctlog.EmbeddedConfig) bool { return l.URL == c.Log.URL && l.End.Equal(c.Log.End) }) {
		return "", refuse(NotNow, "see mayfly log list, and run it again", "the log %s was changed in the configuration meanwhile", c.Log.URL)
	}
	keyFile = string(c.Log.Directory) + ".pub.pem"
	next := clone(s.Config.State)
	next.Logs = slices.DeleteFunc(next.Logs, func(l ctlog.EmbeddedConfig) bool { return same(l.URL, c.Log.URL) })
	next.Ends = slices.DeleteFunc(next.Ends, func(e ctlog.End) bool { return same(e.URL, c.Log.URL) })
	next.Frozen = append(next.Frozen, ctlog.FrozenConfig{
		URL: c.Log.URL, KeyFile: setting.Path(keyFile), Directory: c.Log.Directory,
		Operator: c.Log.Operator, Start: c.Log.Start, End: c.Log.End,
	})
	if _, err := s.with(next); err != nil {
		return "", err
	}
	if known, err := external.ReadKey(keyFile); err != nil || !bytes.Equal(known, c.spki) {
		text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: c.spki})
		if err := durable.WriteNew(keyFile, text, 0o644); errors.Is(err, os.ErrExist) {
			return "", refuse(NotNow, "move that file away; nothing is overwritten", "%s is there already, and isn't the log's public key", keyFile)
		} else if err != nil {
			return "", err
		}
	}
	if err := s.write(next); err != nil {
		return "", err
	}
	return keyFile, maintain.Freeze(string(c.Log.Directory), c.Report, now)
}
