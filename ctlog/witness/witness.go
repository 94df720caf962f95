// Package witness has the checkpoints of a log cosigned by witnesses
// (c2sp.org/tlog-witness): others who verify that the log only grew. Why not
// Tessera's client: docs/decisions/2026-11-24-witnesses.md.
package witness

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	formats "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/bounded"
	"github.com/mayfly-ca/mayfly/internal/metric"
	"github.com/mayfly-ca/mayfly/internal/oneline"
)

// Bounds of what a witness may say, and of how often one that fails is asked.
const (
	maxAnswer   = 16 << 10         // bytes: an ML-DSA-44 cosignature takes some 3,300
	maxSaid     = 200              // bytes of its own words that reach our log
	maxAttempts = 3                // in one round: it may name another size, and meanwhile a third
	maxFailures = 3                // rounds in a row, after which it is asked only now and then
	pause       = 30 * time.Second // that is how often
	maxSkew     = 5 * time.Minute  // between a cosignature's time and ours
	sizeType    = "text/x.tlog.size"
	userAgent   = "mayfly (+https://github.com/mayfly-ca/mayfly)"
)

// Options are what a Client needs besides its configuration.
type Options struct {
	Now    func() time.Time
	Logger *slog.Logger
	// Consistency proves that the log of a size continues that of a smaller size.
	Consistency func(ctx context.Context, smaller, size uint64) ([][]byte, error)
}

