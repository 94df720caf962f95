package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/grpclog"

	"github.com/mayfly-ca/mayfly/ca/notify"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/service"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/supervisor"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog/follow"
	"github.com/mayfly-ca/mayfly/internal/durable"
	"github.com/mayfly-ca/mayfly/internal/logqueue"
	"github.com/mayfly-ca/mayfly/internal/setting"
	"github.com/mayfly-ca/mayfly/internal/store"
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
		if owner, _, _, _ := durable.OwnerOf(info); owner != 0 {
			return fail(fmt.Sprintf("run it as that user (sudo -u '#%d' …), or let the system start the service; where root is to run it from now on, give root all that is there", owner),
				"this is root, and %s belongs to user %d: what root writes there that user's service couldn't use", path, owner)
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
