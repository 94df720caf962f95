package page

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/index"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/ctlog/follow"
	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

// named is something that a certificate says; Search finds all that say the same.
type named struct{ Name, OID, Value, Search string }

// link is a certificate of the chain.
type link struct {
	Subject, Role, Fingerprint string
	NotAfter                   time.Time
}

// placed is an entry of a log, and what the log shows of it now.
type placed struct {
	Log, ID string
	Index   uint64
	Logged  time.Time
	Size    uint64 // of the tree in which it is proved to be; 0: it isn't
	Signed  time.Time
	Fault   string
}

// described is all that there is to say of one certificate.
type described struct {
	row
	Serial, Key, Fingerprint, KeyFingerprint string
	NotAfter                                 time.Time
	Life                                     time.Duration
	Said                                     []named // identity extensions
	Others                                   []extension.Other
	Usages                                   []string
	Chain                                    []link
	Places                                   []placed
	Lines                                    []named // ready commands
	PEM                                      string  // address; empty: there is none
	Precertificate, Masked                   bool
}

var identifier = regexp.MustCompile(`^[0-9a-f]{1,64}$`)

// certificate is the page of one, by its serial number or a fingerprint; with `.pem` the
// file.
func (p *Page) certificate(r *http.Request, _ visitor) (any, error) {
	id, file := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, certificatesPath), ".pem")
	id = strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(id, "sha256:"), ":", ""))
	if !identifier.MatchString(id) {
		return nil, fault.New(fault.RequestMalformed, "A certificate is named by its serial number or its SHA-256 fingerprint, in hexadecimal.")
	}
	if p.o.Index == nil {
		return p.list(r, index.Query{}) // which says so
	}
	found, err := p.find(r.Context(), id)
	if err != nil {
		return nil, err
	}
	d, shown := p.describe(r.Context(), found)
	switch {
	case !file:
		return d, nil
	case d.PEM == "":
		return nil, fault.New(fault.RouteUnknown, "There is no file of this certificate here.")
	}
	return download{found[0].Fields["serial"] + ".pem", []byte(chain.Encode(shown.Submitted))}, nil
}

// find looks for a certificate by whatever the identifier can be. It is in several logs, or there
// is another of the same serial number or key.
func (p *Page) find(ctx context.Context, id string) ([]index.Certificate, error) {
	fields := []string{"serial", "certificate_fingerprint", "key_fingerprint"}
	if len(id) < 2*sha256.Size {
		fields, id = fields[:1], strings.TrimLeft(id, "0")
	}
	for _, field := range fields {
		found, err := p.o.Index.Search(ctx, index.Query{Filters: []index.Filter{{Field: field, Value: id}}, Limit: onPage})
		if err != nil || len(found.Certificates) > 0 {
			return found.Certificates, err
		}
	}
	return nil, fault.New(fault.RouteUnknown, "No certificate of that number or fingerprint is in the index. One that was just issued is here within seconds.")
}

// describe says what the index and the logs know of the first certificate.
func (p *Page) describe(ctx context.Context, found []index.Certificate) (d described, shown follow.Shown) {
	first := found[0]
	f, clean := first.Fields, p.cleaner(first.Fields)
	d = described{
		row: p.row(first), Serial: f["serial"], KeyFingerprint: f["key_fingerprint"], NotAfter: first.NotAfter,
		Life: first.NotAfter.Sub(first.NotBefore).Round(time.Minute),
	}
	history, _, err := p.o.CA.Trust()
	if err == nil {
		d.chain(f["authority"], history)
	}
	for _, c := range found {
		if c.Fields["serial"] != f["serial"] || c.Fields["authority"] != f["authority"] {
			continue
		}
		at := placed{ID: c.Fields["log"], Log: c.Fields["log"], Index: c.Index, Logged: c.Logged}
		for _, l := range history.CTLogs {
			if hex.EncodeToString(l.ID[:]) == at.ID {
				at.Log = l.URL
			}
		}
		if one, err := p.entry(ctx, c); err != nil {
			at.Fault = "It can't be shown now: " + p.clean(err.Error())
		} else {
			at.Size, at.Signed, shown = one.Size, one.Signed, one
		}
		d.Places = append(d.Places, at)
	}
	cert, err := shown.X509()
	if err == nil {
		d.read(cert, clean)
	} else { // the index knows less, and all that can be searched
		for _, name := range index.Shown {
			if f[name] != "" {
				d.Said = append(d.Said, named{Name: name, Value: clean(f[name])})
			}
		}
	}
	d.link(f, clean)
	d.Precertificate = shown.Precert
	d.Masked = clean(f["san"]) != terminal.Line(f["san"])
	if shown.Submitted != nil && !d.Masked {
		d.PEM = certificatesPath + d.Serial + ".pem"
		if !shown.Precert {
			d.Fingerprint = chain.Fingerprint(shown.Submitted)
		}
	}
	if !d.Masked {
		d.Lines = p.lines(f["san"], f["issuer"], history)
	}
	return d, shown
}

