package timestamp

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"reflect"
	"sync"
	"time"

	"github.com/mayfly-ca/mayfly/ca/cacert"
	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/ca/kms/keystore"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Authority is a chain, the key of its first certificate, and what it says under it.
type Authority struct {
	Chain []*x509.Certificate // its certificate first, root last

	config   Config
	template *template

	using  sync.RWMutex // read-held while the key is used
	signer kms.Signer   // nil once closed; guarded by using
}

// soon is how long before a chain's end it is remarked on.
const soon = 90 * cacert.Day

// Load reads what c names, opens the key, and checks that all fits. The error is a
// *setting.FaultError with every fault, each with its fix.
func Load(ctx context.Context, c Config, path string, now time.Time, o kms.Options) (*Authority, error) {
	var f setting.Faults
	a := &Authority{config: c}
	b, err := os.ReadFile(string(c.Chain))
	if err == nil {
		if a.Chain, err = chain.Parse(b); err != nil {
			err = fmt.Errorf("%s: %w", c.Chain, err)
		}
	}
	if err != nil {
		f.Add(path+".chain", "%v", err)
	} else {
		for _, fault := range cacert.CheckTimestamping(a.Chain, now).Faults() {
			f.Add(path+".chain", "%s: %s", c.Chain, fault)
		}
		o.Public = a.Chain[0].PublicKey
	}
	o.Passphrase, o.Access = c.Passphrase, c.Access
	if a.signer, err = keystore.Open(ctx, string(c.Key), o); err != nil {
		f.Add(path+".key", "%v", err)
	} else if len(a.Chain) > 0 && !pubkey.Equal(a.Chain[0].PublicKey, a.signer.Public()) {
		f.Add(path+".key", "isn't the key of the first certificate (%s) in %s: name the timestamp authority's key, or put its certificate first",
			chain.Subject(a.Chain[0]), c.Chain)
	}
	if f.Len() == 0 {
		if a.template, err = newTemplate(a.Chain, &c); err != nil {
			f.Add(path, "%v", err)
		}
	}
	if err := f.Err(); err != nil {
		kms.Close(a.signer)
		return nil, err
	}
	return a, nil
}

// Reload is Load, but gives before where it is what c names already.
func Reload(ctx context.Context, before *Authority, c Config, path string, now time.Time, o kms.Options) (*Authority, error) {
	if before == nil || !reflect.DeepEqual(before.config, c) {
		return Load(ctx, c, path, now, o)
	}
	if b, err := os.ReadFile(string(c.Chain)); err == nil && string(b) == string(chain.PEM(before.Chain)) {
		return before, nil
	}
	return Load(ctx, c, path, now, o)
}

// Remark says in words that the chain ends soon; "" when it doesn't, or there is none.
func (a *Authority) Remark(now time.Time) string {
	if a == nil || a.end().Sub(now) > soon {
		return ""
	}
	return fmt.Sprintf("%s: no timestamp is given after %s: make the next certificate, docs/timestamps.md", a.config.Chain, chain.Stamp(a.end()))
}

// end is the chain's: its first certificate ends before all others.
func (a *Authority) end() time.Time { return a.Chain[0].NotAfter }

// Close closes the key once nobody uses it any more. A nil authority has none.
func (a *Authority) Close() {
	if a == nil {
		return
	}
	a.using.Lock()
	defer a.using.Unlock()
	kms.Close(a.signer)
	a.signer = nil
}
