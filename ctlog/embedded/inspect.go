package embedded

import (
	"context"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/checkpoint"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
)

// Inspect says what [Open] would: whether the log with the key can be opened. It
// only reads, and may run beside a service: where another process has the log open,
// which inUse says, that one has compared its state with its mark.
func Inspect(ctx context.Context, c Config, key crypto.PublicKey) (about ctlog.Description, inUse bool, err error) {
	spki, err := marshalKey(key)
	if err != nil {
		return about, false, err
	}
	verifier, err := checkpoint.NewVerifier(c.Origin(), key)
	if err != nil {
		return about, false, err
	}
	l := &Log{config: c, origin: c.Origin(), dir: logdir.Dir(c.Directory), verifier: verifier}
	l.description = ctlog.Description{
		ID: sha256.Sum256(spki), SPKI: spki, URL: strings.TrimSuffix(c.URL, "/"), Operator: c.Operator, Start: c.Start, End: c.End,
	}
	if _, err := os.Stat(string(l.dir)); err != nil {
		return about, false, fmt.Errorf("the directory can't be used; is its disk mounted?: %w", err)
	}
	if err := l.outside(); err != nil {
		return about, false, err
	}
	if _, err := l.inspect(); err != nil {
		return about, false, err
	}
	if err := l.checkOwner(); err != nil {
		return about, false, err
	}
	for _, path := range []string{string(l.dir), string(c.MarkFile)} {
		if err := unix.Access(path, unix.W_OK); err != nil && !errors.Is(err, unix.ENOENT) {
			return about, false, fmt.Errorf("%s can't be written by this user: %w; run it as the user of the service, or give the file to that one", path, err)
		}
	}
	high, err := logdir.ReadMark(string(c.MarkFile), l.description.ID)
	missing := errors.Is(err, os.ErrNotExist)
	if err != nil && !missing {
		return about, false, err
	}
	if inUse, err = l.dir.InUse(); err == nil && !inUse {
		_, _, err = l.survey(ctx, high, missing)
	}
	return l.description, inUse, err
}
