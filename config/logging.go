package config

import (
	"io"
	"log/slog"
	"strings"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Logging is the `logging` section: the service's own log, on standard error.
type Logging struct {
	// Level is the least severe level that is written: debug, info, warn or error.
	Level string `yaml:"level"`
	// Format is `json`, one object a line, or `text` for people.
	Format string `yaml:"format"`
}

// levels are the names that Level takes.
var levels = map[string]slog.Level{
	"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
}

// Check adds every fault of l.
func (l *Logging) Check(path string, f *setting.Faults) {
	if _, ok := levels[l.Level]; !ok {
		f.Add(setting.Join(path, "level"), "%q is unknown; debug, info, warn or error is expected", l.Level)
	}
	if l.Format != "json" && l.Format != "text" {
		f.Add(setting.Join(path, "format"), "%q is unknown; json or text is expected", l.Format)
	}
}

// Logger is the logger that l, which was checked, describes.
func (l *Logging) Logger(w io.Writer) *slog.Logger {
	o := &slog.HandlerOptions{Level: levels[strings.ToLower(l.Level)]}
	if l.Format == "text" {
		return slog.New(slog.NewTextHandler(w, o))
	}
	return slog.New(slog.NewJSONHandler(w, o))
}
