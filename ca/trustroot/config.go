package trustroot

import (
	"cmp"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/pemfile"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Config is the section `trust` of the configuration: what else the documents for
// clients say. Remove nothing from it: an entry that was in use gets an `end`, and
// what was signed before goes on to verify.
type Config struct {
	// TimestampAuthorities are those that others run: their timestamps show that a
	// signature was made while its certificate was valid.
	TimestampAuthorities []TimestampAuthorityConfig `yaml:"timestamp_authorities,omitempty"`
	// TransparencyLogs are Rekor logs, which record signatures.
	TransparencyLogs []TransparencyLogConfig `yaml:"transparency_logs,omitempty"`
	// Operators says who runs the services at a host, as signing clients are told:
	// `accounts.google.com: google.com`. They ask one service of each operator. A
	// host that isn't here is its own.
	Operators map[string]string `yaml:"operators,omitempty"`
	// Excised are times in which nothing counts that was signed with certificates of this
	// CA: an emergency, for clients that know no list of what is revoked. Add one with
	// `mayfly tuf stage --excise`, which counts what it hits, and leave it here.
	Excised []Gap `yaml:"excised,omitempty"`
}

// TimestampAuthorityConfig is a timestamp authority (RFC 3161) that somebody runs.
type TimestampAuthorityConfig struct {
	// URL is where it takes requests, its path included:
	// `https://tsa.example.com/api/v1/timestamp`. Without one its timestamps are
	// verified, and signing clients don't ask it.
	URL string `yaml:"url,omitempty"`
	// Chain is a PEM file with the certificate that signs timestamps first, each
	// certificate followed by the one that signed it, and the self-signed root last.
	Chain setting.Path `yaml:"chain"`
	// Operator is who runs it; the URL's host unless `operators` says otherwise.
	Operator string `yaml:"operator,omitempty"`
	// Start is the moment from which its timestamps count; the begin of the first
	// certificate unless configured.
	Start time.Time `yaml:"start,omitempty"`
	// End is the moment after which its timestamps don't count any more.
	End time.Time `yaml:"end,omitempty"`
}

// TransparencyLogConfig is a Rekor log that somebody runs.
type TransparencyLogConfig struct {
	// URL is where it takes entries, without a final slash.
	URL string `yaml:"url"`
	// APIVersion is 1, or 2 for a log of tiles (rekor-tiles), which gives no times:
	// signing with it takes a timestamp authority too.
	APIVersion uint32 `yaml:"api_version"`
	// KeyFile holds the log's public key in PEM.
	KeyFile setting.Path `yaml:"key_file"`
	// Origin is the host that names the log in its checkpoints, where it isn't the
	// URL's: `rekor.example.com`, without a port.
	Origin string `yaml:"origin,omitempty"`
	// Operator is who runs it; the URL's host unless `operators` says otherwise.
	Operator string `yaml:"operator,omitempty"`
	// Start is the moment from which its entries count; that of the first
	// certificate authority unless configured.
	Start time.Time `yaml:"start,omitempty"`
	// End is the moment after which its entries don't count any more.
	End time.Time `yaml:"end,omitempty"`
}

// maxEntries bounds each list.
const maxEntries = 64

// below gives the places of a list's entries, which clients fetch all of.
func below(f setting.Section, field string, n int) func(i int) setting.Section {
	f.Wrong(n > maxEntries, field, "has %d entries; at most %d", n, maxEntries)
	return func(i int) setting.Section {
		return setting.Section{Path: setting.Index(setting.Join(f.Path, field), i), Faults: f.Faults}
	}
}

// Check adds every fault of c. It reads no file.
func (c *Config) Check(path string, all *setting.Faults) {
	top := setting.Section{Path: path, Faults: all}
	at := below(top, "timestamp_authorities", len(c.TimestampAuthorities))
	for i, a := range c.TimestampAuthorities {
		f := at(i)
		if a.URL != "" {
			setting.CheckURL(setting.Join(f.Path, "url"), a.URL, true, all)
		}
		f.Wrong(a.Chain == "", "chain", "required: a PEM file, the certificate that signs timestamps first, the root last")
		setting.CheckWindow(f.Path, a.Start, a.End, all)
	}
	at = below(top, "transparency_logs", len(c.TransparencyLogs))
	for i, l := range c.TransparencyLogs {
		f := at(i)
		setting.CheckURL(setting.Join(f.Path, "url"), l.URL, true, all)
		f.Wrong(l.APIVersion != 1 && l.APIVersion != 2, "api_version", "is %d: 1, or 2 for a log of tiles", l.APIVersion)
		f.Wrong(l.KeyFile == "", "key_file", "required: the log's public key in PEM")
		// sigstore-go and sigstore-java take the host alone from the document.
		f.Wrong(l.Origin != "" && (!isHost(l.Origin) || l.Origin != strings.ToLower(l.Origin)), "origin", "%q isn't a host in lower case without port or path, and clients know a log by no other name", l.Origin)
		setting.CheckWindow(f.Path, l.Start, l.End, all)
	}
	at = below(top, "excised", len(c.Excised))
	for i, g := range c.Excised {
		err := g.check()
		if f := at(i); err != nil {
			f.Add(f.Path, "%v", err)
		}
	}
	for host, operator := range c.Operators {
		top.Wrong(!isHost(host) || operator == "", "operators", "%q: %q isn't a host, without scheme and port, and who runs it", host, operator)
	}
}

// isHost reports whether a text is a host and nothing else.
func isHost(text string) bool {
	u, err := url.Parse("https://" + text)
	return err == nil && u.Hostname() == text
}

// Operator is who runs what is at the URL: named where the entry says so, else what
// c says of its host, else the host itself.
func (c *Config) Operator(named, at string) string {
	u, err := url.Parse(at)
	if named != "" || err != nil {
		return named
	}
	if operator := c.Operators[u.Hostname()]; operator != "" {
		return operator
	}
	return u.Hostname()
}

// Read is c's part of the history: it reads the files that c names, and adds what
// is wrong with them.
func (c *Config) Read(path string, f *setting.Faults) History {
	var h History
	for i, a := range c.TimestampAuthorities {
		at := setting.Join(setting.Index(setting.Join(path, "timestamp_authorities"), i), "chain")
		b, err := os.ReadFile(string(a.Chain))
		if err != nil {
			f.Add(at, "reading it: %v", err)
			continue
		}
		certs, err := chain.Parse(b)
		if err == nil {
			err = checkStamping(certs)
		}
		if err != nil {
			f.Add(at, "%s %v", a.Chain, err)
			continue
		}
		h.TimestampAuthorities = append(h.TimestampAuthorities, Authority{
			Chain: certs, URL: a.URL, Operator: c.Operator(a.Operator, a.URL), Start: cmp.Or(a.Start, certs[0].NotBefore), End: a.End,
		})
	}
	for i, log := range c.TransparencyLogs {
		at := setting.Join(setting.Index(setting.Join(path, "transparency_logs"), i), "key_file")
		b, err := os.ReadFile(string(log.KeyFile))
		if err != nil {
			f.Add(at, "reading it: %v", err)
			continue
		}
		l := TransparencyLog{APIVersion: log.APIVersion, Origin: log.Origin, Description: ctlog.Description{
			URL: strings.TrimSuffix(log.URL, "/"), Operator: c.Operator(log.Operator, log.URL), Start: log.Start, End: log.End,
		}}
		if l.SPKI, _, err = pemfile.PublicKey(b); err == nil {
			if err = l.SetID(); err == nil {
				err = l.check()
			}
		}
		if err != nil {
			f.Add(at, "%s: %v", log.KeyFile, err)
			continue
		}
		h.TransparencyLogs = append(h.TransparencyLogs, l)
	}
	return h
}
