package rotation

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/maintain"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/read"
	"github.com/mayfly-ca/mayfly/ctlog/external"
	"github.com/mayfly-ca/mayfly/ctlog/inclusion"
	"github.com/mayfly-ca/mayfly/ctlog/remote"
	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

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
