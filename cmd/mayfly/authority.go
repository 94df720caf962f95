package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mayfly-ca/mayfly/ca/authority"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/lifecycle"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/ca/tuf"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

func newAuthorityCommand(streams streams) *cobra.Command {
	cmd := group("authority", "Let one certificate authority follow another", `Takes certificate authorities through their life: prepared, published, active,
retired, distrusted. Exactly one is active and signs. The trust bundle and the
trusted root list every published, active and retired one with its window.

The states are kept in ca.state_file; no command writes the configuration. A running
service takes a change up by itself. docs/authorities.md goes through a whole rotation.`,
		newAuthorityListCommand(streams), newAuthorityPrepareCommand(streams), newAuthorityActivateCommand(streams))
	for _, s := range authoritySteps {
		cmd.AddCommand(newAuthorityStepCommand(streams, s))
	}
	return cmd
}

// authorityStep is a command that only takes a step.
type authorityStep struct {
	action            lifecycle.Action
	short, long, done string
}

var authoritySteps = []authorityStep{
	{
		action: lifecycle.Publish, short: "Tell clients to trust an authority that will sign",
		long: `Checks key and chain again and lists the authority in the trust bundle and the
trusted root. It signs nothing yet: that is for ` + "`mayfly authority activate`" + `, once
clients had ca.propagation to fetch the trusted root. A retired authority is
published again before it can sign again, since clients know its window as closed.`,
		done: "is published",
	},
	{
		action: lifecycle.Retire, short: "Withdraw a published authority",
		long: `Ends the window of a published authority that isn't to sign after all: it ends an
hour from now. The active one is retired by activating another. A retired one is
left as it is, unless --again moves the end of its window to an hour from now.`,
		done: "is retired; what it signed stays trusted",
	},
	{
		action: lifecycle.Distrust, short: "Take an authority out of the trusted root",
		long: `Takes a prepared, published or retired authority out of the trust bundle and the
trusted root: clients that fetch them refuse everything that it ever signed. This
can't be taken back. The active one can't be distrusted: activate another first.`,
		done: "is distrusted: clients refuse what it signed once they have fetched the trusted root",
	},
}

func newAuthorityStepCommand(streams streams, s authorityStep) *cobra.Command {
	var again bool
	cmd := &cobra.Command{Use: string(s.action) + " NAME", Short: s.short, Long: s.long}
	if s.action == lifecycle.Retire {
		cmd.Flags().BoolVar(&again, "again", false, "also move the end of a retired authority's window: clients trust for longer what its key signs")
	}
	return withAuthorities(cmd, func(cmd *cobra.Command, _ *config.Config, store *authority.Store, name string) error {
		t := lifecycle.Terms{Now: time.Now(), Propagation: store.Section.Propagation, Again: again}
		if err := takeStep(cmd.Context(), store, name, s.action, t); err != nil {
			return err
		}
		fmt.Fprintf(streams.Out, "%s %s.\n", name, s.done)
		if i := lifecycle.Find(store.Records, name); s.action == lifecycle.Publish {
			fmt.Fprintf(streams.Out, "next: %s\n", inWords(nextSteps(store.Records, i, t), store.Records[i].State, store.Records[i].Forced))
		}
		return nil
	})
}

