package page

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ca/index"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/ctlog/follow"
	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/internal/fault"
	"github.com/mayfly-ca/mayfly/internal/pubkey"
	"github.com/mayfly-ca/mayfly/internal/terminal"
)

// named is something with its name; Search is the field that finds all that say the same.
type named struct{ Name, OID, Value, Search string }

// placed is an entry of a log, and what the log shows of it now; a Size of 0: nothing.
type placed struct {
	Log    string
	Logged time.Time
	follow.Shown
	Index uint64
	Fault string
}

// certificate is the page of one, by its serial number or a fingerprint; with `.pem` the file.
func (p *Page) certificate(r *http.Request) (any, error) {
	id, file := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, certificatesPath), ".pem")
	id = strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(id, "sha256:"), ":", ""))
	if id == "" || len(id) > 2*sha256.Size || strings.Trim(id, "0123456789abcdef") != "" {
		return nil, fault.New(fault.RequestMalformed, "A certificate is named by its serial number or its SHA-256 fingerprint, in hexadecimal.")
	}
	if p.o.Index == nil {
		return p.list(r, index.Query{}, values{}) // which says so
	}
	found, err := p.find(r.Context(), id)
	if err != nil {
		return nil, err
	}
	v := p.describe(r.Context(), found)
	if der, _ := v["File"].([]byte); file && der != nil {
		return []byte(chain.Encode(der)), nil
	} else if file {
		return nil, fault.New(fault.RouteUnknown, "There is no file of this certificate here.")
	}
	return v, nil
}

// find looks for a certificate by whatever the identifier can be. One may be in several logs.
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
func (p *Page) describe(ctx context.Context, found []index.Certificate) values {
	first := found[0]
	f, clean := first.Fields, p.cleaner(first.Fields["san"], first.Fields["san_type"])
	history, _, _ := p.o.CA.Trust() // without it less is said
	v := values{"Row": p.row(first), "Life": strings.TrimSpace(humanize.RelTime(first.NotBefore, first.NotAfter.Add(time.Second), "", ""))}
	places, shown := []placed(nil), follow.Shown{}
	ctx, cancel := context.WithTimeout(ctx, showTime)
	defer cancel()
	for _, c := range found {
		if c.Fields["serial"] != f["serial"] || c.Fields["authority"] != f["authority"] {
			continue
		}
		at := placed{Log: c.Fields["log"], Logged: c.Logged, Index: c.Index}
		for _, l := range history.CTLogs {
			if hex.EncodeToString(l.ID[:]) == at.Log {
				at.Log = l.URL
			}
		}
		var id [sha256.Size]byte
		if _, err := hex.Decode(id[:], []byte(c.Fields["log"])); err != nil || p.o.Entries == nil {
			at.Fault = "its log isn't read here"
		} else if at.Shown, err = p.o.Entries.Show(ctx, id, c.Index); err != nil {
			at.Fault = p.clean(err.Error())
		} else {
			shown = at.Shown
		}
		places = append(places, at)
	}
	var said []named
	if cert, err := shown.X509(); err == nil {
		ours, others := extension.List(cert)
		for _, e := range ours {
			said = append(said, named{Name: e.Name, OID: e.OID, Value: clean(e.Value + e.Fault)})
		}
		v["Others"], v["Usages"], v["Key"] = others, extension.Usages(cert), pubkey.Name(cert.PublicKey)
	} else { // the index knows less
		for _, name := range index.Shown {
			if f[name] != "" {
				said = append(said, named{Name: name, Value: clean(f[name])})
			}
		}
	}
	for i, s := range said { // what is shown as it is can be searched
		for _, name := range index.Fields {
			if f[name] != "" && f[name] == s.Value && (said[i].Search == "" || strings.EqualFold(strings.ReplaceAll(name, "_", " "), s.Name)) {
				said[i].Search = name
			}
		}
	}
	v["Places"], v["Said"], v["Chain"], v["Precertificate"] = places, said, issuers(f["authority"], history), shown.Precert
	if slices.ContainsFunc(slices.Collect(maps.Values(f)), func(s string) bool { return clean(s) != terminal.Line(s) }) {
		return v // a file and a command would have an address
	}
	v["File"], v["TUF"], v["Rekor"], v["Stamped"] = shown.Submitted, quote(p.o.PublicURL+"/tuf"), len(history.TransparencyLogs) > 0, len(history.TimestampAuthorities) > 0
	if san, issuer := f["san"], f["issuer"]; san != "" && issuer != "" && terminal.Line(san+issuer) == san+issuer { // a command that doesn't print as it is isn't one to copy
		v["Identity"] = "--certificate-identity " + quote(san) + " --certificate-oidc-issuer " + quote(issuer)
	}
	return v
}

// issuers is the chain of the authority whose key has an identifier.
func issuers(authority string, h trustroot.History) (all []window) {
	for _, a := range h.Authorities {
		if all != nil || hex.EncodeToString(a.Chain[0].SubjectKeyId) != authority {
			continue
		}
		for _, c := range a.Chain {
			all = append(all, window{Name: chain.Subject(c), Fingerprint: chain.Fingerprint(c.Raw), End: c.NotAfter})
		}
	}
	return all
}

// quote makes one word of a shell of any text.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
