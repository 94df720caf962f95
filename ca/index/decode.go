package index

import (
	"cmp"
	"encoding/hex"
	"net/url"
	"slices"
	"strings"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ctlog/follow"
	"github.com/mayfly-ca/mayfly/identity/extension"
)

// ofRun are the extensions that nearly every certificate of a CI system has a value of
// its own for; they are in its row. All others are in its subject's.
var ofRun = []string{"github_sha", "build_signer_digest", "source_repository_digest", "build_config_digest", "run_invocation_uri"}

// ofSubject are the columns of a subject: the log first, then what is made of the
// certificate's names, then extensions.
var ofSubject = slices.Concat([]string{"log", "authority", "san", "san_type", "domain", "identity", "workflow", "issuer", "token_subject"},
	slices.DeleteFunc(extension.Fields(), func(name string) bool { return slices.Contains(ofRun, name) }))

// Unreadable is the san_type of an entry whose certificate can't be read: it is kept,
// so that the index has every entry.
const Unreadable = "unreadable"

// decode reads an entry of a log. It never fails: logs take what their CAs signed.
func decode(log string, e follow.Entry) *Certificate {
	c := &Certificate{Index: e.Index, Fields: map[string]string{"san_type": Unreadable}, Logged: e.Timestamp, NotBefore: e.Timestamp, NotAfter: e.Timestamp}
	if cert, err := e.X509(); err == nil {
		set, _ := extension.Parse(cert.Extensions) // what can't be read isn't found
		c.Fields, c.NotBefore, c.NotAfter = set.Map(), cert.NotBefore, cert.NotAfter
		c.Fields["serial"], c.Fields["key_fingerprint"] = cert.SerialNumber.Text(16), chain.Fingerprint(cert.RawSubjectPublicKeyInfo)
		c.Fields["authority"] = hex.EncodeToString(cert.AuthorityKeyId)
		if names := extension.SANs(cert); len(names) > 0 {
			c.Fields["san"], c.Fields["san_type"] = names[0].Value, names[0].Type
		}
		derive(c.Fields)
	}
	for name, value := range c.Fields {
		c.Fields[name] = clip(value)
	}
	c.Fields["log"] = log
	return c
}

// derive adds what isn't in the certificate in so many words: the domain of the address
// or the host of the URI; whom it counts for, the repository or else the name; and its
// workflow, whichever branch or tag it ran for.
func derive(v map[string]string) {
	san := v["san"]
	if u, err := url.Parse(san); err == nil && v["san_type"] == "uri" {
		v["domain"] = strings.ToLower(u.Hostname())
	} else if at := strings.LastIndexByte(san, '@'); v["san_type"] == "email" && at >= 0 {
		v["domain"] = strings.ToLower(san[at+1:])
	}
	v["identity"] = san
	if repository := v["source_repository_uri"]; repository != "" {
		v["identity"] = repository
		v["workflow"], _, _ = strings.Cut(cmp.Or(v["build_config_uri"], san), "@")
	}
}

// maxValue is how much of a value is kept, in bytes: two of them are a row of PostgreSQL's indexes, of 2704 at most.
const maxValue = 1300

// clip makes text of a value that PostgreSQL takes: no NUL, valid, and not too long.
func clip(s string) string {
	s = strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
	if len(s) > maxValue {
		s = strings.ToValidUTF8(s[:maxValue], "")
	}
	return s
}
