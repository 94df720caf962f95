package client

import (
	"crypto/x509"
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client/clienttest"
)

func TestVerification(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		knobs    clienttest.Knobs
		stranger bool // verify with another CA's trusted root
		unlogged bool
		want     string // in the error; "" for none
	}{
		"right":                  {},
		"username":               {knobs: clienttest.Knobs{Username: "alice!example.com"}},
		"window still open":      {knobs: clienttest.Knobs{AuthorityEnd: time.Now().Add(time.Hour), LogEnd: time.Now().Add(time.Hour)}},
		"another key":            {knobs: clienttest.Knobs{OtherKey: true}, want: "another key"},
		"another subject":        {knobs: clienttest.Knobs{Subject: "mallory"}, want: "another subject"},
		"another CA's root":      {stranger: true, want: "does not chain"},
		"authority ended":        {knobs: clienttest.Knobs{AuthorityEnd: time.Now().Add(-30 * time.Minute)}, want: "no authority for that time"},
		"no codeSigning":         {knobs: clienttest.Knobs{Edit: serverAuth}, want: "not for code signing"},
		"no usage, thus any":     {knobs: clienttest.Knobs{Edit: anyUse}, want: "not for code signing"},
		"another address":        {knobs: clienttest.Knobs{Edit: addressed("mallory@example.com")}, want: "another mail address"},
		"another case":           {knobs: clienttest.Knobs{Edit: addressed("Alice@example.com")}, want: "another mail address"},
		"two names":              {knobs: clienttest.Knobs{Edit: twoNames}, want: "one identity"},
		"another username":       {knobs: clienttest.Knobs{Username: "alice2!example.com"}, want: "another username"},
		"no domain":              {knobs: clienttest.Knobs{Username: "alice!"}, want: "another username"},
		"a broker's issuer":      {knobs: clienttest.Knobs{Issuer: "https://accounts.example.com"}},
		"another issuer":         {knobs: clienttest.Knobs{Username: "alice!example.com", Issuer: "https://other.example.com"}, want: "another issuer"},
		"expired":                {knobs: clienttest.Knobs{Edit: moved(-20 * time.Minute)}, want: "which is not now"},
		"not yet valid":          {knobs: clienttest.Knobs{Edit: moved(10 * time.Minute)}, want: "which is not now"},
		"a clock a little off":   {knobs: clienttest.Knobs{Edit: moved(4 * time.Minute)}},
		"a CA certificate":       {knobs: clienttest.Knobs{Edit: isCA}, want: "CA certificate"},
		"no SCT":                 {knobs: clienttest.Knobs{NoSCT: true}, want: "carries no SCT"},
		"no SCT, allowed":        {knobs: clienttest.Knobs{NoSCT: true}, unlogged: true},
		"detached, thus no SCT":  {knobs: clienttest.Knobs{NoSCT: true, Detached: true}, want: "carries no SCT"},
		"wrong SCT":              {knobs: clienttest.Knobs{BadSCT: true}, want: "signature"},
		"wrong SCT, if unlogged": {knobs: clienttest.Knobs{BadSCT: true}, unlogged: true, want: "signature"},
		"unknown log":            {knobs: clienttest.Knobs{UnknownLog: true}, want: "no log with this id"},
		"log ended":              {knobs: clienttest.Knobs{LogEnd: time.Now().Add(-30 * time.Minute)}, want: "outside the window"},
		"SCT before the log":     {knobs: clienttest.Knobs{SCTTime: time.Now().Add(-24 * time.Hour)}, want: "outside the window"},
		"SCT beyond all time":    {knobs: clienttest.Knobs{SCTTime: time.UnixMilli(1 << 60)}, want: "out of range"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca := clienttest.New(t)
			ca.Set(c.knobs)
			token, key, s := alice(t, false)
			chain, err := (&REST{URL: ca.URL, HTTP: newHTTP(t)}).Certificate(t.Context(), s)
			if err != nil {
				t.Fatal(err)
			}
			trust := trustOf(t, ca)
			if c.stranger {
				trust = trustOf(t, clienttest.New(t))
			}
			_, err = trust.Verify(chain[0], key, token, c.unlogged, time.Now())
			var e *Error
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (!errors.As(err, &e) || e.Kind != Unverified || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// The chain that is written is the trusted root's: what the answer adds is
// not vouched for.
func TestVerifiedChainIsTheTrustedRoots(t *testing.T) {
	t.Parallel()
	ca := clienttest.New(t)
	token, key, s := alice(t, false)
	chain, err := (&REST{URL: ca.URL, HTTP: newHTTP(t)}).Certificate(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	v, err := trustOf(t, ca).Verify(chain[0], key, token, false, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range append([]*x509.Certificate{chain[0]}, ca.Chain()...) {
		if !v.Chain[i].Equal(want) {
			t.Errorf("certificate %d is another", i)
		}
	}
}

func TestTrustedRootIsRefused(t *testing.T) {
	t.Parallel()
	good := string(clienttest.New(t).TrustedRoot())
	for name, document := range map[string]string{
		"empty":          "",
		"not JSON":       "<html>",
		"no authorities": `{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`,
		"a wrong id":     strings.Replace(good, `"keyId":"`, `"keyId":"AAAA`, 1),
		"a broken chain": strings.Replace(good, `"rawBytes":"MII`, `"rawBytes":"MIIAAAA`, 1),
	} {
		var e *Error
		if _, err := ParseTrust([]byte(document)); !errors.As(err, &e) || e.Kind != Failed || e.Fix == "" {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestFetchTrustAndIssuers(t *testing.T) {
	t.Parallel()
	ca := clienttest.New(t)
	ca.Set(clienttest.Knobs{Issuers: []string{"https://one.example.com", "", "https://two.example.com"}, Audience: "https://ca.example.com"})
	trust, digest, err := FetchTrust(t.Context(), newHTTP(t), Retry{}, ca.URL+"/trusted_root.json")
	if err != nil || trust == nil || len(digest) != 64 {
		t.Errorf("got %v, %q, %v", trust, digest, err)
	}
	issuers, err := Issuers(t.Context(), newHTTP(t), Retry{}, ca.URL)
	want := []Accepted{{"https://one.example.com", "https://ca.example.com"}, {"https://two.example.com", "https://ca.example.com"}}
	if err != nil || !slices.Equal(issuers, want) {
		t.Errorf("got %v, %v", issuers, err)
	}
	var e *Error
	if _, _, err := FetchTrust(t.Context(), newHTTP(t), Retry{}, ca.URL+"/nowhere"); !errors.As(err, &e) || e.Kind != Refused {
		t.Errorf("got %v", err)
	}
}

func FuzzSCTs(f *testing.F) {
	f.Add([]byte{0x30, 0x03, 0x02, 0x01, 0x01})
	f.Fuzz(func(t *testing.T, der []byte) {
		// What a parsed certificate could carry, without its signature.
		cert := &x509.Certificate{RawTBSCertificate: der}
		if tbs, err := tbsWithoutSCTs(cert); err == nil {
			again, err := tbsWithoutSCTs(&x509.Certificate{RawTBSCertificate: tbs})
			if err == nil && string(again) != string(tbs) {
				t.Error("taking the SCTs out twice changes the TBS")
			}
		}
	})
}

// What may be wrong with a certificate, for clienttest.Knobs.Edit.

func serverAuth(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }

func anyUse(c *x509.Certificate) { c.ExtKeyUsage = nil }

func twoNames(c *x509.Certificate) {
	c.URIs = append(c.URIs, &url.URL{Scheme: "https", Host: "other.example.com"})
}

func isCA(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }

func addressed(address string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.EmailAddresses = []string{address} }
}

func moved(d time.Duration) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.NotBefore, c.NotAfter = c.NotBefore.Add(d), c.NotAfter.Add(d) }
}
