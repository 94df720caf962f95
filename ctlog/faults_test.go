package ctlog_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/ctlog/ctlogtest"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// Fault is a way in which a log fails.
type Fault string

// The faults.
const (
	None           Fault = ""
	Down           Fault = "down"                   // nothing answers
	Broken         Fault = "500"                    // an internal error
	TooMany        Fault = "429"                    // asked too often
	Slow           Fault = "slow"                   // silent until the caller gives up
	WrongLogID     Fault = "wrong log id"           // another log's id, signature right
	WrongSignature Fault = "wrong signature"        // one byte of it changed
	WrongChain     Fault = "another certificate's"  // a perfect SCT for something else
	WrongTime      Fault = "timestamp an hour off"  // signed, but an hour ago
	EarlyTime      Fault = "timestamp in an hour"   // signed, but in an hour
	BadExtension   Fault = "malformed leaf index"   // signed, four bytes of leaf index
	ReplyLost      Fault = "reply lost"             // the log took the entry, nobody hears of it
	Refusing       Fault = "400"                    // the log understood, and refuses
	Unclassified   Fault = "an error without class" // a bug
)

// Outages are the faults that another log or another attempt may mend.
func Outages() []Fault { return []Fault{Down, Broken, TooMany, Slow, ReplyLost} }

// Lies are the faults of a log that answers with an SCT that does not hold.
func Lies() []Fault {
	return []Fault{WrongLogID, WrongSignature, WrongChain, WrongTime, EarlyTime, BadExtension}
}

// Faulty is a log that fails as its Fault says, and is honest without one.
type Faulty struct {
	ctlog.Log

	t      testing.TB
	Signer *ctlogtest.Signer // the log's key: a lie is properly signed
	Other  ctlog.Chain       // for WrongChain
	Calls  atomic.Int64
	fault  atomic.Value // Fault
}

// NewFaulty wraps an honest log.
func NewFaulty(t testing.TB, m ctlog.Log, key *ctlogtest.Signer, other ctlog.Chain, f Fault) *Faulty {
	out := &Faulty{Log: m, t: t, Signer: key, Other: other}
	out.Set(f)
	return out
}

// Set changes the fault while the log is in use.
func (f *Faulty) Set(to Fault) { f.fault.Store(to) }

// Submit fails, lies or passes on.
func (f *Faulty) Submit(ctx context.Context, chain ctlog.Chain) (ctlog.SCT, error) {
	f.Calls.Add(1)
	what, _ := f.fault.Load().(Fault)
	switch what {
	case Down, Broken, TooMany:
		return ctlog.SCT{}, fault.New(fault.LogUnavailable, "the log is down").After(7 * time.Second).Because(errors.New(string(what)))
	case Slow:
		<-ctx.Done()
		return ctlog.SCT{}, ctx.Err()
	case Refusing, Unclassified:
		return ctlog.SCT{}, errors.New("the log answered " + string(what))
	case ReplyLost:
		if _, err := f.Log.Submit(ctx, chain); err != nil {
			return ctlog.SCT{}, err
		}
		return ctlog.SCT{}, fault.New(fault.LogUnavailable, "the reply was lost")
	case WrongChain:
		return f.Log.Submit(ctx, f.Other)
	}
	sct, err := f.Log.Submit(ctx, chain)
	if err != nil {
		return ctlog.SCT{}, err
	}
	return f.twist(what, chain, sct), nil
}

func (f *Faulty) twist(what Fault, chain ctlog.Chain, sct ctlog.SCT) ctlog.SCT {
	at, extensions := time.UnixMilli(int64(sct.Timestamp)), sct.Extensions
	switch what {
	case WrongLogID:
		sct.LogID[0] ^= 1
		return sct
	case WrongSignature:
		sct.Signature = append([]byte(nil), sct.Signature...)
		sct.Signature[len(sct.Signature)-1] ^= 1
		return sct
	case WrongTime:
		at = at.Add(-time.Hour)
	case EarlyTime:
		at = at.Add(time.Hour)
	case BadExtension:
		extensions = []byte{0, 0, 4, 1, 2, 3, 4}
	default:
		return sct
	}
	id := sct.LogID
	sct = f.Signer.SCT(f.t, chain, at, extensions)
	sct.LogID = id
	return sct
}
