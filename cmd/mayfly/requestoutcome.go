package main

import (
	"crypto/x509"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/client"
	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/inspect"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

// chain is a CA's answer, leaf first.
type chain = []*x509.Certificate

// outcome is the answer of `mayfly request --json`.
type outcome struct {
	CA          string         `json:"ca"`
	TokenSource string         `json:"tokenSource"`
	Identity    []inspect.Name `json:"identity"`
	Issuer      string         `json:"issuer"`
	Subject     string         `json:"subject"` // of the token
	Serial      string         `json:"serial"`
	NotBefore   time.Time      `json:"notBefore"`
	NotAfter    time.Time      `json:"notAfter"`
	KeyType     string         `json:"keyType"`
	TrustedRoot string         `json:"trustedRoot"` // the file or URL that it was verified with
	SCTs        []inspect.SCT  `json:"scts"`
	KeyFile     string         `json:"keyFile"`
	CertFile    string         `json:"certificateFile"`
	Chain       string         `json:"certificateChain"` // PEM, leaf first, root last
}

func newOutcome(r *request, token *client.Token, source, origin string, key *client.Key, v *client.Verified) outcome {
	o := outcome{
		CA: r.ca, TokenSource: source, Subject: token.Subject, Issuer: token.Issuer,
		KeyType: string(key.Type()), TrustedRoot: origin,
		KeyFile: r.files.Key, CertFile: r.files.Certificate, Chain: string(client.ChainPEM(v.Chain)),
	}
	if r.grpc != "" {
		o.CA = r.grpc
	}
	d := inspect.Describe(v.Chain, nil)
	o.Identity, o.Serial, o.NotBefore, o.NotAfter = d.Identity, d.Serial, d.NotBefore, d.NotAfter
	if d.RecordedIssuer != "" {
		o.Issuer = d.RecordedIssuer
	}
	o.SCTs = inspect.SCTs(v.SCTs)
	return o
}

func (o outcome) print(w io.Writer, asJSON bool, now time.Time) error {
	if asJSON {
		return writeJSON(w, o)
	}
	var b strings.Builder
	field := func(label, value string) { fmt.Fprintf(&b, "%-12s %s\n", label, value) }
	for _, n := range o.Identity {
		field("identity", fmt.Sprintf("%s (%s)", terminal.Escape(n.Value), n.Type))
	}
	field("vouched by", terminal.Escape(o.Issuer))
	field("serial", o.Serial)
	field("validity", inspect.Validity(o.NotBefore, o.NotAfter, now))
	field("verified", "chain and key, with "+terminal.Escape(o.TrustedRoot))
	for _, s := range o.SCTs {
		field("SCT", s.String())
	}
	if len(o.SCTs) == 0 {
		field("SCT", "none: accepted because of --accept-unlogged")
	}
	field("key", terminal.Escape(o.KeyFile)+" (mode 0600)")
	field("certificate", terminal.Escape(o.CertFile)+" (leaf first)")
	_, err := io.WriteString(w, b.String())
	return err
}
