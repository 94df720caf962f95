package embedded

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/oneline"
	formats "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
)

// Bounds of what a witness may say, and of how often one that fails is asked.
const (
	maxWitnessAnswer   = 16 << 10         // bytes: an ML-DSA-44 cosignature takes some 3,300
	witnessAttempts    = 3                // in one round: it may name another size, and meanwhile a third
	witnessFailures    = 3                // rounds in a row, after which it is asked only now and then
	witnessPause       = 30 * time.Second // that is how often
	maxCosignatureSkew = 5 * time.Minute  // between a cosignature's time and ours
	sizeType           = "text/x.tlog.size"
	witnessAgent       = "mayfly (+https://github.com/mayfly-ca/mayfly)"
)

// witnesses offer checkpoints to all witnesses of a log (c2sp.org/tlog-witness).
// A nil *witnesses has none. Why not Tessera's: docs/decisions/2026-11-24-witnesses.md.
type witnesses struct {
	list     []*witness
	required int
	closed   bool
	timeout  time.Duration
	log      *Log
	short    bool // the last round had too few cosignatures
}

// witness is the log's view of one witness. Only one round runs at a time.
type witness struct {
	name     string
	url      string // of add-checkpoint
	verifier note.Verifier
	client   *http.Client
	size     uint64 // what it cosigned last; 0: unknown, it will say
	failures int    // rounds in a row
	until    time.Time
}

// newWitnesses makes the witnesses of a configuration; nil when it names none.
func newWitnesses(l *Log, c ctlog.WitnessesConfig) (*witnesses, error) {
	if len(c.List) == 0 {
		return nil, nil //nolint:nilnil // a log without witnesses, which is the usual one
	}
	w := &witnesses{required: max(c.Required, 1), closed: c.Mode == ctlog.WitnessClosed, timeout: c.Timeout, log: l}
	if w.timeout <= 0 {
		w.timeout = ctlog.DefaultWitnessTimeout
	}
	for i := range c.List {
		one := &c.List[i]
		verifier, err := one.Verifier()
		if err != nil {
			return nil, fmt.Errorf("the witness %s: its key: %w", one.URL, err)
		}
		w.list = append(w.list, &witness{
			name: verifier.Name(), url: strings.TrimSuffix(one.URL, "/") + "/add-checkpoint", verifier: verifier,
			client: &http.Client{
				Transport: &http.Transport{ // its own: a connection that hangs is no other witness's trouble
					Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: w.timeout, MaxResponseHeaderBytes: maxWitnessAnswer,
					MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true,
				},
				CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			},
		})
	}
	return w, nil
}

// close drops idle connections.
func (w *witnesses) close() {
	if w == nil {
		return
	}
	for _, one := range w.list {
		one.client.CloseIdleConnections()
	}
}

// cosigned is what one witness made of a checkpoint.
type cosigned struct {
	line []byte // the signature line of the note; nil without one
	err  error
}

// cosign offers a signed checkpoint of the tree t to every witness, and returns it
// with the cosignatures that came in time. An error, in the closed mode alone, says
// that too few came. The tree of no entries is nobody's business: it promises
// nothing, and a new log starts with it.
func (w *witnesses) cosign(ctx context.Context, checkpoint []byte, t tree) ([]byte, error) {
	if w == nil || t.size == 0 {
		return checkpoint, nil
	}
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	now := w.log.o.Now()
	answers := make(chan cosigned, len(w.list))
	for _, one := range w.list {
		if !w.closed && one.failures >= witnessFailures && now.Before(one.until) {
			w.log.metrics.witnessed(one.name, witnessResting, 0)
			answers <- cosigned{err: fmt.Errorf("%s failed several times and is left alone for a while", one.name)}
			continue
		}
		go func() { answers <- w.offer(ctx, one, checkpoint, t) }()
	}
	out, count := bytes.Clone(checkpoint), 0
	var failures []error
	for range w.list {
		if a := <-answers; a.err != nil {
			failures = append(failures, a.err)
		} else {
			out = append(out, a.line...)
			count++
		}
	}
	w.log.metrics.cosignatures(count)
	w.report(ctx, count, errors.Join(failures...))
	if count < w.required && w.closed {
		return nil, fmt.Errorf("%d of %d required witnesses cosigned the checkpoint of %d entries: %w", count, w.required, t.size, errors.Join(failures...))
	}
	return out, nil
}

