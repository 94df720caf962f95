package index

import (
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"slices"
	"strings"
	"time"

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

// certificate is an entry, decoded.
type certificate struct {
	subject, run           []string // in the order of ofSubject and ofRun
	serial, keyFingerprint string
	notBefore, notAfter    time.Time
}

func (c *certificate) of(column string) string { return c.subject[slices.Index(ofSubject, column)] }
func (c *certificate) authority() string       { return c.subject[1] }

// Unreadable is the san_type of an entry whose certificate can't be read: it is kept,
// so that the index has every entry.
const Unreadable = "unreadable"

// decode reads an entry. It never fails: logs take what their CAs signed.
func decode(e follow.Entry) *certificate {
	c := &certificate{subject: make([]string, len(ofSubject)), run: make([]string, len(ofRun))}
	cert, err := e.X509()
	values := map[string]string{"san_type": Unreadable}
	if err != nil {
		c.notBefore, c.notAfter = e.Timestamp, e.Timestamp
	} else {
		c.serial, c.keyFingerprint = clip(cert.SerialNumber.Text(16)), fingerprint(cert.RawSubjectPublicKeyInfo)
		c.notBefore, c.notAfter = cert.NotBefore, cert.NotAfter
		set, _ := extension.Parse(cert.Extensions) // what can't be read isn't found
		values = set.Map()
		values["authority"] = hex.EncodeToString(cert.AuthorityKeyId)
		if names := extension.SANs(cert); len(names) > 0 {
			values["san"], values["san_type"] = names[0].Value, names[0].Type
		}
		derive(values)
	}
	for i, column := range ofSubject {
		c.subject[i] = clip(values[column])
	}
	for i, column := range ofRun {
		c.run[i] = clip(values[column])
	}
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
		workflow := v["build_config_uri"]
		if workflow == "" {
			workflow = san
		}
		v["workflow"], _, _ = strings.Cut(workflow, "@")
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

func fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}
