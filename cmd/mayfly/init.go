package main

import (
	"cmp"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/ceremony"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/ca/lifecycle"
	"github.com/mayfly-ca/mayfly/ca/tuf"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/service"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/ctlog/rotation"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// The files of a CA's folder, by the names that its configuration uses.
const (
	configName      = "mayfly.yaml"
	authorityName   = "authority"
	authoritiesName = "authorities.json"
	logKeyName      = "ctlog.key.pem"
	logName         = "ctlog"
	markName        = "ctlog.mark"
	logsName        = "logs.json"
	auditName       = "audit"
	indexName       = "index.db"

	// of the repository that tells clients of the CA
	tufName       = "tuf"
	tufRootName   = "tuf.root.key.pem"
	tufPublicName = "tuf.root.pem"
	tufOnlineName = "tuf.online.key.pem"
	tufMarkName   = "tuf.mark"

	revocationsName    = "revocations"
	revocationsMark    = "revocations.mark"
	revocationsKeyName = "revocations.key.pem"
	auditKeyName       = "audit.key.pem"
)

// initOptions say what kind of CA `mayfly init` makes.
type initOptions struct {
	dir                                string
	rootKey                            string // the file of the root's key; in dir where empty
	organization, publicURL, algorithm string
	passphrase                         setting.Secret
	issuers                            []identity.IssuerConfig
	logging                            config.Logging // the zero value leaves the default
	unlimited                          bool           // no rate limits
}

func newInitCommand(streams streams) *cobra.Command {
	var o initOptions
	var issuer identity.IssuerConfig
	cmd := &cobra.Command{
		Use: "init", Short: "Create a private CA with keys in files",
		Long: `Creates a private CA in a new folder: a root (P-384, ten years), an issuing
intermediate (P-256, five years), a timestamp authority (P-256, ten years), the key
of an embedded log, the empty log, the key that signs the audit trail, a TUF repository
that tells clients of them all, and mayfly.yaml, which names them. What later commands decide, such as which
authority signs, is kept in authorities.json and logs.json; mayfly.yaml is yours
alone. The folder appears whole or not at all, and one that has something in it is
never touched.

The root's key, which the service never reads, is written to --root-key-out, such as
a medium that is kept offline, with the one that signs TUF's root beside it, and then
is nowhere else; without, it is in the folder and has to be moved.

A passphrase encrypts every private key. It comes from an environment variable
or a file, and the configuration then names that place; without one the keys are
plain files that only their owner may read.`,
		Example: `  mayfly init --dir my-ca --organization "Example, Inc." --url https://ca.example.com \
    --issuer https://accounts.google.com --audience 1234567890-example.apps.googleusercontent.com \
    --allow 'principal.san.endsWith("@example.com")' --root-key-out /media/offline/root.key.pem`,
	}
	flags := cmd.Flags()
	flags.StringVar(&o.dir, "dir", "", "folder to create (required)")
	flags.StringVar(&o.rootKey, "root-key-out", "", "new file for the root's key, outside the folder: on a medium that is kept offline")
	flags.StringVar(&o.organization, "organization", "Mayfly private CA", "the organization in the CA's certificates")
	flags.StringVar(&o.publicURL, "url", "http://127.0.0.1:5555", "the URL under which clients reach this CA; the log's name begins with it and never changes")
	flags.StringVar(&o.algorithm, "algorithm", string(kms.ECDSAP256), "the issuing key's algorithm: "+kmsAlgorithms())
	flags.StringVar(&o.passphrase.Env, "passphrase-env", "", "environment variable with a passphrase for the private keys")
	flags.StringVar((*string)(&o.passphrase.File), "passphrase-file", "", "file with a passphrase for the private keys")
	flags.StringVar(&issuer.URL, "issuer", "", "URL of a first OpenID Connect issuer to accept")
	flags.StringVar((*string)(&issuer.Type), "issuer-type", string(identity.TypeEmail), "what its tokens speak of")
	audience := flags.String("audience", "", "the audience its tokens must have (default --url, this CA's own); with clients that fix it, sigstore")
	flags.StringVar(&issuer.Allow, "allow", "", "the condition on its tokens, in CEL; required with --issuer")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if issuer.URL != "" && issuer.Allow == "" {
			return usage(`add for example --allow 'principal.san.endsWith("@example.com")', or --allow true for everybody`,
				"--issuer needs --allow: which of the identities that the issuer vouches for get a certificate")
		}
		if issuer.URL != "" {
			issuer.Audiences = []string{cmp.Or(*audience, strings.TrimSuffix(o.publicURL, "/"))}
			o.issuers = []identity.IssuerConfig{issuer}
		}
		if err := createCA(cmd.Context(), o, time.Now()); err != nil {
			return err
		}
		printCreated(streams, o)
		return nil
	}
	return cmd
}

