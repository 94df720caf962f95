package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/grpclog"

	"github.com/mayfly-ca/mayfly/ca/notify"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/service"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/supervisor"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/ctlog/follow"
	"github.com/mayfly-ca/mayfly/identity"
	"github.com/mayfly-ca/mayfly/identity/devissuer"
	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/logqueue"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/store"
	"github.com/mayfly-ca/mayfly/internal/terminal"
	"github.com/mayfly-ca/mayfly/server"
)

func newServeCommand(streams streams) *cobra.Command {
	hangup := make(chan os.Signal, 1)
	return withConfig(&cobra.Command{
		Use: "serve", Short: "Run a certificate authority from a configuration",
		Long: `Runs a certificate authority. Nothing is implied and nothing created: every key,
certificate and folder that the configuration names has to be there, and all that
is wrong is reported at once. SIGTERM or Ctrl-C drains: new requests are refused
with 503, those in flight finish. When the configuration changes, or a file that
it names for issuers, TLS and authorities, and at SIGHUP, it is read again: a good one is in
force at once, a bad one leaves the old in force.`,
	}, func(file string) (*config.Config, error) {
		signal.Notify(hangup, syscall.SIGHUP) // from the first moment: until somebody listens, the signal ends the process
		return loadConfig(file)
	}, func(cmd *cobra.Command, file string, c *config.Config, _ []string) error {
		defer signal.Stop(hangup)
		return serve(cmd.Context(), c, service.Source{File: file, Load: func() (*config.Config, error) { return config.Load(file) }, Hangup: hangup}, streams)
	})
}

// withConfig gives cmd the required --config, and has it run with what load reads there.
func withConfig(cmd *cobra.Command, load func(file string) (*config.Config, error), run func(cmd *cobra.Command, file string, c *config.Config, args []string) error) *cobra.Command {
	file := cmd.Flags().String("config", "", "the configuration file (required)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := load(*file)
		if err != nil {
			return err
		}
		return run(cmd, *file, c, args)
	}
	return cmd
}

func loadConfig(file string) (*config.Config, error) { return loadWith(config.Load, file) }

func loadWith(load func(string) (*config.Config, error), file string) (*config.Config, error) {
	c, err := load(file)
	switch {
	case err == nil:
		return c, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, fail("", "%w", err)
	case errors.Is(err, fs.ErrPermission):
		return nil, fail("run it as the user of the service, or let this one read the file", "%w", err)
	}
	return nil, fail("docs/configuration.md lists every option", "%w", err)
}

// serve opens a service and runs it until ctx ends.
func serve(ctx context.Context, c *config.Config, from service.Source, streams streams) error {
	tuneGC(c)
	if err := asOwner(c, os.Geteuid()); err != nil {
		return err
	}
	logger := openLog(c.Logging, streams.Err)
	defer logger.Close()
	by := supervisor.FromEnvironment(os.Getenv)
	told := func(err error) {
		if err != nil { // it will find out by itself
			logger.LogAttrs(ctx, slog.LevelWarn, "systemd couldn't be told of the service", slog.Any("error", err))
		}
	}
	from.Watch = func(done bool) {
		if done {
			told(by.Ready())
		} else {
			told(by.Reloading())
		}
	}
	s, err := service.Open(ctx, c, logger.dependencies(streams), service.Overrides{}, from)
	if err != nil {
		return startFailure(err, "change server.http_address, grpc_address or metrics_address, or end what listens there")
	}
	at := s.Addresses()
	attrs := []slog.Attr{
		slog.String("version", thisBuild().Version), slog.String("http", at.HTTP.String()),
		slog.String("authority", s.ActiveAuthority()), slog.Int("issuers", len(c.Issuers)), slog.String("log", string(c.CTLog.Mode)),
	}
	if at.GRPC != nil {
		attrs = append(attrs, slog.String("grpc", at.GRPC.String()))
	}
	if at.Metrics != nil {
		attrs = append(attrs, slog.String("metrics", at.Metrics.String()))
	}
	logger.LogAttrs(ctx, slog.LevelInfo, "serving", attrs...)
	defer context.AfterFunc(ctx, func() { told(by.Stopping()) })()
	alive, cancel := context.WithCancel(context.WithoutCancel(ctx)) // while it drains too
	var watching sync.WaitGroup
	watching.Go(func() { told(by.Watch(alive)) })
	told(by.Ready())
	err = s.Run(ctx)
	cancel()
	if watching.Wait(); err != nil {
		return err
	}
	logger.LogAttrs(context.WithoutCancel(ctx), slog.LevelInfo, "stopped")
	return nil
}

