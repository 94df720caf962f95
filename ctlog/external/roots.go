package external

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	ct "github.com/google/certificate-transparency-go"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// How often a log is asked which roots it accepts.
const (
	rootsInterval = 24 * time.Hour
	rootsAgain    = 10 * time.Minute // after an answer that was none, or a refusal
	rootsTimeout  = 30 * time.Second
)

// RootsError is an answer of get-roots without any of the CA's certificates.
type RootsError struct {
	URL   string // the log's
	Chain int    // how many certificates of the CA it was searched for
}

func (e *RootsError) Error() string {
	return fmt.Sprintf("the log %s accepts none of this CA's %d certificates; ask its operator to add the root", e.URL, e.Chain)
}

// roots is what the log said that it accepts.
type roots struct {
	mu       sync.RWMutex
	accepted map[[32]byte]bool // SHA-256 of each certificate; nil: it was never asked
	last     Roots
}

// Roots is what a log said of the CA's chain.
type Roots struct {
	Checked time.Time // of the last answer; zero: none yet
	Refused bool      // that answer had none of the CA's certificates
	Err     error     // of the last attempt; nil when it was good
}

// Roots is what the last check found.
func (l *Log) Roots() Roots {
	l.roots.mu.RLock()
	defer l.roots.mu.RUnlock()
	return l.roots.last
}

// CheckRoots asks the log for the certificates that it accepts; all later chains
// are cut at the first of them. chain is the CA's: issuing certificate first, root
// last.
//
// Errors: a *RootsError when the log accepts none: it would refuse every
// certificate; anything else when it can't be asked, and what it said before stays.
func (l *Log) CheckRoots(ctx context.Context, chain [][]byte) error {
	accepted, err := l.askRoots(ctx)
	l.roots.mu.Lock()
	defer l.roots.mu.Unlock()
	if err != nil {
		l.roots.last.Err = err
		return err
	}
	l.roots.accepted = accepted
	l.roots.last = Roots{Checked: l.o.Now()}
	if cut(accepted, chain) == 0 {
		l.roots.last.Refused = true
		l.roots.last.Err = &RootsError{URL: l.description.URL, Chain: len(chain)}
	}
	return l.roots.last.Err
}

// askRoots is get-roots (RFC 6962 §4.7).
func (l *Log) askRoots(ctx context.Context) (map[[32]byte]bool, error) {
	var body ct.GetRootsResponse
	if err := l.exchange(ctx, http.MethodGet, ct.GetRootsPath, nil, maxRoots, &body); err != nil {
		return nil, fmt.Errorf("asking the log %s for its roots: %w", l.description.URL, err)
	}
	accepted := make(map[[32]byte]bool, len(body.Certificates))
	for _, text := range body.Certificates {
		der, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			return nil, fmt.Errorf("the log %s lists a root that isn't base64: %w", l.description.URL, err)
		}
		accepted[sha256.Sum256(der)] = true
	}
	return accepted, nil
}

// cut is how many certificates of the chain lead to one that is accepted; 0: none does.
func cut(accepted map[[32]byte]bool, chain [][]byte) int {
	for i, der := range chain {
		if accepted[sha256.Sum256(der)] {
			return i + 1
		}
	}
	return 0
}

// request is the body of add-pre-chain: the precertificate and what is above it,
// up to the certificate that the log accepts; all of it when it accepts none, for
// the log to say so itself.
func (l *Log) request(chain ctlog.Chain) ([]byte, error) {
	l.roots.mu.RLock()
	accepted := l.roots.accepted
	l.roots.mu.RUnlock()
	issuers := chain.Issuers
	if n := cut(accepted, issuers); n > 0 {
		issuers = issuers[:n]
	}
	return json.Marshal(ct.AddChainRequest{Chain: append([][]byte{chain.Precertificate}, issuers...)})
}

// WatchRoots checks every day whether the log still accepts the chain that the CA
// issues under, more often while it doesn't or can't be asked, until ctx ends. A
// log that stops accepting it is an alarm: the metric and the log say so, and
// Roots; submissions go on, since the log itself is the judge. It returns nil.
func (l *Log) WatchRoots(ctx context.Context, chain func() [][]byte) error {
	for next := rootsInterval; wait.For(ctx, next) == nil; {
		next = rootsInterval
		refused := l.Roots().Refused
		var none *RootsError
		asking, cancel := context.WithTimeout(ctx, rootsTimeout)
		err := l.CheckRoots(asking, chain())
		cancel()
		switch {
		case ctx.Err() != nil: // it was cut off, and says nothing
		case errors.As(err, &none):
			next = rootsAgain
			if !refused {
				l.o.Logger.ErrorContext(ctx, "a log stopped accepting this CA's certificates", slog.String("log", l.description.URL), slog.Any("error", err))
			}
		case err != nil:
			next = rootsAgain
			l.o.Logger.WarnContext(ctx, "a log can't be asked for its roots", slog.String("log", l.description.URL), slog.Any("error", err))
		case refused:
			l.o.Logger.InfoContext(ctx, "a log accepts this CA's certificates again", slog.String("log", l.description.URL))
		}
	}
	return nil
}
