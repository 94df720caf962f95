package main

import (
	"context"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/service"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/devissuer"
	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/pemfile"
	"github.com/mayfly-ca/mayfly/internal/secretfile"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// The files that `mayfly dev` adds to a CA's folder.
const (
	issuerKeyName     = "issuer.key.pem"
	endpointsName     = "endpoints.json"
	trustedRootName   = "trusted_root.json"
	signingConfigName = "signing_config.json"
)

// devIssuerURL stands for the development issuer in the configuration on disk:
// the URL that it really has, with its port, takes the place of this one.
const devIssuerURL = "http://127.0.0.1:5556"

// devOptions say where `mayfly dev` keeps its state and listens.
type devOptions struct {
	dir                         string
	http, grpc, issuer, metrics string
}

// endpoints is what endpoints.json says once everything answers.
type endpoints struct {
	HTTP          string `json:"http"`
	GRPC          string `json:"grpc"` // host:port
	Issuer        string `json:"issuer"`
	Metrics       string `json:"metrics"`
	CTLog         string `json:"ctlog,omitempty"`
	TrustedRoot   string `json:"trusted_root"`
	SigningConfig string `json:"signing_config"`
	Dir           string `json:"dir"`
}

func newDevCommand(streams streams) *cobra.Command {
	var o devOptions
	cmd := &cobra.Command{
		Use: "dev", Short: "Run everything on loopback, with a development issuer",
		Long: `Runs a whole certificate authority on this machine: a private CA and its log in
DIR, made on the first start and kept from then on, and a development issuer
that gives anybody on this machine a token for any identity. It listens on
loopback alone. Port 0 takes a free port; DIR/endpoints.json then says which,
is written when everything answers, and goes when it doesn't any more.

DIR/mayfly.yaml is an ordinary configuration: edit it to try an option out, while
it runs where that is possible.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, address := range []string{o.http, o.grpc, o.issuer, o.metrics} {
				if err := devissuer.CheckLoopback(address); err != nil {
					return usage("`mayfly serve` is for other addresses", "%w", err)
				}
			}
			return dev(cmd.Context(), o, streams)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.dir, "dir", "./mayfly-data", "folder for keys, log, audit trail and configuration")
	flags.StringVar(&o.http, "http-address", "127.0.0.1:5555", "where REST listens")
	flags.StringVar(&o.grpc, "grpc-address", "127.0.0.1:5554", "where gRPC listens")
	flags.StringVar(&o.issuer, "issuer-address", "127.0.0.1:5556", "where the development issuer listens")
	flags.StringVar(&o.metrics, "metrics-address", "127.0.0.1:2112", "where metrics listen")
	return cmd
}

// dev makes what is missing, starts the issuer and the CA, and runs until ctx ends.
func dev(ctx context.Context, o devOptions, streams streams) error {
	if err := ensureDevCA(ctx, o.dir, streams); err != nil {
		return err
	}
	file := filepath.Join(o.dir, configName)
	c, err := loadConfig(file)
	if err != nil {
		return err
	}
	tuneGC(c)
	if err := asOwner(c, os.Geteuid()); err != nil {
		return err
	}
	for _, log := range c.CTLog.Own() { // before anything in the folder changes
		if used, err := logdir.Dir(log.Directory).InUse(); err != nil || used {
			return fail("end that one, or take another folder with --dir", "%w", errors.Join(fmt.Errorf("another mayfly runs in %s", o.dir), err))
		}
	}
	if err := removeEndpoints(o.dir); err != nil { // of a run that was killed
		return err
	}
	key, err := issuerKey(filepath.Join(o.dir, issuerKeyName))
	if err != nil {
		return err
	}
	rest, atIssuer, err := o.listen(ctx)
	if err != nil {
		return err
	}
	publicURL, issuerURL := "http://"+rest.Addr().String(), "http://"+atIssuer.Addr().String()
	locate(c, o, publicURL, issuerURL)
	logger := openLog(c.Logging, streams.Err)
	defer logger.Close()
	issuer, err := devissuer.New(devissuer.Options{URL: issuerURL, Key: key, Logger: logger.Logger})
	if err != nil {
		return errors.Join(err, closeListeners(rest, atIssuer))
	}
	overrides := service.Overrides{HTTPListener: rest, LogBase: publicURL}
	// What this run says to clients is published before it is in force, at the start and when DIR/mayfly.yaml is read again.
	publish := func(c *config.Config) error {
		return syncTUF(ctx, filepath.Join(o.dir, tufRootName), c, setting.Secret{}, overrides, time.Now())
	}
	if err := publish(c); err != nil {
		return errors.Join(err, closeListeners(rest, atIssuer))
	}
	s, err := service.Open(ctx, c, logger.dependencies(streams), overrides, service.Source{File: file, Load: func() (*config.Config, error) {
		c, err := config.Load(file)
		if err != nil {
			return nil, err
		}
		locate(c, o, publicURL, issuerURL)
		return c, publish(c)
	}})
	if err != nil {
		return errors.Join(startFailure(err, otherAddress("--grpc-address or --metrics-address")), closeListeners(rest, atIssuer))
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return serveIssuer(ctx, atIssuer, issuer.Handler()) })
	group.Go(func() error { return s.Run(ctx) })
	group.Go(func() error { return announce(ctx, o.dir, s, issuer.URL(), logURL(c, time.Now()), streams) })
	return errors.Join(group.Wait(), removeEndpoints(o.dir))
}

// issuerKey reads the development issuer's key at path, and makes it where there is none.
func issuerKey(path string) (*rsa.PrivateKey, error) {
	if !exists(path) {
		if _, err := keystore.GenerateFile(path, kms.RSA2048, nil); err != nil {
			return nil, err
		}
	}
	text, err := secretfile.Read(path)
	if err != nil {
		return nil, fmt.Errorf("the development issuer's key: %w", err)
	}
	parsed, err := pemfile.PrivateKey(text, nil)
	if err != nil {
		return nil, fmt.Errorf("the development issuer's key %s can't be read; remove the file to have a new one made: %w", path, err)
	}
	key, ok := parsed.(*rsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("the development issuer's key %s is not RSA; remove the file to have a new one made", path)
	}
	return key, nil
}

// removeEndpoints takes back what says that everything answers.
func removeEndpoints(dir string) error { return os.RemoveAll(filepath.Join(dir, endpointsName)) }

// closeListeners closes those that nobody has closed before.
func closeListeners(all ...net.Listener) error {
	var errs []error
	for _, l := range all {
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// ensureDevCA makes the CA on the first start.
func ensureDevCA(ctx context.Context, dir string, streams streams) error {
	if _, err := os.Stat(filepath.Join(dir, configName)); err == nil {
		return nil
	}
	fmt.Fprintf(streams.Err, "creating a CA and a log in %s\n", dir)
	return createCA(ctx, initOptions{
		dir: dir, organization: "Mayfly development", publicURL: "http://127.0.0.1:5555", algorithm: "ECDSA-P256",
		logging:   config.Logging{Level: "info", Format: "text"},
		unlimited: true, // everybody here is one address, and often one identity
		issuers: []identity.IssuerConfig{{
			URL: devIssuerURL, Type: identity.TypeEmail, Audiences: []string{devissuer.DefaultAudience}, AllowInsecureLoopback: true, Allow: "true",
		}},
	}, time.Now())
}

// locate puts the addresses of this run into the configuration.
func locate(c *config.Config, o devOptions, publicURL, issuerURL string) {
	c.Server.HTTPAddress, c.Server.GRPCAddress, c.Server.MetricsAddress = o.http, o.grpc, o.metrics
	c.Server.PublicURL = publicURL
	c.CTLog.Propagation = 0 // who runs this is its client
	c.Access.Loopback = true
	if !c.Page.Enabled() {
		c.Page.Access = "loopback" // page.Loopback
	}
	if !c.Store.Enabled() { // of a folder that an earlier mayfly made
		c.Store.Path = setting.Path(filepath.Join(o.dir, indexName))
	}
	for i := range c.Issuers {
		if c.Issuers[i].URL == devIssuerURL {
			c.Issuers[i].URL = issuerURL
		}
	}
}

// logURL is where the log that takes certificates now is served in this run; its
// name stays what it was made with.
func logURL(c *config.Config, now time.Time) string {
	for _, log := range c.CTLog.Own() {
		u, err := url.Parse(log.URL)
		if window := (ctlog.Description{Start: log.Start, End: log.End}); err == nil && window.Holds(now) {
			return c.Server.PublicURL + u.Path
		}
	}
	return ""
}

// listen opens the addresses that dev itself serves. The error names every address
// of all that is taken, with its flag; those of the service are only tried.
func (o devOptions) listen(ctx context.Context) (rest, issuer net.Listener, err error) {
	var taken []error
	var flags []string
	var open []net.Listener
	for _, one := range []struct{ flag, address string }{
		{"--http-address", o.http}, {"--issuer-address", o.issuer}, {"--grpc-address", o.grpc}, {"--metrics-address", o.metrics},
	} {
		if l, err := new(net.ListenConfig).Listen(ctx, "tcp", one.address); err == nil {
			open = append(open, l)
		} else {
			taken, flags = append(taken, err), append(flags, one.flag)
		}
	}
	if len(taken) > 0 {
		return nil, nil, fail(otherAddress(strings.Join(flags, ", ")), "%w", errors.Join(append(taken, closeListeners(open...))...))
	}
	return open[0], open[1], closeListeners(open[2:]...)
}

func otherAddress(flags string) string {
	return "another mayfly may run already; give other addresses with " + flags + "; port 0 takes a free one"
}

// serveIssuer serves the development issuer until ctx ends.
func serveIssuer(ctx context.Context, l net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	stopped := make(chan error, 1)
	defer context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		stopped <- srv.Shutdown(grace)
	})()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return <-stopped
}

// announce writes the endpoints and the documents once the service is ready,
// and says what to try.
func announce(ctx context.Context, dir string, s *service.Service, issuer, logURL string, streams streams) error {
	if s.AwaitReady(ctx) != nil {
		return nil //nolint:nilerr // it was told to stop before it was ready
	}
	at, documents := s.Addresses(), s.Documents()
	e := endpoints{
		HTTP: s.PublicURL(), GRPC: at.GRPC.String(), Issuer: issuer, Metrics: "http://" + at.Metrics.String(),
		CTLog: logURL, TrustedRoot: s.PublicURL() + "/trusted_root.json", SigningConfig: s.PublicURL() + "/signing_config.json", Dir: dir,
	}
	text, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return err
	}
	for _, file := range []struct {
		name string
		data []byte
	}{
		{trustedRootName, documents.TrustedRoot}, {signingConfigName, documents.SigningConfig},
		{endpointsName, append(text, '\n')}, // last: it says that everything answers
	} {
		if err := durable.Put(filepath.Join(dir, file.name), file.data, 0o644); err != nil {
			return err
		}
	}
	fmt.Fprintf(streams.Out, `Mayfly is ready. Everything is on this machine alone; state is in %[1]s.

  page      %[2]s/
  REST      %[2]s
  gRPC      %[3]s
  issuer    %[4]s
  metrics   %[5]s/metrics
  log       %[6]s

Try it, and with cosign, which needs no URL after the first line (TUF_ROOT keeps it apart):
  export TUF_ROOT=%[1]s/cosign && cosign initialize --mirror %[2]s/tuf --root %[2]s/tuf/1.root.json
  curl -s '%[4]s/dev/token?email=alice@example.com' | mayfly request --ca %[2]s --token-stdin
Ctrl-C ends it.
`, dir, e.HTTP, e.GRPC, e.Issuer, e.Metrics, e.CTLog)
	return nil
}