// asOwner refuses a service that runs as root on another user's files: what it writes
// would be root's, and the service of that user couldn't start again.
func asOwner(c *config.Config, uid int) error {
	if uid != 0 {
		return nil
	}
	paths := []setting.Path{c.Audit.Path, setting.Path(filepath.Dir(string(c.Audit.Path)))}
	for _, log := range c.CTLog.Own() {
		paths = append(paths, log.Directory, log.MarkFile)
	}
	for _, path := range paths {
		info, err := os.Stat(string(path))
		if err != nil { // the start says what is missing
			continue
		}
		if is, ok := info.Sys().(*syscall.Stat_t); ok && is.Uid != 0 {
			return fail(fmt.Sprintf("run it as that user (sudo -u '#%d' …), or let the system start the service; where root is to run it from now on, give root all that is there", is.Uid),
				"this is root, and %s belongs to user %d: what root writes there that user's service couldn't use", path, is.Uid)
		}
	}
	return nil
}

// tuneGC leaves the collector the memory that the documented law allows, where the
// environment doesn't say: a growth beyond it would end a process in a cgroup.
func tuneGC(c *config.Config) {
	const growth = 200 // percent
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(growth)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		most := c.Server.ClientBytes() + server.ProcessBytes
		if c.Store.Enabled() {
			most += store.MaxBytes + notify.MaxBytes + follow.MaxBytes*max(1, len(c.CTLog.Own()))
		}
		debug.SetMemoryLimit(int64(most) / 5 * 4)
	}
}

// startFailure puts what is wrong with what a configuration names into words;
// listen says what to do about an address that can't be listened on.
func startFailure(err error, listen string) error {
	if address, ok := errors.AsType[*net.OpError](err); ok && address.Op == "listen" {
		return &failure{code: exitFailed, fix: listen, err: err}
	}
	if faults, ok := errors.AsType[*setting.FaultError](err); ok {
		return fail("correct each line and run `mayfly check --config FILE`", "the configuration can't be used:\n%w", faults)
	}
	return err
}

// lastLines is how long the log's last lines may take to be written at the end.
const lastLines = 2 * time.Second

// serviceLog is the log of a service, on standard error. Whoever reads it can
// neither block the service nor end it: what can't be written is dropped.
type serviceLog struct {
	*slog.Logger
	queue *logqueue.Queue
	pipe  chan os.Signal
}

// openLog opens the log of a service, and has all that libraries would print
// themselves written to it. Close ends it.
func openLog(c config.Logging, w io.Writer) *serviceLog {
	// Without a receiver, the Go runtime ends a process that writes to a standard
	// error whose reader is gone.
	l := &serviceLog{pipe: make(chan os.Signal, 1)}
	signal.Notify(l.pipe, syscall.SIGPIPE)
	direct := c.Logger(w)
	l.queue = logqueue.New(w, func(dropped uint64) {
		direct.Warn("log lines were dropped: whoever reads standard error was too slow", slog.Uint64("lines", dropped))
	})
	l.Logger = c.Logger(l.queue)
	log.SetOutput(l.queue)
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, l.queue))
	return l
}

// dependencies are those of a service that has this log.
func (l *serviceLog) dependencies(streams streams) service.Dependencies {
	return service.Dependencies{Now: time.Now, Logger: l.Logger, DroppedLogLines: l.queue.Dropped, Out: streams.Out, Build: thisBuild().labels()}
}

// Close writes the last lines.
func (l *serviceLog) Close() {
	l.queue.Close(lastLines)
	signal.Stop(l.pipe)
}

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
	key, err := devissuer.LoadOrCreateKey(filepath.Join(o.dir, issuerKeyName))
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

