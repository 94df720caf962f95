package ca

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/mayfly-ca/mayfly/ca/audit"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// outcomeTime is how long a failure's record may take once its request is over.
const outcomeTime = 5 * time.Second

// trail is the audit trail as what signs here uses it: an intent before, an
// outcome after.
type trail struct {
	auditor Auditor
	now     func() time.Time
	logger  *slog.Logger
}

// record writes an audit event and classifies its failure.
func (t trail) record(ctx context.Context, e audit.Event) error {
	err := t.auditor.Record(ctx, e)
	var classified *fault.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &classified), ctx.Err() != nil:
		return fmt.Errorf("ca: recording the %s: %w", e.Type, err)
	default:
		return fault.New(fault.AuditUnavailable, "the audit trail can't be written, so nothing is signed; try again later").
			With("dependency", "audit").Because(err)
	}
}

// failed writes the outcome of an issuance that failed after its intent, also
// where the request's own time is over.
func (t trail) failed(ctx context.Context, intent audit.Event, cause error) {
	f := fault.From(cause)
	e := intent
	e.Type, e.Time, e.Reason, e.Message = audit.Failed, t.now(), f.Reason, f.Public
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), outcomeTime)
	defer cancel()
	if err := t.auditor.Record(ctx, e); err != nil {
		t.logger.ErrorContext(ctx, "a failed issuance has no outcome in the audit trail",
			slog.String("request_id", e.RequestID), slog.String("serial", e.Serial), slog.Any("error", err))
	}
}
