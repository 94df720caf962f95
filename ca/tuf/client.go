package tuf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/config"
	"github.com/theupdateframework/go-tuf/v2/metadata/updater"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/internal/oneline"
)

// fetch gets what is at a path below the repository; an error that wraps
// fs.ErrNotExist says that nothing is.
type fetch func(path string) ([]byte, error)

// base stands for the repository's URL in what the client asks for.
const base = "http://repository/"

// DownloadFile is what the client asks its fetcher.
func (f fetch) DownloadFile(url string, most int64, _ time.Duration) ([]byte, error) {
	b, err := f(strings.TrimPrefix(url, base))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, &metadata.ErrDownloadHTTP{StatusCode: http.StatusNotFound, URL: url}
	case err == nil && int64(len(b)) > most:
		return nil, fmt.Errorf("%s is larger than %d bytes", url, most)
	}
	return b, err
}

// follow runs a TUF client (go-tuf's) that trusts the root first and remembers what it
// sees in the folder cache, at a time, and gives all targets that it gets.
func follow(first []byte, from fetch, cache string, now time.Time) (_ contents, _ *updater.Updater, err error) {
	defer func() {
		if recover() != nil { // see decode
			err = errNotMetadata
		}
	}()
	c, err := config.New(base, first)
	if err != nil {
		return nil, nil, err
	}
	c.Fetcher, c.LocalMetadataDir, c.LocalTargetsDir = from, cache, filepath.Join(cache, "targets")
	client, err := updater.New(c)
	if err != nil {
		return nil, nil, err
	}
	client.UnsafeSetRefTime(now)
	if err := client.Refresh(); err != nil {
		return nil, nil, err
	}
	all := contents{}
	for name := range client.GetTopLevelTargets() {
		info, err := client.GetTargetInfo(name)
		if err != nil {
			return nil, nil, err
		}
		_, b, err := client.DownloadTarget(info, "", "")
		if err != nil {
			return nil, nil, err
		}
		all[name] = string(b)
	}
	return all, client, nil
}

// try has a client follow r that begins with the first root, and one that knows before.
func (r *Repository) try(ctx context.Context, before *Repository, online kms.Signer, now time.Time) (err error) {
	cache, err := os.MkdirTemp("", "mayfly-tuf-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(cache)) }()
	try := func(r *Repository, cache string) error {
		made, err := r.online(ctx, online, dayOf(now), Lists{})
		if err != nil {
			return err
		}
		got, _, err := follow(r.FirstRoot(), made.read, cache, now)
		if err == nil {
			err = got.belongTo(r.targets)
		}
		return err
	}
	if before != nil {
		if known := filepath.Join(cache, "known"); try(before, known) == nil { // else it had expired, and no client knows it
			if err := try(r, known); err != nil {
				return fmt.Errorf("one that knows what is in force: %w", err)
			}
		}
	}
	return try(r, filepath.Join(cache, "new"))
}

// Verified is what a client sees of a repository.
type Verified struct {
	Roles []Role
	Files map[string]string // targets by name
	Raw   map[string][]byte // all that the client got, by its path: what a mirror needs
}

// Names are those of the targets, in order.
func (v *Verified) Names() []string { return slices.Sorted(maps.Keys(v.Files)) }

// Verify runs a TUF client, which has the root first and nothing else, over the
// repository at a URL.
func Verify(ctx context.Context, url string, first []byte, now time.Time) (*Verified, error) {
	begin, err := decodeRoot(first)
	if err != nil {
		return nil, fmt.Errorf("the root to begin with %w", err)
	}
	cache, err := os.MkdirTemp("", "mayfly-tuf-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(cache)
	ctx, cancel := context.WithTimeout(ctx, followTimeout)
	defer cancel()
	left := maxBytes
	v := &Verified{Raw: map[string][]byte{versioned(begin.Signed.Version, metadata.ROOT): first}}
	get := func(path string) ([]byte, error) {
		b, err := Fetch(ctx, strings.TrimSuffix(url, "/")+"/"+path)
		if left -= len(b); left < 0 {
			return nil, fmt.Errorf("%s has more than %d bytes with what it had before", url, maxBytes)
		}
		if err == nil {
			v.Raw[path] = b
		}
		return b, err
	}
	files, client, err := follow(first, get, cache, now)
	if err != nil {
		return nil, oneline.Error(err, 500)
	}
	seen := client.GetTrustedMetadataSet()
	targets := seen.Targets[metadata.TARGETS].Signed
	v.Files, v.Roles = files, []Role{
		roleOf(seen.Root, metadata.ROOT, seen.Root.Signed.Version, seen.Root.Signed.Expires),
		roleOf(seen.Root, metadata.TARGETS, targets.Version, targets.Expires),
		roleOf(seen.Root, metadata.SNAPSHOT, seen.Snapshot.Signed.Version, seen.Snapshot.Signed.Expires),
		roleOf(seen.Root, metadata.TIMESTAMP, seen.Timestamp.Signed.Version, seen.Timestamp.Signed.Expires),
	}
	return v, nil
}

// followTimeout bounds a client's way through a repository, and fetchTimeout one answer.
const followTimeout, fetchTimeout = 2 * time.Minute, 30 * time.Second

// Fetch gets a URL whose answer is no larger than a repository. It follows no redirect:
// what asks may reach more than whoever answers.
func Fetch(ctx context.Context, url string) ([]byte, error) {
	web := &http.Client{Timeout: fetchTimeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	answer, err := web.Do(req)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	switch answer.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, fmt.Errorf("%s: %w", req.URL.Redacted(), os.ErrNotExist)
	default:
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 512)) // what it says helps, if it is there
		return nil, fmt.Errorf("%s answers %d: %s", req.URL.Redacted(), answer.StatusCode, oneline.Clean(string(text), 300))
	}
	return io.ReadAll(io.LimitReader(answer.Body, maxBytes+1))
}