// Client offers the checkpoints of one log to all of its witnesses, one checkpoint at
// a time. A nil *Client has none.
type Client struct {
	witnesses []*witness
	required  int
	closed    bool // without enough cosignatures nothing is published
	timeout   time.Duration
	o         Options
	metrics   *metrics
	short     bool // the last round had too few cosignatures
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

// New makes the client of a configuration; nil when that names no witness.
func New(c ctlog.WitnessesConfig, o Options) (*Client, error) {
	if len(c.List) == 0 {
		return nil, nil //nolint:nilnil // a log without witnesses, which is the usual one
	}
	w := &Client{required: max(c.Required, 1), closed: c.Mode == ctlog.WitnessClosed, timeout: cmp.Or(max(c.Timeout, 0), ctlog.DefaultWitnessTimeout), o: o}
	for i := range c.List {
		one := &c.List[i]
		verifier, err := one.Verifier()
		if err != nil {
			return nil, fmt.Errorf("the witness %s: its key: %w", one.URL, err)
		}
		w.witnesses = append(w.witnesses, &witness{
			name: verifier.Name(), url: strings.TrimSuffix(one.URL, "/") + "/add-checkpoint", verifier: verifier,
			client: &http.Client{
				Transport: &http.Transport{ // its own: a connection that hangs is no other witness's trouble
					Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: w.timeout, MaxResponseHeaderBytes: maxAnswer,
					MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true,
				},
				CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			},
		})
	}
	w.metrics = newMetrics(w.witnesses)
	return w, nil
}

// Close drops idle connections.
func (w *Client) Close() {
	if w == nil {
		return
	}
	for _, one := range w.witnesses {
		one.client.CloseIdleConnections()
	}
}

// answer is what one witness made of a checkpoint.
type answer struct {
	line []byte // the signature line of the note; nil without one
	err  error
}

// Cosign offers a signed checkpoint of a log of the size to every witness, and returns
// it with the cosignatures that came in time. An error, in the closed mode alone, says
// that too few came. The tree of no entries is nobody's business: it promises
// nothing, and a new log starts with it.
func (w *Client) Cosign(ctx context.Context, checkpoint []byte, size uint64) ([]byte, error) {
	if w == nil || size == 0 {
		return checkpoint, nil
	}
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	now := w.o.Now()
	answers := make(chan answer, len(w.witnesses))
	for _, one := range w.witnesses {
		if !w.closed && one.failures >= maxFailures && now.Before(one.until) {
			w.metrics.answered(one.name, resting, 0)
			answers <- answer{err: fmt.Errorf("%s failed several times and is left alone for a while", one.name)}
			continue
		}
		go func() { answers <- w.offer(ctx, one, checkpoint, size) }()
	}
	out, count := bytes.Clone(checkpoint), 0
	var failures []error
	for range w.witnesses {
		if a := <-answers; a.err != nil {
			failures = append(failures, a.err)
		} else {
			out = append(out, a.line...)
			count++
		}
	}
	w.metrics.cosignatures.Set(float64(count))
	w.report(ctx, count, errors.Join(failures...))
	if count < w.required && w.closed {
		return nil, fmt.Errorf("%d of %d required witnesses cosigned the checkpoint of %d entries: %w", count, w.required, size, errors.Join(failures...))
	}
	return out, nil
}

// report says when there begin to be too few cosignatures, and when there are enough again.
func (w *Client) report(ctx context.Context, count int, cause error) {
	short := count < w.required
	if short == w.short {
		return
	}
	w.short = short
	attrs := []slog.Attr{
		slog.Int("cosignatures", count), slog.Int("required", w.required), slog.Bool("published", !short || !w.closed),
	}
	if !short {
		w.o.Logger.LogAttrs(ctx, slog.LevelInfo, "checkpoints have enough cosignatures again", attrs...)
		return
	}
	w.o.Logger.LogAttrs(ctx, slog.LevelWarn, "a checkpoint has too few cosignatures", append(attrs, slog.Any("error", cause))...)
}

// offer asks one witness, and remembers how it went.
func (w *Client) offer(ctx context.Context, one *witness, checkpoint []byte, size uint64) answer {
	begin := time.Now()
	line, outcome, err := w.ask(ctx, one, checkpoint, size)
	w.metrics.answered(one.name, outcome, time.Since(begin))
	if err == nil {
		one.failures = 0
		w.metrics.sizes.WithLabelValues(one.name).Set(float64(one.size))
		return answer{line: line}
	}
	attrs := []slog.Attr{slog.String("witness", one.name), slog.Any("error", err)}
	if outcome == ahead || outcome == invalid {
		w.o.Logger.LogAttrs(ctx, slog.LevelError, "a witness's answer can't be right, or this log is an older copy", attrs...)
	} else if one.failures == 0 {
		w.o.Logger.LogAttrs(ctx, slog.LevelWarn, "a witness gave no cosignature", attrs...)
	}
	one.failures++
	one.until = w.o.Now().Add(pause)
	return answer{err: fmt.Errorf("the witness %s: %w", one.name, err)}
}

// ask makes the request of c2sp.org/tlog-witness, and again from the size that the
// witness names.
func (w *Client) ask(ctx context.Context, one *witness, checkpoint []byte, size uint64) ([]byte, outcome, error) {
	for range maxAttempts {
		request, err := w.request(ctx, one.size, checkpoint, size)
		if err != nil {
			return nil, unavailable, err
		}
		answer, err := one.post(ctx, request)
		switch {
		case answer == nil:
			return nil, unavailable, err
		case errors.Is(err, bounded.ErrTooLong):
			return nil, invalid, fmt.Errorf("its answer is longer than %d bytes", maxAnswer)
		case err != nil:
			return nil, unavailable, fmt.Errorf("reading its answer: %w", err)
		case answer.StatusCode == http.StatusOK:
			line, err := cosignature(checkpoint, answer.Body, one.verifier, w.o.Now())
			if err != nil {
				return nil, invalid, err
			}
			one.size = size
			return line, cosigned, nil
		case answer.StatusCode != http.StatusConflict || answer.Header.Get("Content-Type") != sizeType:
			return nil, refused, fmt.Errorf("it answered %d: %q", answer.StatusCode, oneline.Clean(string(answer.Body), maxSaid))
		}
		has, err := strconv.ParseUint(strings.TrimSuffix(string(answer.Body), "\n"), 10, 63)
		switch {
		case err != nil:
			return nil, invalid, errors.New("it answered 409 with a size that is none")
		case has > size:
			return nil, ahead, fmt.Errorf("it has cosigned %d entries of this log, which has %d", has, size)
		}
		one.size = has
	}
	return nil, refused, fmt.Errorf("it named another size %d times", maxAttempts)
}

// request is the body of add-checkpoint: the size that the witness has, the proof
// from there, and the checkpoint.
func (w *Client) request(ctx context.Context, old uint64, checkpoint []byte, size uint64) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "old %d\n", old)
	if old > 0 && old < size {
		hashes, err := w.o.Consistency(ctx, old, size)
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

func (w *witness) post(ctx context.Context, body []byte) (*bounded.Answer, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("User-Agent", userAgent)
	return bounded.Do(w.client, request, maxAnswer)
}

// cosignature takes the witness's own line out of its answer, verified over the
// checkpoint. Lines of others in it are left: who they are is not known.
func cosignature(checkpoint, answer []byte, v note.Verifier, now time.Time) ([]byte, error) {
	n, err := note.Open(append(bytes.Clone(checkpoint), answer...), note.VerifierList(v))
	if err != nil {
		return nil, fmt.Errorf("its cosignature does not hold: %w", err)
	}
	// A note's text ends at its last empty line: one in the answer makes the log's
	// signature part of the text, and the cosignature one over something else.
	if text, _, _ := bytes.Cut(checkpoint, []byte("\n\n")); n.Text != string(text)+"\n" {
		return nil, errors.New("its cosignature is over another text than the checkpoint's")
	}
	at, err := formats.CoSigV1Timestamp(n.Sigs[0])
	if err != nil {
		return nil, fmt.Errorf("its cosignature does not hold: %w", err)
	}
	if skew := at.Sub(now).Abs(); skew > maxSkew {
		return nil, fmt.Errorf("its cosignature is from %s, more than %v from now", at.UTC().Format(time.RFC3339), maxSkew)
	}
	return fmt.Appendf(nil, "\u2014 %s %s\n", n.Sigs[0].Name, n.Sigs[0].Base64), nil
}

// outcome is a metric label from a closed list.
type outcome string

const (
	cosigned    outcome = "cosigned"
	refused     outcome = "refused"     // it answered, and gave no cosignature
	invalid     outcome = "invalid"     // its cosignature, or its answer, doesn't hold
	ahead       outcome = "ahead"       // it says that it has cosigned more than the log has
	unavailable outcome = "unavailable" // no answer in time
	resting     outcome = "resting"     // not asked, after failures
)

type metrics struct {
	offers       *prometheus.CounterVec
	seconds      *prometheus.HistogramVec
	sizes        *prometheus.GaugeVec
	cosignatures prometheus.Gauge
}

// newMetrics makes the metrics with a series for every witness and outcome.
func newMetrics(witnesses []*witness) *metrics {
	m := &metrics{
		offers: metric.Counter("mayfly_ctlog_witness_offers_total", "Checkpoints by what each witness made of them.", "witness", "outcome"),
		seconds: metric.Histogram("mayfly_ctlog_witness_seconds", "Time from offering a checkpoint to a witness to its answer or its failure.",
			[]float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}, "witness"),
		sizes: metric.Gauge("mayfly_ctlog_witness_tree_size", "Entries of the last checkpoint that each witness cosigned for this process.", "witness"),
		cosignatures: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "mayfly_ctlog_checkpoint_cosignatures", Help: "Cosignatures of the last checkpoint that was offered to the witnesses.",
		}),
	}
	for _, one := range witnesses {
		for _, o := range []outcome{cosigned, refused, invalid, ahead, unavailable, resting} {
			m.offers.WithLabelValues(one.name, string(o))
		}
		m.seconds.WithLabelValues(one.name)
		m.sizes.WithLabelValues(one.name)
	}
	return m
}

// Collectors are the client's metrics, for the log's registry.
func (w *Client) Collectors() []prometheus.Collector {
	if w == nil {
		return nil
	}
	return []prometheus.Collector{w.metrics.offers, w.metrics.seconds, w.metrics.sizes, w.metrics.cosignatures}
}

func (m *metrics) answered(name string, o outcome, took time.Duration) {
	m.offers.WithLabelValues(name, string(o)).Inc()
	if o != resting {
		m.seconds.WithLabelValues(name).Observe(took.Seconds())
	}
}
