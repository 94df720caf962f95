package ca

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/kms"
	"github.com/mayfly-ca/mayfly/identity/identitytest"
	"github.com/mayfly-ca/mayfly/identity/policy"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// TestPolicyChoosesTheLifetime holds the validity of what is issued against
// what the issuer's policy and the CA's own configuration say.
func TestPolicyChoosesTheLifetime(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		own, lifetime, most, profile, want time.Duration
	}{
		"the CA's own":                 {own: 10 * time.Minute, want: 10 * time.Minute},
		"longer than the default most": {own: time.Hour, want: time.Hour},
		"the issuer's":                 {own: 10 * time.Minute, lifetime: 3 * time.Minute, want: 3 * time.Minute},
		"the issuer bounds the CA's":   {own: 20 * time.Minute, most: 15 * time.Minute, want: 15 * time.Minute},
		"a profile's":                  {own: 10 * time.Minute, lifetime: 3 * time.Minute, most: time.Hour, profile: time.Hour, want: time.Hour},
		"the shortest":                 {own: 10 * time.Minute, profile: time.Minute, want: time.Minute},
	} {
		r := newRig(t, kms.ECDSAP256, func(config *Config, _ *Options) { config.Lifetime = c.own })
		issuer := identitytest.New(t)
		config := issuer.Config()
		config.Lifetime, config.MaxLifetime = c.lifetime, c.most
		if c.profile != 0 {
			config.Profiles = []policy.Profile{{Name: "p", When: `principal.san_type == "email"`, Lifetime: c.profile}}
		}
		who := issuer.PrincipalAs(t, config, nil)
		key := proven(t, who, kms.ECDSAP256)
		got, err := r.issuer.Issue(t.Context(), who, key)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		leaf, err := x509.ParseCertificate(got.Leaf)
		if err != nil {
			t.Fatal(err)
		}
		if lives := leaf.NotAfter.Sub(leaf.NotBefore) + time.Second; lives != c.want {
			t.Errorf("%s: it lives %s, want %s", name, lives, c.want)
		}
	}
}

// TestBackdate: a certificate begins earlier by the backdate, lives no longer for it,
// and never begins before its issuer.
func TestBackdate(t *testing.T) {
	t.Parallel()
	certs, _ := sharedChain(t, kms.ECDSAP256)
	began := certs[0].NotBefore
	for name, c := range map[string]struct {
		backdate time.Duration
		now      time.Time
		begin    time.Time
	}{
		"none":                        {0, noon, noon.Truncate(time.Second)},
		"a minute":                    {time.Minute, noon, noon.Truncate(time.Second).Add(-time.Minute)},
		"an issuer of ten seconds":    {time.Minute, began.Add(10 * time.Second), began},
		"an issuer of this moment":    {time.Minute, began.Add(time.Millisecond), began},
		"an issuer of a minute, just": {time.Minute, began.Add(time.Minute), began},
	} {
		r := newRig(t, kms.ECDSAP256, func(config *Config, _ *Options) { config.Backdate = c.backdate })
		r.now = func() time.Time { return c.now }
		who, key := alice(t)
		got, err := r.issuer.Issue(t.Context(), who, key)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		leaf, err := x509.ParseCertificate(got.Leaf)
		if err != nil {
			t.Fatal(err)
		}
		if !leaf.NotBefore.Equal(c.begin) || !leaf.NotAfter.Equal(c.begin.Add(DefaultLifetime-time.Second)) {
			t.Errorf("%s: valid from %v to %v; want a lifetime from %v", name, leaf.NotBefore, leaf.NotAfter, c.begin)
		}
		for _, e := range r.audit.events {
			if !e.NotBefore.Equal(leaf.NotBefore) || !e.NotAfter.Equal(leaf.NotAfter) {
				t.Errorf("%s: %s is on record from %v to %v", name, e.Type, e.NotBefore, e.NotAfter)
			}
		}
		if err := r.issuer.Ready(t.Context()); err != nil {
			t.Errorf("%s: not ready: %v", name, err)
		}
	}
}

// TestNoBackdateMakesAnAuthorityReadyEarly: an authority that hasn't begun issues nothing.
func TestNoBackdateMakesAnAuthorityReadyEarly(t *testing.T) {
	t.Parallel()
	r := newRig(t, kms.ECDSAP256, func(config *Config, _ *Options) { config.Backdate = time.Minute })
	begin, _ := r.authority.Validity()
	r.now = func() time.Time { return begin.Add(-time.Second) }
	who, key := alice(t)
	if _, err := r.issuer.Issue(t.Context(), who, key); fault.From(err).Reason != fault.SignerUnavailable {
		t.Errorf("issued before the authority began: %v", err)
	}
}