// report says when there begin to be too few cosignatures, and when there are enough again.
func (w *witnesses) report(ctx context.Context, count int, cause error) {
	short := count < w.required
	if short == w.short {
		return
	}
	w.short = short
	attrs := []slog.Attr{
		slog.String("log", w.log.about.URL), slog.Int("cosignatures", count), slog.Int("required", w.required), slog.Bool("published", !short || !w.closed),
	}
	if !short {
		w.log.o.Logger.LogAttrs(ctx, slog.LevelInfo, "checkpoints have enough cosignatures again", attrs...)
		return
	}
	w.log.o.Logger.LogAttrs(ctx, slog.LevelWarn, "a checkpoint has too few cosignatures", append(attrs, slog.Any("error", cause))...)
}

// witnessOutcome is a metric label from a closed list.
type witnessOutcome string

const (
	witnessCosigned witnessOutcome = "cosigned"
	witnessRefused  witnessOutcome = "refused"     // it answered, and gave no cosignature
	witnessInvalid  witnessOutcome = "invalid"     // its cosignature, or its answer, doesn't hold
	witnessAhead    witnessOutcome = "ahead"       // it says that it has cosigned more than the log has
	witnessDown     witnessOutcome = "unavailable" // no answer in time
	witnessResting  witnessOutcome = "resting"     // not asked, after failures
)

// witnessOutcomes are all of them.
func witnessOutcomes() []witnessOutcome {
	return []witnessOutcome{witnessCosigned, witnessRefused, witnessInvalid, witnessAhead, witnessDown, witnessResting}
}

// witnessError is a failure with its outcome.
type witnessError struct {
	outcome witnessOutcome
	cause   error
}

func (e *witnessError) Error() string { return e.cause.Error() }
func (e *witnessError) Unwrap() error { return e.cause }

func witnessFault(o witnessOutcome, format string, args ...any) error {
	return &witnessError{o, fmt.Errorf(format, args...)}
}

// offer asks one witness, and remembers how it went.
func (w *witnesses) offer(ctx context.Context, one *witness, checkpoint []byte, t tree) cosigned {
	begin := time.Now()
	line, err := w.ask(ctx, one, checkpoint, t)
	outcome := witnessCosigned
	var known *witnessError
	switch {
	case errors.As(err, &known):
		outcome = known.outcome
	case err != nil:
		outcome = witnessDown
	}
	w.log.metrics.witnessed(one.name, outcome, time.Since(begin))
	if err == nil {
		one.failures = 0
		w.log.metrics.witnessSize(one.name, one.size)
		return cosigned{line: line}
	}
	if outcome == witnessAhead || outcome == witnessInvalid {
		w.log.o.Logger.ErrorContext(ctx, "a witness's answer can't be right, or this log is an older copy",
			slog.String("log", w.log.about.URL), slog.String("witness", one.name), slog.Any("error", err))
	} else if one.failures == 0 {
		w.log.o.Logger.WarnContext(ctx, "a witness gave no cosignature",
			slog.String("log", w.log.about.URL), slog.String("witness", one.name), slog.Any("error", err))
	}
	one.failures++
	one.until = w.log.o.Now().Add(witnessPause)
	return cosigned{err: fmt.Errorf("the witness %s: %w", one.name, err)}
}