// createCA makes the folder under another name and renames it when all is on
// disk. An error that the folder is in the way wraps os.ErrExist.
func createCA(ctx context.Context, o initOptions, now time.Time) (err error) {
	dir, err := filepath.Abs(o.dir)
	if err != nil {
		return err
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return fail("choose another folder, or move this one away: a CA is never overwritten", "%s: %w and isn't empty", o.dir, os.ErrExist)
	}
	if err := absolute(&o.rootKey); err != nil {
		return err
	}
	if o.rootKey != "" && setting.Path(o.rootKey).Inside(setting.Path(dir)) {
		return usage("name a file elsewhere, on a medium that the service never sees", "--root-key-out %s is inside the new folder", o.rootKey)
	}
	if o.rootKey != "" {
		if err := errors.Join(ceremony.Free(o.rootKey), ceremony.Free(o.tufRootKey(dir))); err != nil {
			return err
		}
	}
	var passphrase []byte
	if !o.passphrase.IsZero() {
		if passphrase, err = o.passphrase.Read(); err != nil {
			return fmt.Errorf("the passphrase: %w", err)
		}
	}
	if err := absolute((*string)(&o.passphrase.File)); err != nil {
		return err
	}
	temporary, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+".new-") // mode 0700
	if err != nil {
		return err
	}
	var created ceremony.Files
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(temporary))
			if o.rootKey != "" && created.RootKey != "" {
				err = errors.Join(err, os.Remove(created.RootKey), os.RemoveAll(o.tufRootKey(dir)))
			}
		}
	}()
	if created, err = fillCA(ctx, temporary, o, passphrase, now); err != nil {
		return err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) { // it is empty, or this fails
		return err
	}
	if err := os.Rename(temporary, dir); err != nil {
		return err
	}
	created.RootKey = "" // from here on the CA is there, and this is its key
	return durable.SyncFolder(filepath.Dir(dir))
}

// absolute is for a path, where there is one, that a flag names and a file of another folder
// is to hold: a flag's begins at the working folder, such a file's at its own.
func absolute(path *string) (err error) {
	if *path != "" {
		*path, err = filepath.Abs(*path)
	}
	return err
}

// fillCA writes keys, certificates, the empty log and the configuration. Beside an
// error it gives the authority's files where they were made.
func fillCA(ctx context.Context, dir string, o initOptions, passphrase []byte, now time.Time) (created ceremony.Files, err error) {
	in := func(name string) string { return filepath.Join(dir, name) }
	c, comments, err := initialConfig(o, now)
	if err != nil {
		return created, err
	}
	text, err := config.Marshal(c, comments)
	if err != nil {
		return created, err
	}
	at := circumstances(now)
	created, err = ceremony.CreateFiles(ceremony.CreateOptions{
		Dir: in(authorityName), RootKey: o.rootKey, Organization: o.organization,
		Passphrase: passphrase, Algorithm: kms.Algorithm(o.algorithm), Now: now, Host: at.Host, Tool: at.Tool,
	})
	if err != nil {
		return created, err
	}
	err = errors.Join(os.Mkdir(in(logName), 0o700), os.Mkdir(in(auditName), 0o700))
	keys := make(map[string]crypto.Signer)
	for _, file := range []string{in(logKeyName), in(revocationsKeyName), in(auditKeyName), in(tufOnlineName), o.tufRootKey(dir)} {
		key, failed := keystore.GenerateFile(file, kms.ECDSAP256, passphrase)
		keys[file], err = key, errors.Join(err, failed)
	}
	if err != nil {
		return created, err
	}
	public, err := publicPEM(keys[o.tufRootKey(dir)].Public())
	if err != nil {
		return created, err
	}
	// Read back as `serve` will: a CA that can't be used is never left behind.
	issuing, err := authority.Load(ctx, authority.Config{
		Chain: setting.Path(created.Chain), Key: setting.KeyRef("file:" + created.IssuingKey), Passphrase: o.passphrase,
	}, authority.LoadOptions{Now: now})
	if err != nil {
		return created, err
	}
	logKey, err := keystore.Open(ctx, "file:"+in(logKeyName), kms.Options{Passphrase: o.passphrase})
	if err != nil {
		return created, err
	}
	// `serve` never makes a log: there an empty folder means that a disk isn't mounted.
	log := c.CTLog.Embedded
	log.Directory, log.MarkFile = setting.Path(in(logName)), setting.Path(in(markName))
	// The one authority is active.
	first, moment := c.CA.Section, now.UTC().Truncate(time.Second)
	first.Authorities = slices.Clone(first.Authorities)
	first.Authorities[0].Record = lifecycle.Record{State: lifecycle.Active, Prepared: moment, Published: moment, Activated: moment}
	err = errors.Join(
		durable.WriteNew(in(tufPublicName), public, 0o644),
		embedded.Create(ctx, log, embedded.Options{Signer: logKey, Roots: authority.Single(issuing).Roots()}),
		authority.ExportStates(first, in(authoritiesName)),
		rotation.Export(c.CTLog, in(logsName)),
		durable.WriteNew(in(configName), text, 0o600))
	if err != nil || len(o.issuers) == 0 {
		return created, err // without an issuer, what clients are told isn't complete
	}
	if c, err = config.Load(in(configName)); err != nil {
		return created, err
	}
	return created, syncTUF(ctx, o.tufRootKey(dir), c, o.passphrase, service.Overrides{}, now)
}

