package audit

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"strconv"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Limits of the strings of a record, in bytes before escaping.
const (
	maxLong  = 2048 // issuer, subject, SAN, message
	maxShort = 256  // all else
)

// maxFurtherSCTs bounds the SCTs of a record after the first (ctlog.MaxSCTs).
const maxFurtherSCTs = 7

// maxRecord bounds an encoded record: with the envelope 5 long and 18 short
// strings and two short ones for each further SCT, each byte escaped to six at
// most, and the rest.
const maxRecord = 6*(5*maxLong+(18+2*maxFurtherSCTs)*maxShort) + 4096

// begin is how every record begins, with the SHA-256 of the line before it, without its
// end, in hexadecimal at prevAt. [chain] puts it there, once the line's place is known.
const (
	begin  = `{"specversion":"1.0","prev":"`
	prevAt = len(begin)
	noPrev = "0000000000000000000000000000000000000000000000000000000000000000"
)

// chain ties whole lines to each other and to the one before them, whose hash is prev. It
// gives the hash of the last one.
func chain(lines []byte, prev [sha256.Size]byte) [sha256.Size]byte {
	for line := range bytes.Lines(lines) {
		hex.Encode(line[prevAt:], prev[:])
		prev = hashOf(line)
	}
	return prev
}

func hashOf(line []byte) [sha256.Size]byte {
	return sha256.Sum256(bytes.TrimSuffix(line, []byte("\n")))
}

// statement is what the signature of a head is over: all before it in the file, by the
// hash of the line before.
func statement(file, at, prev string) []byte {
	sum := sha256.Sum256([]byte("mayfly audit head\n" + file + "\n" + at + "\n" + prev + "\n"))
	return sum[:]
}

// envelope writes the CloudEvents attributes that all records share.
// CloudEvents 1.0.2 §3.1 (required) and §3.2 (optional attributes).
type envelope struct {
	source []byte // `"source":"…"`, encoded once
	run    string // begins every id
	now    func() time.Time
	last   atomic.Uint64
}

func newEnvelope(source, run string, now func() time.Time) *envelope {
	return &envelope{source: appendField(nil, "source", source, maxLong), run: run, now: now}
}

// begin appends an event's attributes up to `"data":{`.
func (v *envelope) begin(b []byte, t Type, at time.Time, subject string) []byte {
	if at.IsZero() {
		at = v.now()
	}
	b = append(b, begin+noPrev+`","id":"`...)
	b = append(b, v.run...)
	b = append(b, '-')
	b = strconv.AppendUint(b, v.last.Add(1), 10)
	b = append(b, `",`...)
	b = append(b, v.source...)
	b = appendField(b, "type", t.name(), maxShort)
	b = appendField(b, "subject", subject, maxShort)
	b = appendTime(b, "time", at)
	return append(b, `"datacontenttype":"application/json","data":{`...)
}

// end closes the data and the event, and ends the line.
func end(b []byte) []byte {
	if b[len(b)-1] == ',' {
		b = b[:len(b)-1]
	}
	return append(b, "}}\n"...)
}

// event appends e as one line.
func (v *envelope) event(b []byte, e *Event) []byte {
	b = v.begin(b, e.Type, e.Time, e.Serial)
	b = appendField(b, "request_id", e.RequestID, maxShort)
	b = appendField(b, "serial", e.Serial, maxShort)
	b = appendField(b, "purpose", e.Purpose, maxShort)
	b = appendField(b, "issuer", e.Issuer, maxLong)
	b = appendField(b, "issuer_type", e.IssuerType, maxShort)
	b = appendField(b, "subject", e.Subject, maxLong)
	b = appendField(b, "san", e.SAN, maxLong)
	b = appendField(b, "san_type", e.SANType, maxShort)
	b = appendField(b, "key_algorithm", e.KeyAlgorithm, maxShort)
	b = appendField(b, "key_fingerprint", e.KeyFingerprint, maxShort)
	b = appendTime(b, "not_before", e.NotBefore)
	b = appendTime(b, "not_after", e.NotAfter)
	b = appendField(b, "fingerprint", e.Fingerprint, maxShort)
	b = appendField(b, "authority", e.Authority, maxShort)
	b = appendSCT(b, e.SCT)
	if len(e.FurtherSCTs) > 0 {
		b = append(b, `"further_scts":[`...)
		for _, sct := range e.FurtherSCTs[:min(len(e.FurtherSCTs), maxFurtherSCTs)] {
			b = appendSCT(append(b, '{'), sct)
			b = append(bytes.TrimSuffix(b, []byte(",")), "},"...)
		}
		b = append(bytes.TrimSuffix(b, []byte(",")), "],"...)
	}
	b = appendField(b, "rule", e.Rule, maxShort)
	b = appendField(b, "reason", string(e.Reason), maxShort)
	b = appendField(b, "message", e.Message, maxLong)
	b = appendField(b, "act", e.Act, maxShort)
	b = appendField(b, "by", e.By, maxShort)
	b = appendField(b, "what", e.What, maxShort)
	b = appendField(b, "remote_addr", e.RemoteAddr, maxShort)
	b = appendField(b, "method", e.Method, maxShort)
	return end(b)
}

