package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// Recorder makes a record durable before it returns: after a crash the record
// is there. An error says that it may not be, and the caller must not go on.
type Recorder interface {
	Record(ctx context.Context, e Event) error
}

// outcomeTime is how long a failure's record may take once its request is over.
const outcomeTime = 5 * time.Second

// Trail is the audit trail as what signs uses it: an intent before, an outcome
// after.
type Trail struct {
	Recorder Recorder
	Now      func() time.Time
	Logger   *slog.Logger
}

// Record writes an event and classifies its failure.
func (t Trail) Record(ctx context.Context, e Event) error {
	err := t.Recorder.Record(ctx, e)
	var classified *fault.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &classified), ctx.Err() != nil:
		return fmt.Errorf("ca: recording the %s: %w", e.Type, err)
	default:
		return unavailable(err)
	}
}

// Failed writes the outcome of an issuance that failed after its intent, also
// where the request's own time is over.
func (t Trail) Failed(ctx context.Context, intent Event, cause error) {
	f := fault.From(cause)
	e := intent
	e.Type, e.Time, e.Reason, e.Message = Failed, t.Now(), f.Reason, f.Public
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), outcomeTime)
	defer cancel()
	if err := t.Recorder.Record(ctx, e); err != nil {
		t.Logger.ErrorContext(ctx, "a failed issuance has no outcome in the audit trail",
			slog.String("request_id", e.RequestID), slog.String("serial", e.Serial), slog.Any("error", err))
	}
}