// issuerFlags turns the names of an issuer's options into those of the flags.
var issuerFlags = strings.NewReplacer(
	"--issuer[0].url", "--issuer", "--issuer[0].type", "--issuer-type",
	"--issuer[0].audiences", "--audience", "--issuer[0].allow", "--allow",
)

// initialConfig is the configuration of a new CA, with paths relative to its folder.
func initialConfig(o initOptions, now time.Time) (*config.Config, map[string]string, error) {
	public, err := url.Parse(strings.TrimSuffix(o.publicURL, "/"))
	if err != nil || public.Host == "" || public.Scheme != "http" && public.Scheme != "https" {
		return nil, nil, usage("write it like https://ca.example.com", "--url %q isn't an http or https URL", o.publicURL)
	}
	c := config.Default()
	c.Server.PublicURL = public.String()
	if o.logging != (config.Logging{}) {
		c.Logging = o.logging
	}
	if o.unlimited {
		limits := &c.Server.RateLimits
		limits.PerAddress.Rate, limits.PerPrincipal.Rate, limits.PerIssuer.Rate, limits.Timestamps.Rate, limits.LogReads.Rate = 0, 0, 0, 0, 0
	}
	c.CA.Authorities = []authority.NamedConfig{{Name: fmt.Sprintf("y%d", now.UTC().Year()), Config: authority.Config{
		Chain:      setting.Path(filepath.Join(authorityName, "chain.pem")),
		Key:        setting.KeyRef("file:" + filepath.Join(authorityName, "issuing.key.pem")),
		Passphrase: o.passphrase,
	}}}
	c.CA.StateFile = authoritiesName
	c.Timestamp.Chain = setting.Path(filepath.Join(authorityName, "timestamp.pem"))
	c.Timestamp.Key = setting.KeyRef("file:" + filepath.Join(authorityName, "timestamp.key.pem"))
	c.Revocation.Directory = revocationsName
	c.Revocation.MarkFile = revocationsMark
	c.Revocation.Key = "file:" + revocationsKeyName
	c.Revocation.SelfService = true
	c.CTLog.Mode = ctlog.ModeEmbedded
	c.CTLog.Embedded.Directory = logName
	c.CTLog.Embedded.MarkFile = markName
	c.CTLog.Embedded.URL = fmt.Sprintf("%s/ctlog/%d", public, now.UTC().Year())
	c.CTLog.Embedded.Key = "file:" + logKeyName
	c.CTLog.Embedded.Operator = o.organization
	c.CTLog.Embedded.Start = now.UTC().Truncate(time.Second)
	c.CTLog.StateFile = logsName
	c.TUF.Directory = tufName
	c.TUF.Key = "file:" + tufOnlineName
	c.TUF.MarkFile = tufMarkName
	c.Store.Path = indexName
	c.Audit.Path = setting.Path(filepath.Join(auditName, "audit.jsonl"))
	c.Audit.KeyFile = auditKeyName
	for _, p := range []*setting.Secret{&c.Timestamp.Passphrase, &c.Revocation.Passphrase, &c.CTLog.Embedded.Passphrase, &c.TUF.Passphrase, &c.Audit.Passphrase} {
		*p = o.passphrase
	}
	if len(o.issuers) > 0 {
		var f setting.Faults
		if identity.CheckIssuers("--issuer", o.issuers, &f); f.Len() > 0 {
			return nil, nil, usage("docs/configuration.md explains each under issuers; where a type needs more than a URL, leave --issuer out and write it into "+configName,
				"%s", issuerFlags.Replace(f.Err().Error()))
		}
		c.Issuers = o.issuers
	}
	audience := "Whom its tokens are made for: clients ask their issuer for this audience."
	if len(o.issuers) > 0 && slices.Contains(o.issuers[0].Audiences, identity.SharedAudience) {
		audience = "What stock clients ask for. It is the audience of every Sigstore service: one that is\nsent a token can use it at another. allow bounds whose; one_time: true lets each be used once."
	}
	comments := map[string]string{
		"":                         "A Mayfly certificate authority, made by `mayfly init`. Only what differs from\nthe defaults is written here; docs/configuration.md lists every option.",
		"issuers[0].audiences":     audience,
		"issuers":                  "Whose tokens are accepted. At least one is needed.",
		"ca":                       "The authority that signs. Its root's key is not used: keep it offline.\n`mayfly authority` keeps in state_file which one signs.",
		"timestamp":                "The timestamp authority, with which signatures outlive their certificates. Remove\nthis section where another gives timestamps.",
		"revocation":               "What was revoked, for good. access.admins says who may revoke what isn't theirs.",
		"ctlog":                    "The embedded log. Its URL is its name and can't change over its life.",
		"tuf":                      "Where clients get the trust root. One key, tuf.root.key.pem, signs it alone: for trying out.",
		"store":                    "What was issued, for `mayfly search`: made from the logs, and can be made again.",
		"server":                   "Listens on 127.0.0.1 unless http_address and grpc_address say otherwise.",
		"ctlog.embedded.mark_file": "How large the log has been: never restore it from a backup together with the log.",
	}
	return c, comments, nil
}

