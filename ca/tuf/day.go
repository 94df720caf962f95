package tuf

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"strconv"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/durable"
)

// perDay is how many versions of targets fit into the versions of a day. Together with
// the days since epoch they stay below 2³¹, which sigstore-java's versions do, for
// longer than 500 years, and 10,000 targets are 27 years of one a day.
const perDay = 10_000

// epoch is the beginning of day 0.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// timestampPath is the one file whose name doesn't say what it holds.
const timestampPath = "timestamp.json"

// dayOf is the number of the day.
func dayOf(t time.Time) int64 { return int64(t.Sub(epoch) / day) }

// Lists are the revocation lists (CRLs) below crl/, which replicas sign alike.
type Lists struct {
	// Number is the sum of the lists' numbers. It only rises, and with it the versions:
	// lists that are signed again for the same number go out with the next day.
	Number int64
	// Files are the lists in DER, by the authority's key id in hexadecimal.
	Files map[string][]byte
}

// same reports whether what is signed for other does for l.
func (l Lists) same(other Lists) bool {
	return l.Number == other.Number && maps.EqualFunc(l.Files, other.Files, func(_, _ []byte) bool { return true })
}

// ListPath is the target of an authority's list.
func ListPath(authority string) string { return crlRole + "/" + authority + ".crl" }

// dayFiles are what the online key signs for one day: a pure function of what was
// published, the number of the day and the lists, but for the signatures of a key whose
// signatures aren't (a KMS's). Clients take a higher version for newer, and a later
// day, later targets and later lists all have one.
type dayFiles struct {
	day     int64
	lists   Lists
	version int64
	expires time.Time
	paths   map[string][]byte
	repo    *Repository
}

// online signs for a day.
func (r *Repository) online(ctx context.Context, key kms.Signer, number int64, lists Lists) (*dayFiles, error) {
	if number < 0 {
		return nil, fmt.Errorf("tuf: this machine's clock is before %s: correct it", stamp(epoch))
	}
	begins := epoch.Add(time.Duration(number) * day)
	d := &dayFiles{
		day: number, lists: lists, version: number*perDay + r.state.Targets + lists.Number,
		expires: begins.Add(OnlineLife), paths: make(map[string][]byte), repo: r,
	}
	snapshot := metadata.Snapshot(d.expires)
	snapshot.Signed.Version = d.version
	snapshot.Signed.Meta = map[string]*metadata.MetaFiles{
		metadata.TARGETS + ".json": {Version: r.state.Targets}, crlRole + ".json": {Version: d.version},
	}
	crl := metadata.Targets(d.expires)
	crl.Signed.Version = d.version
	for authority, list := range lists.Files {
		name := ListPath(authority)
		target, err := metadata.TargetFile().FromBytes(name, list, "sha256")
		if err != nil {
			return nil, fmt.Errorf("tuf: %w", err)
		}
		crl.Signed.Targets[name], d.paths[hashed(name, target)] = target, list
	}
	timestamp := metadata.Timestamp(d.expires)
	timestamp.Signed.Version = d.version
	timestamp.Signed.Meta = map[string]*metadata.MetaFiles{metadata.SNAPSHOT + ".json": {Version: d.version}}
	key = kms.Repeatable(key)
	return d, errors.Join(
		signTo(ctx, d, versioned(d.version, crlRole), crl, key),
		signTo(ctx, d, versioned(d.version, metadata.SNAPSHOT), snapshot, key),
		signTo(ctx, d, timestampPath, timestamp, key),
	)
}

func signTo[T metadata.Roles](ctx context.Context, d *dayFiles, path string, m *metadata.Metadata[T], key kms.Signer) (err error) {
	if err := sign(ctx, m, key); err != nil {
		return fmt.Errorf("signing %s: %w", path, err)
	}
	d.paths[path], err = encode(m)
	return err
}

// read is what is served at a path.
func (d *dayFiles) read(path string) ([]byte, error) {
	if b, ok := d.paths[path]; ok {
		return b, nil
	}
	if b, ok := d.repo.paths[path]; ok {
		return b, nil
	}
	return nil, fs.ErrNotExist
}

// mark is the file of the last day that was signed for; "" keeps none.
type mark string

// read is the day; 0 where there is none yet.
func (m mark) read() (number int64, err error) {
	if m == "" {
		return 0, nil
	}
	b, err := durable.ReadPlain(string(m), maxBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if number, err = strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64); err != nil || number < 0 {
		return 0, fmt.Errorf("%s doesn't hold the number of a day: restore it, or remove it if the clock was never wrong", string(m))
	}
	return number, nil
}

// write sets the day, on disk when it returns.
func (m mark) write(number int64) error {
	if m == "" {
		return nil
	}
	return durable.Put(string(m), []byte(strconv.FormatInt(number, 10)+"\n"), 0o600)
}
