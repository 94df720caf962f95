package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

const logRotateLong = `Makes the log that follows the last one of a configuration: a key, an empty log
and its mark beside those of the log before, and its entry under ctlog.shards,
which begins when the log before ends. Nothing else in the file changes, and
nothing is ever overwritten. A running service takes it up by itself: it lists the
new log in the trusted root at once, and goes over to it by the clock.

Clients refuse certificates from a log that they don't know. So the new log
begins no sooner than ctlog.propagation (24h) from now; --force allows less, and
then clients with an older trusted root refuse what is signed until they fetch it.`

// takeUp is how long a running service may need to take up a configuration.
const takeUp = 10 * time.Second

// rotateOptions are the flags of log rotate.
type rotateOptions struct {
	file, at, url, key string
	yearly, force      bool
}

func newLogRotateCommand(streams streams) *cobra.Command {
	var o rotateOptions
	cmd := &cobra.Command{
		Use:     "rotate",
		Short:   "Make the log that follows the last one of a configuration",
		Long:    logRotateLong,
		Example: "  mayfly log rotate --config /etc/mayfly/mayfly.yaml --yearly",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(o.file)
			if err != nil {
				return err
			}
			embedded.RedirectStorageLog(slog.New(slog.DiscardHandler))
			r, err := planRotation(c, o, time.Now())
			if err != nil {
				return err
			}
			if err := r.carryOut(cmd.Context(), o.file); err != nil {
				return err
			}
			fmt.Fprintf(streams.Out, "The log %s follows %s at %s.\n\n  %-10s %s\n  %-10s %s\n  %-10s %s\n\n"+
				"A running service lists it in the trusted root within seconds; see mayfly log list.\nBack up the key.\n",
				r.next.URL, r.before.URL, r.next.Start.Format(time.RFC3339),
				"directory", r.next.Directory, "mark", r.next.MarkFile, "key", r.next.Key)
			return nil
		},
	}
	configFlag(cmd, &o.file)
	flags := cmd.Flags()
	flags.StringVar(&o.at, "at", "", "when the new log begins, such as 2028-01-01 or 2028-01-01T00:00:00Z; else when the last one ends, or as soon as clients can know it")
	flags.BoolVar(&o.yearly, "yearly", false, "begin with the next year (UTC)")
	flags.StringVar(&o.url, "url", "", "the new log's URL; else the last one's with another year")
	flags.StringVar(&o.key, "key", "", "a key of the new log that is there already: the URI of a P-256 key in a KMS")
	flags.BoolVar(&o.force, "force", false, "begin before clients can know the log: they refuse its certificates until they fetch the trusted root")
	cmd.MarkFlagsMutuallyExclusive("at", "yearly")
	return cmd
}

// rotation is a log to be made.
type rotation struct {
	before ctlog.EmbeddedConfig
	next   ctlog.EmbeddedConfig // with paths as they are from here
	newKey string               // the file of the key that is to be made; empty where there is one
	change []config.Change
}

// planRotation decides all about the next log of c, and makes nothing.
func planRotation(c *config.Config, o rotateOptions, now time.Time) (rotation, error) {
	own := c.CTLog.Own()
	if len(own) == 0 {
		return rotation{}, usage("an external log is added under ctlog.logs, with start and end", "%s names no embedded log", o.file)
	}
	r := rotation{before: own[len(own)-1]}
	if r.before.Start.After(now) {
		return r, &failure{
			code: exitFailed, mend: "run it again when that log is in use, or change its start in the configuration",
			err: fmt.Errorf("the next log is there already: %s, from %s", r.before.URL, r.before.Start.UTC().Format(time.RFC3339)),
		}
	}
	start, err := o.start(r.before.End, now, c.CTLog.Propagation)
	if err != nil {
		return r, err
	}
	r.next = r.before
	r.next.Start, r.next.End = start, time.Time{}
	label := freeLabel(c, r.before, start)
	if r.next.URL = o.url; r.next.URL == "" {
		r.next.URL = relabelURL(r.before.URL, label)
	}
	r.next.Directory = setting.Path(relabel(string(r.before.Directory), label))
	r.next.MarkFile = setting.Path(relabel(string(r.before.MarkFile), label))
	file, isFile := strings.CutPrefix(string(r.before.Key), "file:")
	switch {
	case o.key != "":
		r.next.Key, r.next.Passphrase = setting.KeyRef(o.key), setting.Secret{}
	case !isFile:
		return r, usage("make an ECDSA key on P-256 there and name it with --key", "the last log's key is in a KMS, and a log has a key of its own")
	default:
		r.newKey = relabel(file, label)
		r.next.Key = setting.KeyRef("file:" + r.newKey)
	}
	at := c.CTLog.OwnPath("ctlog", len(own)-1)
	r.change = []config.Change{config.Set(setting.Join(at, "end"), start), config.Append("ctlog.shards", written(r.next, o.file))}
	return r, config.TryEdit(o.file, r.change...)
}