// ask makes the request of c2sp.org/tlog-witness, and again from the size that the
// witness names.
func (w *witnesses) ask(ctx context.Context, one *witness, checkpoint []byte, t tree) ([]byte, error) {
	for range witnessAttempts {
		body, err := w.request(ctx, one.size, checkpoint, t)
		if err != nil {
			return nil, err
		}
		status, contentType, answer, err := one.post(ctx, body)
		if err != nil {
			return nil, err
		}
		switch {
		case status == http.StatusOK:
			line, err := cosignature(checkpoint, answer, one.verifier, w.log.o.Now())
			if err == nil {
				one.size = t.size
			}
			return line, err
		case status == http.StatusConflict && contentType == sizeType:
			size, err := strconv.ParseUint(strings.TrimSuffix(string(answer), "\n"), 10, 63)
			if err != nil {
				return nil, witnessFault(witnessInvalid, "it answered 409 with a size that is none")
			}
			if size > t.size {
				return nil, witnessFault(witnessAhead, "it has cosigned %d entries of this log, which has %d", size, t.size)
			}
			one.size = size
		default:
			return nil, witnessFault(witnessRefused, "it answered %d: %q", status, oneline.Of(string(answer), 200))
		}
	}
	return nil, witnessFault(witnessRefused, "it named another size %d times", witnessAttempts)
}

// request is the body of add-checkpoint: the size that the witness has, the proof
// from there, and the checkpoint.
func (w *witnesses) request(ctx context.Context, old uint64, checkpoint []byte, t tree) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "old %d\n", old)
	if old > 0 && old < t.size {
		hashes, err := w.log.store.consistency(ctx, old, t.size, t.size)
		if err != nil {
			return nil, err
		}
		for _, h := range hashes {
			b.WriteString(base64.StdEncoding.EncodeToString(h) + "\n")
		}
	}
	b.WriteByte('\n')
	b.Write(checkpoint)
	return b.Bytes(), nil
}

func (w *witness) post(ctx context.Context, body []byte) (status int, contentType string, answer []byte, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body))
	if err != nil {
		return 0, "", nil, err
	}
	request.Header.Set("User-Agent", witnessAgent)
	response, err := w.client.Do(request)
	if err != nil {
		return 0, "", nil, err
	}
	defer func() { _ = response.Body.Close() }()
	if answer, err = io.ReadAll(io.LimitReader(response.Body, maxWitnessAnswer+1)); err != nil {
		return 0, "", nil, fmt.Errorf("reading its answer: %w", err)
	}
	if len(answer) > maxWitnessAnswer {
		return 0, "", nil, witnessFault(witnessInvalid, "its answer is longer than %d bytes", maxWitnessAnswer)
	}
	return response.StatusCode, response.Header.Get("Content-Type"), answer, nil
}

// cosignature takes the witness's own line out of its answer, verified over the
// checkpoint. Lines of others in it are left: who they are is not known.
func cosignature(checkpoint, answer []byte, v note.Verifier, now time.Time) ([]byte, error) {
	n, err := note.Open(append(bytes.Clone(checkpoint), answer...), note.VerifierList(v))
	if err != nil {
		return nil, witnessFault(witnessInvalid, "its cosignature does not hold: %w", err)
	}
	// A note's text ends at its last empty line: one in the answer makes the log's
	// signature part of the text, and the cosignature one over something else.
	if text, _, _ := bytes.Cut(checkpoint, []byte("\n\n")); n.Text != string(text)+"\n" {
		return nil, witnessFault(witnessInvalid, "its cosignature is over another text than the checkpoint's")
	}
	at, err := formats.CoSigV1Timestamp(n.Sigs[0])
	if err != nil {
		return nil, witnessFault(witnessInvalid, "its cosignature does not hold: %w", err)
	}
	if skew := at.Sub(now).Abs(); skew > maxCosignatureSkew {
		return nil, witnessFault(witnessInvalid, "its cosignature is from %s, more than %v from now", at.UTC().Format(time.RFC3339), maxCosignatureSkew)
	}
	return fmt.Appendf(nil, "\u2014 %s %s\n", n.Sigs[0].Name, n.Sigs[0].Base64), nil
}