// appendSCT appends the fields of one SCT.
func appendSCT(b []byte, s SCT) []byte {
	b = appendField(b, "log_id", s.LogID, maxShort)
	if s.LogIndex != nil {
		b = append(b, `"log_index":`...)
		b = strconv.AppendUint(b, *s.LogIndex, 10)
		b = append(b, ',')
	}
	b = appendTime(b, "sct_timestamp", s.SCTTimestamp)
	return appendField(b, "leaf_hash", s.LeafHash, maxShort)
}

// mark appends the record that follows a storage failure: how many records
// failed since the last success, and the cut line, if there was one.
func (v *envelope) mark(b []byte, failed uint64, torn []byte) []byte {
	b = v.begin(b, recovered, time.Time{}, "")
	b = append(b, `"failed_records":`...)
	b = strconv.AppendUint(b, failed, 10)
	b = append(b, ',')
	b = appendField(b, "torn_line", string(torn), maxLong)
	return end(b)
}

// head appends the record that signs all before it in the file; tip is the hash of the
// line before.
func (v *envelope) head(b []byte, file string, tip [sha256.Size]byte, key *ecdsa.PrivateKey) ([]byte, error) {
	at := v.now().UTC()
	sig, err := key.Sign(rand.Reader, statement(file, at.Format(time.RFC3339Nano), hex.EncodeToString(tip[:])), crypto.SHA256)
	if err != nil {
		return b, err
	}
	b = v.begin(b, head, at, "")
	b = appendField(b, "file", file, maxShort)
	b = appendField(b, "signature", base64.StdEncoding.EncodeToString(sig), maxShort)
	return end(b), nil
}

// appendField appends `"key":"value",`, or nothing for an empty value.
func appendField(b []byte, key, value string, limit int) []byte {
	if value == "" {
		return b
	}
	b = append(b, '"')
	b = append(b, key...)
	b = append(b, `":"`...)
	b = appendEscaped(b, value, limit)
	return append(b, `",`...)
}

// appendTime appends `"key":"RFC 3339 time in UTC",`, or nothing for the zero time.
func appendTime(b []byte, key string, t time.Time) []byte {
	if t.IsZero() {
		return b
	}
	b = append(b, '"')
	b = append(b, key...)
	b = append(b, `":"`...)
	b = t.UTC().AppendFormat(b, time.RFC3339Nano)
	return append(b, `",`...)
}

const hexDigits = "0123456789abcdef"

// appendEscaped appends s as the inside of a JSON string (RFC 8259 §7). Beyond
// what JSON asks, it escapes every character that doesn't print (bidirectional
// overrides, terminal controls), so that a line shown on a screen can't deceive;
// invalid UTF-8 becomes U+FFFD. What is over limit bytes is cut at a character.
func appendEscaped(b []byte, s string, limit int) []byte {
	end := ""
	if len(s) > limit {
		for limit > 0 && !utf8.RuneStart(s[limit]) {
			limit--
		}
		s, end = s[:limit], "…"
	}
	for len(s) > 0 {
		plain := 0
		for plain < len(s) && s[plain] >= ' ' && s[plain] < 0x7f && s[plain] != '"' && s[plain] != '\\' {
			plain++
		}
		b, s = append(b, s[:plain]...), s[plain:]
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case size == 0: // that was all
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r == utf8.RuneError && size == 1 || !unicode.IsPrint(r):
			var units [2]uint16
			for _, u := range utf16.AppendRune(units[:0], r) {
				b = append(b, '\\', 'u', hexDigits[u>>12], hexDigits[u>>8&0xf], hexDigits[u>>4&0xf], hexDigits[u&0xf])
			}
		default:
			b = append(b, s[:size]...)
		}
		s = s[size:]
	}
	return append(b, end...)
}