// printCreated says what is where, what to take offline and what comes next.
func printCreated(streams streams, o initOptions) {
	in := func(names ...string) string { return filepath.Join(append([]string{o.dir}, names...)...) }
	offline, rootKey := "Take offline now, onto media that you keep in two places, and delete here:", in(authorityName, "root.key.pem")
	if o.rootKey != "" {
		offline, rootKey = "The keys of the roots are here alone. Keep them offline, in two places:", o.rootKey
	}
	fmt.Fprintf(streams.Out, `A private CA is in %s.

  %-34s what `+"`mayfly serve`"+` reads
  %-34s the issuing key, the timestamp authority's, and their chains
  %-34s the log, its key and its high-water mark
  %-34s what later commands decide

%s
  %s
  %s

Give to clients (with the URLs it holds, once the CA runs: %s/trusted_root.json):
  %s
`, o.dir, in(configName), in(authorityName), in(logName)+"*", in(authoritiesName)+", "+logsName, offline, rootKey, o.tufRootKey(o.dir),
		strings.TrimSuffix(o.publicURL, "/"), in(authorityName, "root.pem"))
	if r, err := tuf.Load(in(tufName)); err == nil {
		printClients(streams.Out, o.publicURL, r)
		fmt.Fprintf(streams.Out, "\n%s\nNext:\n", tufAlone)
	} else {
		fmt.Fprintf(streams.Out, "\nNext: add an issuer under `issuers:` in %[1]s, then run\n  %[4]s tuf init --config %[1]s --key %[2]s --threshold 1\n"+
			"  %[4]s tuf sign tuf-draft.json --key file:%[3]s\n  %[4]s tuf publish --config %[1]s tuf-draft.json\n", in(configName), in(tufPublicName), o.tufRootKey(o.dir), os.Args[0])
	}
	fmt.Fprintf(streams.Out, "  %[1]s check --config %[2]s\n  %[1]s serve --config %[2]s\n", os.Args[0], in(configName))
}

// tufRootKey is the file of the key that signs alone: beside the root's, where that is
// elsewhere than in dir.
func (o *initOptions) tufRootKey(dir string) string {
	if o.rootKey != "" {
		dir = filepath.Dir(o.rootKey)
	}
	return filepath.Join(dir, tufRootName)
}

// syncTUF publishes what a configuration says to clients, signed with the one key of
// the file, where that differs from what was published; without the key nothing.
func syncTUF(ctx context.Context, keyFile string, c *config.Config, passphrase setting.Secret, o service.Overrides, now time.Time) error {
	if _, err := os.Stat(keyFile); !c.TUF.Enabled() || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	with := quiet()
	with.Now = func() time.Time { return now }
	documents, err := service.Documents(ctx, c, with, o)
	if err != nil {
		return startFailure(err, "")
	}
	key, err := keystore.Open(ctx, "file:"+keyFile, kms.Options{Passphrase: passphrase})
	if err != nil {
		return err
	}
	online, err := service.OpenTUFKey(ctx, c.TUF, quiet())
	if err != nil {
		return err
	}
	defer kms.Close(online)
	var d *tuf.Draft
	r, err := loadTUF(c)
	if errors.Is(err, tuf.ErrNothing) {
		only := []crypto.PublicKey{key.Public()} // it signs root and targets alone, for trying out
		d, err = tuf.Init(tuf.Keys{Root: only, Targets: only, Threshold: 1, Online: online.Public()}, documents, now)
	} else if err == nil {
		changes, failed := r.Drift(documents)
		if failed != nil || len(changes) == 0 && !r.Old(now) {
			return failed
		}
		d, err = tuf.Renew(r, documents, now)
	}
	if err != nil {
		return err
	}
	if _, err := d.Sign(ctx, key); err != nil {
		return err
	}
	_, err = tuf.Publish(ctx, string(c.TUF.Directory), d, online, now)
	return err
}