const (
	healthTimeout = 3 * time.Second
	maxHealth     = 8 << 10 // bytes of the answer that are read
)

func newHealthcheckCommand(streams streams) *cobra.Command {
	cmd := &cobra.Command{
		Use: "healthcheck", Short: "Ask a running mayfly whether it is ready",
		Long: `Asks a running mayfly whether it is ready and exits with 0 when it is, with 1
otherwise, naming the dependency that fails. It gives up after three seconds.
With --config it asks where the configuration says that REST is served: address,
port, TLS, Unix socket. A server's certificate has to be the one that is configured.
Meant for the health check of a container, which has neither shell nor curl.`,
	}
	url := cmd.Flags().String("url", "http://127.0.0.1:5555/readyz", "what to ask")
	file := cmd.Flags().String("config", "", "the configuration of the mayfly to ask, in place of --url")
	cmd.MarkFlagsMutuallyExclusive("url", "config")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		transport := &http.Transport{DisableKeepAlives: true} // and no proxy: it is this container
		if *file != "" {
			c, err := loadConfig(*file)
			if err != nil {
				return err
			}
			if *url, err = healthURL(c.Server, transport); err != nil {
				return fail("run `mayfly check --config FILE`", "not ready: %w", err)
			}
		}
		return checkHealth(cmd.Context(), streams.Out, *url, transport)
	}
	return cmd
}

// healthURL is where a server with the configuration c is asked, on this machine,
// and prepares the way there.
func healthURL(c server.Config, transport *http.Transport) (string, error) {
	host, scheme := c.HTTPAddress, "http"
	if path, ok := strings.CutPrefix(c.HTTPAddress, "unix:"); ok {
		host = "localhost"
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
	} else if name, port, err := net.SplitHostPort(c.HTTPAddress); err != nil {
		return "", err
	} else if ip := net.ParseIP(name); name == "" || ip.IsUnspecified() { // all of this machine's addresses
		loopback := "127.0.0.1"
		if ip != nil && ip.To4() == nil {
			loopback = "::1"
		}
		host = net.JoinHostPort(loopback, port)
	}
	if c.TLS.Enabled() {
		chain, err := readCertificates(nil, string(c.TLS.CertFile))
		if err != nil {
			return "", err
		}
		scheme, transport.TLSClientConfig = "https", pinned(chain[0])
	}
	return scheme + "://" + host + "/readyz", nil
}

// pinned wants a server to have exactly this certificate, whatever name it is for.
func pinned(want *x509.Certificate) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true, // #nosec G402 -- VerifyConnection does more: it knows the certificate
		VerifyConnection: func(s tls.ConnectionState) error {
			switch now := time.Now(); {
			case !s.PeerCertificates[0].Equal(want):
				return errors.New("the server has another certificate than server.tls.cert_file: it didn't take the new one, or something else listens there")
			case now.After(want.NotAfter) || now.Before(want.NotBefore):
				return fmt.Errorf("the server's certificate is valid from %s to %s, which isn't now", want.NotBefore.Format(time.RFC3339), want.NotAfter.Format(time.RFC3339))
			}
			return nil
		},
	}
}

// checkHealth is nil when the URL answers 200 in time.
func checkHealth(ctx context.Context, out io.Writer, url string, transport *http.Transport) error {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return usage("give --url http://host:port/readyz", "the URL can't be used: %w", err)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("not ready: no answer from %s in %s", url, healthTimeout)
	case err != nil:
		return fmt.Errorf("not ready: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxHealth))
	if err != nil {
		return fmt.Errorf("not ready: reading the answer: %w", err)
	}
	text := strings.TrimSpace(string(body))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("not ready: %s answered %d\n%s", url, resp.StatusCode, text)
	}
	for line := range strings.Lines("ready\n" + text) {
		if line = strings.TrimSpace(line); line != "" {
			if _, err := fmt.Fprintln(out, terminal.Line(line)); err != nil {
				return err
			}
		}
	}
	return nil
}