// start is when the new log begins, after one that ends at the moment given.
func (o rotateOptions) start(end, now time.Time, propagation time.Duration) (time.Time, error) {
	earliest := now.Add(propagation).Truncate(time.Minute).Add(time.Minute).UTC()
	start := earliest
	switch {
	case o.force && o.at == "" && !o.yearly && !end.After(now):
		return start, usage("say when with --at, such as --at "+now.Add(2*time.Minute).UTC().Truncate(time.Second).Format(time.RFC3339),
			"--force alone changes nothing: a log begins when clients can know it, unless it is told when")
	case o.at != "":
		var err error
		if start, err = time.Parse(time.DateOnly, o.at); err != nil {
			if start, err = time.Parse(time.RFC3339, o.at); err != nil {
				return start, usage("write it like 2028-01-01 or 2028-01-01T00:00:00Z", "--at %q isn't a time", o.at)
			}
		}
	case o.yearly:
		start = time.Date(now.UTC().Year()+1, 1, 1, 0, 0, 0, 0, time.UTC)
	case end.After(now):
		start = end
	}
	start = start.UTC()
	switch {
	case start.Before(now.Add(takeUp)):
		return start, usage("give a later time with --at", "%s is past, or too near for a running service to take it up", start.Format(time.RFC3339))
	case start.Before(now.Add(propagation)) && !o.force:
		return start, &failure{
			code: exitFailed, mend: "give a later time with --at; or --force, and clients refuse the new log's certificates until they fetch the trusted root",
			err: fmt.Errorf("%s is sooner than clients can know the new log, from %s on (ctlog.propagation)", start.Format(time.RFC3339), earliest.Format(time.RFC3339)),
		}
	}
	return start, nil
}

// yearPart is the part of a name that tells logs apart: a year, and which of that year.
var yearPart = regexp.MustCompile(`^(.*?)([-/])?[0-9]{4}(-[0-9]+)?$`)

// freeLabel is the year of start, with a number where a log has that already.
func freeLabel(c *config.Config, before ctlog.EmbeddedConfig, start time.Time) string {
	taken := make(map[string]bool)
	for _, log := range c.CTLog.Own() {
		taken[strings.TrimSuffix(log.URL, "/")] = true
	}
	for _, log := range c.CTLog.Frozen {
		taken[strings.TrimSuffix(log.URL, "/")] = true
	}
	label := strconv.Itoa(start.Year())
	for n := 2; taken[relabelURL(before.URL, label)] || exists(relabel(string(before.Directory), label)); n++ {
		label = fmt.Sprintf("%d-%d", start.Year(), n)
	}
	return label
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

// written is a log as its configuration file says it: paths relative to the file
// where they are below its folder, and no defaults.
func written(c ctlog.EmbeddedConfig, file string) ctlog.EmbeddedConfig {
	var usual ctlog.EmbeddedConfig
	usual.SetDefaults()
	c.Directory, c.MarkFile = below(c.Directory, file), below(c.MarkFile, file)
	c.Passphrase.File = below(c.Passphrase.File, file)
	if path, ok := strings.CutPrefix(string(c.Key), "file:"); ok {
		c.Key = setting.KeyRef("file:" + string(below(setting.Path(path), file)))
	}
	if c.CheckpointInterval == usual.CheckpointInterval {
		c.CheckpointInterval = 0
	}
	if c.MinFreeMB == usual.MinFreeMB {
		c.MinFreeMB = 0
	}
	if c.VerifyInterval == usual.VerifyInterval {
		c.VerifyInterval = 0
	}
	return c
}

// below is path as the file says it.
func below(path setting.Path, file string) setting.Path {
	rel, err := filepath.Rel(filepath.Dir(file), string(path))
	if path == "" || err != nil || !filepath.IsLocal(rel) {
		return path
	}
	return setting.Path(rel)
}

// carryOut makes the log and writes the configuration. What it made is taken away
// again when it fails: nobody has seen it.
func (r rotation) carryOut(ctx context.Context, file string) (err error) {
	var made []string
	defer func() {
		if err != nil {
			for _, path := range made {
				err = errors.Join(err, os.RemoveAll(path))
			}
		}
	}()
	paths := []string{string(r.next.Directory), string(r.next.MarkFile)}
	if r.newKey != "" {
		paths = append(paths, r.newKey)
	}
	for _, path := range paths {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			return &failure{code: exitFailed, mend: "move it away; nothing is overwritten", err: fmt.Errorf("%s: %w", path, os.ErrExist)}
		}
	}
	if r.newKey != "" {
		if err := r.makeKey(); err != nil {
			return err
		}
		made = append(made, r.newKey)
	}
	signer, err := keystore.Open(ctx, string(r.next.Key), kms.Options{Passphrase: r.next.Passphrase})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(string(r.next.Directory)), 0o755); err != nil { //nolint:gosec // the log is public
		return err
	}
	// Whoever makes the folder makes the log: the other one of two at once has nothing to take away.
	if err := os.Mkdir(string(r.next.Directory), 0o755); err != nil { //nolint:gosec // the log is public
		return err
	}
	made = append(made, string(r.next.Directory), string(r.next.MarkFile))
	if err := embedded.Create(ctx, r.next, embedded.Options{Signer: signer}); err != nil {
		return err
	}
	return config.Edit(file, r.change...)
}

// makeKey makes the file of the new log's key, encrypted as the last one's is.
func (r rotation) makeKey() (err error) {
	var passphrase []byte
	if !r.next.Passphrase.IsZero() {
		if passphrase, err = r.next.Passphrase.Read(); err != nil {
			return fmt.Errorf("the passphrase: %w", err)
		}
	}
	_, err = keystore.GenerateFile(r.newKey, kms.ECDSAP256, passphrase)
	return err
}
