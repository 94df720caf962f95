package main

import (
	"io"
	"log"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"google.golang.org/grpc/grpclog"

	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/ctlog/embedded"
	"github.com/mayfly-ca/mayfly/internal/logqueue"
)

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
	embedded.RedirectStorageLog(l.Logger)
	log.SetOutput(l.queue)
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, l.queue))
	return l
}

// Close writes the last lines.
func (l *serviceLog) Close() {
	l.queue.Close(lastLines)
	signal.Stop(l.pipe)
}
