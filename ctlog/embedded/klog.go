package embedded

import (
	"log/slog"

	"k8s.io/klog/v2"
)

// RedirectStorageLog sends what the storage library logs, which goes to standard
// error otherwise, to the logger. It sets that library's one logger for the whole
// process, so only main calls it, before a log is opened.
func RedirectStorageLog(logger *slog.Logger) {
	klog.SetSlogLogger(logger.With(slog.String("component", "tessera")))
}