func newAuthorityPrepareCommand(streams streams) *cobra.Command {
	var a kmsAccess
	cmd := &cobra.Command{
		Use: "prepare NAME", Short: "Check the key and the chain of a new authority, and take it up",
		Long: `Opens the key, has it sign, and checks that the chain is its own and fit to issue.
With --chain and --key the authority is added to those of the configuration, in the
state file; without them ca.authorities has to name it. No client hears of it yet.`,
		Example: `  mayfly authority prepare y2027 --config mayfly.yaml --chain y2027/chain.pem --key file:y2027/issuing.key.pem`,
	}
	chain := cmd.Flags().String("chain", "", "PEM file with its chain: issuing certificate first, root last")
	key := cmd.Flags().String("key", "", "the issuing certificate's key: file:PATH or a key in a KMS")
	a.flags(cmd, "", "the key")
	return withAuthorities(cmd, func(cmd *cobra.Command, _ *config.Config, store *authority.Store, name string) error {
		added := *chain != "" || *key != ""
		if added {
			named, err := newAuthority(name, *chain, *key, a)
			if err != nil {
				return err
			}
			if err := store.Add(named); err != nil {
				return usage("leave out --chain and --key, or choose another name", "%w", err)
			}
		}
		err := takeStep(cmd.Context(), store, name, lifecycle.Prepare, lifecycle.Terms{Now: time.Now()})
		if f := (*failure)(nil); added && errors.As(err, &f) && errors.As(err, new(*setting.FaultError)) {
			f.fix = "correct --chain, --key or what belongs to the key; nothing was written"
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(streams.Out, "%s is prepared: its key signs, and its chain fits.\nnext: publish\n", name)
		return nil
	})
}

// newAuthority is the entry for the state file, which writes a flag's paths, that begin
// at the working folder, as they begin at its own.
func newAuthority(name, chain, key string, a kmsAccess) (authority.NamedConfig, error) {
	var f setting.Faults
	if authority.CheckName("NAME", name, &f); f.Len() > 0 {
		return authority.NamedConfig{}, usage("choose another name", "%v", f.Err())
	}
	if chain == "" || key == "" {
		return authority.NamedConfig{}, usage("give both, or neither where ca.authorities names them", "--chain and --key belong together")
	}
	c := authority.Config{Chain: setting.Path(chain), Key: setting.KeyRef(key), Passphrase: a.passphrase, Access: a.access, SealedKey: setting.Path(a.sealedKey)}
	if c.SealedKey != "" {
		c.Mode = authority.ModeSealed
	}
	return authority.NamedConfig{Name: name, Config: c}, nil
}

const forceRisk = `%s was forced. Clients that haven't fetched the trusted root since it was published
refuse every certificate from now on until they do.
`

func newAuthorityActivateCommand(streams streams) *cobra.Command {
	cmd := &cobra.Command{
		Use: "activate NAME", Short: "Let a published authority sign, and retire the one that did",
		Long: `Lets a published authority sign, and retires the active one in the same step: what
that one signed stays trusted, and its window in the trusted root ends an hour
later. The propagation guard holds this back until the authority has been
published for ca.propagation; --url also looks at the trusted root that clients
are given. --force overrides both, says so in the state and in the service's log,
and makes every client that hasn't fetched the trusted root since refuse what is
signed. It is for the hour after a key was stolen.`,
		Example: "  mayfly authority activate y2027 --config mayfly.yaml --url https://ca.example.com",
	}
	url := cmd.Flags().String("url", "", "where clients reach this CA: its /trusted_root.json must list the authority")
	force := cmd.Flags().Bool("force", false, "activate although clients may not know it yet; they then refuse its certificates")
	return withAuthorities(cmd, func(cmd *cobra.Command, c *config.Config, store *authority.Store, name string) (err error) {
		t := lifecycle.Terms{Now: time.Now(), Propagation: store.Section.Propagation, Force: *force}
		if t.SignedSince, err = signedSince(c); err != nil {
			return err
		}
		if *url != "" && !*force {
			if err := published(cmd.Context(), store.Section, *url, name, t.Now); err != nil {
				return err
			}
		}
		if err := takeStep(cmd.Context(), store, name, lifecycle.Activate, t); err != nil {
			return err
		}
		if store.Records[lifecycle.Find(store.Records, name)].Forced != "" {
			fmt.Fprintf(streams.Err, forceRisk, name)
		}
		fmt.Fprintf(streams.Out, "%s is active.\n", name)
		for _, e := range store.Records {
			if e.State == lifecycle.Retired && e.Retired.Equal(t.Now.UTC().Truncate(time.Second)) {
				fmt.Fprintf(streams.Out, "%s is retired; its window ends at %s.\n", e.Name, e.WindowEnd().UTC().Format(time.RFC3339))
			}
		}
		return nil
	})
}

func newAuthorityListCommand(streams streams) *cobra.Command {
	cmd := &cobra.Command{Use: "list", Short: "Show every authority's state, window, end, key and next steps"}
	asJSON := jsonFlag(cmd)
	return withConfig(cmd, namedAuthorities, func(_ *cobra.Command, _ string, c *config.Config, _ []string) error {
		records, err := c.CA.Records()
		if err != nil {
			return startFailure(err, "")
		}
		t := lifecycle.Terms{Now: time.Now(), Propagation: c.CA.Propagation}
		if t.SignedSince, err = signedSince(c); err != nil {
			return err
		}
		all := []listedAuthority{}
		for i, a := range c.CA.All() {
			l := listedAuthority{
				Name: a.Name, State: a.State, Since: a.Since().UTC(), Key: string(a.Key), Next: nextSteps(records, i, t), Forced: records[i].Forced,
			}
			l.read(a)
			all = append(all, l)
		}
		return show(streams.Out, *asJSON, map[string]any{"authorities": all}, func(w io.Writer) { printAuthorities(w, all) })
	})
}

// listedAuthority is an authority as `mayfly authority list` has it.
type listedAuthority struct {
	Name         string          `json:"name"`
	State        lifecycle.State `json:"state"`
	Since        time.Time       `json:"since,omitzero"`
	TrustedFrom  time.Time       `json:"trusted_from,omitzero"` // where clients trust what it signed
	TrustedUntil time.Time       `json:"trusted_until,omitzero"`
	NotAfter     time.Time       `json:"not_after,omitzero"`
	Authority    string          `json:"authority"` // the key identifier, which certificates have
	Key          string          `json:"key"`
	Next         []nextStep      `json:"next"`
	Forced       string          `json:"forced,omitempty"`
}

// nextStep is what can follow the state of an authority, and from when.
type nextStep struct {
	Step  string    `json:"step"`
	After time.Time `json:"after,omitzero"`
}

// read takes from the chain in which time clients trust what the authority signed, and until when it is valid.
func (l *listedAuthority) read(a authority.NamedConfig) {
	certs, err := readChain(nil, string(a.Chain))
	if err != nil {
		return // text says that it can't be read, JSON by what is absent
	}
	l.Authority, l.NotAfter = hex.EncodeToString(certs[0].SubjectKeyId), certs[0].NotAfter.UTC()
	if !a.Listed() {
		return
	}
	l.TrustedFrom, l.TrustedUntil = certs[0].NotBefore.UTC(), l.NotAfter
	if closed := a.WindowEnd(); !closed.IsZero() && closed.Before(l.TrustedUntil) {
		l.TrustedUntil = closed.UTC()
	}
}

func printAuthorities(w io.Writer, all []listedAuthority) {
	t := newTable(w, "NAME", "STATE", "SINCE", "WINDOW", "VALID TO", "KEY", "NEXT")
	for _, l := range all {
		window, end := "-", l.NotAfter.Format(time.DateOnly)
		if l.NotAfter.IsZero() {
			end = "unreadable"
		} else if !l.TrustedFrom.IsZero() {
			window = l.TrustedFrom.Format(time.DateOnly) + " to " + l.TrustedUntil.Format(time.DateOnly)
		}
		t.row(l.Name, cmp.Or(string(l.State), "-"), moment(l.Since), window, end, l.Key, inWords(l.Next, l.State, l.Forced))
	}
	_ = t.Flush() // which show buffers
}

// exportStates is what to do where a configuration has states itself.
func exportStates(file string) string {
	return "run `mayfly config export-states --config " + file + "`: it makes the state file and says which lines of the configuration to change"
}

// namedAuthorities reads a configuration with authorities that have states.
func namedAuthorities(file string) (*config.Config, error) {
	c, err := loadConfig(file)
	if err != nil {
		return nil, err
	}
	if len(c.CA.All()) == 0 {
		return nil, fail("write it as the first of ca.authorities, with a name and `state: active`: docs/authorities.md",
			"%s has one authority, which is always active", file)
	}
	return c, nil
}

// withAuthorities has cmd change the authority that its argument names, in the store of a
// configuration's.
func withAuthorities(cmd *cobra.Command, run func(cmd *cobra.Command, c *config.Config, s *authority.Store, name string) error) *cobra.Command {
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, _ string) (names []string, _ cobra.ShellCompDirective) {
		if c, err := namedAuthorities(cmd.Flag("config").Value.String()); err == nil && len(args) == 0 {
			for _, a := range c.CA.All() {
				names = append(names, a.Name)
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
	return withConfig(cmd, namedAuthorities, func(cmd *cobra.Command, file string, c *config.Config, args []string) error {
		if c.CA.StateFile == "" {
			return fail(exportStates(file), "%s has the states of its authorities itself, and no command writes a configuration", file)
		}
		s, err := authority.OpenStore(c.CA.Section)
		if err != nil {
			return startFailure(err, "")
		}
		defer s.Close()
		return run(cmd, c, s, args[0])
	})
}

// takeStep takes a step and writes it down.
func takeStep(ctx context.Context, s *authority.Store, name string, action lifecycle.Action, t lifecycle.Terms) error {
	if lifecycle.Find(s.Records, name) < 0 {
		return usage("`mayfly authority list` shows those that there are; `prepare` with --chain and --key adds one", "there is no authority %q", name)
	}
	err := s.Step(ctx, name, action, t, authority.LoadOptions{Now: time.Now(), KMS: kms.Options{Logger: quiet().Logger}})
	switch {
	case errors.Is(err, lifecycle.ErrTooSoon):
		return fail("wait, or see what --force risks: mayfly authority activate --help", "%w", err)
	case errors.As(err, new(*lifecycle.NoStepError)):
		return fail("`mayfly authority list` shows what can follow", "%w", err)
	}
	return startFailure(err, "")
}

// nextSteps says what can follow the state of records[i], and from when.
func nextSteps(records []lifecycle.Entry, i int, t lifecycle.Terms) []nextStep {
	all := []nextStep{}
	for _, a := range lifecycle.Next(records[i].Record) {
		step := nextStep{Step: string(a)}
		if a == lifecycle.Activate {
			if wait := lifecycle.Wait(records, i, t); wait > 0 {
				step.After = t.Now.Add(wait).UTC().Truncate(time.Second)
			}
		}
		all = append(all, step)
	}
	return all
}

// inWords puts steps into words, and that the authority was forced.
func inWords(steps []nextStep, state lifecycle.State, forced string) string {
	var words []string
	for _, s := range steps {
		if !s.After.IsZero() {
			s.Step += " after " + moment(s.After)
		}
		words = append(words, s.Step)
	}
	if state == lifecycle.Active {
		words = append(words, "activate another")
	}
	text := cmp.Or(strings.Join(words, ", "), "-")
	if forced != "" {
		text += " (forced " + forced + ")"
	}
	return text
}

// publishedTimeout bounds the look at what clients are given.
const publishedTimeout = 10 * time.Second

// published is nil when the trusted root at url lists the authority at the time now.
func published(ctx context.Context, c authority.Section, url, name string, now time.Time) error {
	all := c.All()
	i := slices.IndexFunc(all, func(a authority.NamedConfig) bool { return a.Name == name })
	if i < 0 {
		return nil // the step says so
	}
	certs, err := readChain(nil, string(all[i].Chain))
	if err != nil {
		return err
	}
	root, err := fetchTrustedRoot(ctx, url)
	if err != nil {
		return &failure{code: exitUnavailable, fix: "give --url as clients reach this CA, or leave it out", err: err}
	}
	for _, a := range root.Authorities {
		if bytes.Equal(a.Chain[0].Raw, certs[0].Raw) && a.Holds(now) {
			return nil
		}
	}
	return fail("see in the service's log and at /readyz?verbose that it took the change up, and wait for ca.propagation from then",
		"the trusted root at %s doesn't list %s: %w", url, name, lifecycle.ErrTooSoon)
}

// fetchTrustedRoot reads what clients of the CA at url read.
func fetchTrustedRoot(ctx context.Context, url string) (*trustroot.History, error) {
	ctx, cancel := context.WithTimeout(ctx, publishedTimeout)
	defer cancel()
	hc := client.NewHTTPClient()
	defer hc.CloseIdleConnections()
	b, err := client.Fetch(ctx, hc, client.Retry{Attempts: 1}, "the CA", strings.TrimSuffix(url, "/")+"/trusted_root.json")
	if err != nil {
		return nil, err
	}
	return trustroot.Parse(b)
}

// signedSince is what the propagation guard asks of the repository of a configuration;
// nil where nothing is published.
func signedSince(c *config.Config) (func(name string) (time.Time, bool), error) {
	if !c.TUF.Enabled() {
		return nil, nil //nolint:nilnil // there is nobody to ask
	}
	r, err := loadTUF(c)
	if errors.Is(err, tuf.ErrNothing) {
		return nil, nil //nolint:nilnil // there is nobody to ask
	}
	if err != nil {
		return nil, err
	}
	all := c.CA.All()
	return func(name string) (time.Time, bool) {
		i := slices.IndexFunc(all, func(a authority.NamedConfig) bool { return a.Name == name })
		if i < 0 {
			return time.Time{}, false
		}
		chain, err := readChain(nil, string(all[i].Chain))
		if err != nil {
			return time.Time{}, false
		}
		return r.Listed(sha256.Sum256(chain[0].Raw))
	}, nil
}