// entry asks the log for what the index knows of.
func (p *Page) entry(ctx context.Context, c index.Certificate) (follow.Shown, error) {
	var id [sha256.Size]byte
	if _, err := hex.Decode(id[:], []byte(c.Fields["log"])); err != nil || p.o.Entries == nil {
		return follow.Shown{}, fault.New(fault.LogUnavailable, "its log isn't read here")
	}
	return p.o.Entries.Show(ctx, id, c.Index)
}

// read takes from a certificate what it says.
func (d *described) read(cert *x509.Certificate, clean func(string) string) {
	said, others := extension.List(cert)
	for _, e := range said {
		one := named{Name: e.Name, OID: e.OID, Value: clean(e.Value)}
		if e.Fault != "" {
			one.Name, one.Value = "unreadable", clean(e.Fault)
		}
		d.Said = append(d.Said, one)
	}
	d.Others, d.Usages, d.Key = others, extension.Usages(cert), pubkey.Name(cert.PublicKey)
}

// link has what can be searched lead to all that say the same.
func (d *described) link(f map[string]string, clean func(string) string) {
	for i, s := range d.Said {
		for _, name := range index.Fields {
			if f[name] == s.Value && s.Value != "" && clean(s.Value) == f[name] && (d.Said[i].Search == "" || strings.EqualFold(strings.ReplaceAll(name, "_", " "), s.Name)) {
				d.Said[i].Search = name
			}
		}
	}
}

// chain is that of the authority with a key's identifier.
func (d *described) chain(authority string, h trustroot.History) {
	for _, a := range h.Authorities {
		if hex.EncodeToString(a.Chain[0].SubjectKeyId) != authority || d.Chain != nil {
			continue
		}
		for i, c := range a.Chain {
			role := "intermediate"
			switch {
			case i == len(a.Chain)-1:
				role = "root"
			case i == 0:
				role = "issued it"
			}
			d.Chain = append(d.Chain, link{chain.Subject(c), role, chain.Fingerprint(c.Raw), c.NotAfter})
		}
	}
}

// lines are commands that verify what the identity signed.
func (p *Page) lines(identity, issuer string, h trustroot.History) []named {
	if identity == "" || issuer == "" || terminal.Line(identity+issuer) != identity+issuer {
		return nil // a command that doesn't print as it is isn't one to copy
	}
	who := " --certificate-identity " + quote(identity) + " --certificate-oidc-issuer " + quote(issuer)
	cosign := ""
	if len(h.TransparencyLogs) == 0 {
		cosign += " --insecure-ignore-tlog"
	}
	if len(h.TimestampAuthorities) > 0 {
		cosign += " --use-signed-timestamps"
	}
	return []named{
		{Name: "cosign, an image", Value: "cosign verify" + cosign + who + " IMAGE"},
		{Name: "cosign, a file", Value: "cosign verify-blob --bundle FILE.sigstore.json" + cosign + who + " FILE"},
		{Name: "mayfly, and whether it is revoked", Value: "mayfly verify --tuf-url " + quote(strings.TrimSuffix(p.o.PublicURL, "/")+"/tuf") + " --tuf-root 1.root.json --bundle FILE.sigstore.json" + who + " FILE"},
	}
}

// quote makes one word of a shell of any text.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
