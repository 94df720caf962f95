package audit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

func full() Event {
	index := uint64(42)
	return Event{
		Type: Issued, Time: noon, RequestID: "REQ", Serial: "0a1b",
		Issuer: "https://accounts.example", IssuerType: "email", Subject: "alice",
		SAN: "alice@example.com", SANType: "email",
		KeyAlgorithm: "ECDSA-P256", KeyFingerprint: "aa", NotBefore: noon, NotAfter: noon,
		Fingerprint: "bb", Authority: "2026a", SCT: SCT{LogID: "cc", LogIndex: &index, SCTTimestamp: noon, LeafHash: "77"},
		FurtherSCTs: []SCT{{LogID: "dd", LogIndex: &index, SCTTimestamp: noon, LeafHash: "ee"}, {LogID: "ff"}},
		Reason:      fault.LogUnavailable, Message: "m", RemoteAddr: "192.0.2.1", Method: "CreateSigningCertificate",
	}
}

func TestEventIsACloudEventWithEveryField(t *testing.T) {
	t.Parallel()
	v := newEnvelope("https://ca.example", "run", fixed)
	e := full()
	r := parse(t, string(v.event(nil, &e)))
	if r.Type != "dev.mayfly.certificate.issued" || r.ID != "run-1" || r.Source != "https://ca.example" || *r.Subject != "0a1b" {
		t.Errorf("attributes: %+v", r)
	}
	if r.Time != "2026-11-22T12:00:00.123456789Z" {
		t.Errorf("time = %s", r.Time)
	}
	want := map[string]any{
		"request_id": "REQ", "serial": "0a1b", "issuer": "https://accounts.example", "issuer_type": "email",
		"subject": "alice", "san": "alice@example.com", "san_type": "email", "key_algorithm": "ECDSA-P256",
		"key_fingerprint": "aa", "fingerprint": "bb", "authority": "2026a", "log_id": "cc", "log_index": 42.0, "leaf_hash": "77",
		"reason": "LOG_UNAVAILABLE", "message": "m", "remote_addr": "192.0.2.1", "method": "CreateSigningCertificate",
		"not_before": r.Time, "not_after": r.Time, "sct_timestamp": r.Time,
	}
	further := fmt.Sprint([]any{
		map[string]any{"log_id": "dd", "log_index": 42.0, "sct_timestamp": r.Time, "leaf_hash": "ee"}, map[string]any{"log_id": "ff"},
	})
	if got := fmt.Sprint(r.Data["further_scts"]); got != further {
		t.Errorf("further SCTs %s, want %s", got, further)
	}
	delete(r.Data, "further_scts")
	for name, value := range want {
		if r.Data[name] != value {
			t.Errorf("%s = %v, want %v", name, r.Data[name], value)
		}
	}
	if len(r.Data) != len(want) {
		t.Errorf("data has %d members, want %d: %v", len(r.Data), len(want), r.Data)
	}
}

func TestZeroFieldsAreLeftOut(t *testing.T) {
	t.Parallel()
	v := newEnvelope("mayfly", "run", fixed)
	r := parse(t, string(v.event(nil, &Event{Type: Denied})))
	if len(r.Data) != 0 || r.Subject != nil || r.Time != "2026-11-22T12:00:00.123456789Z" {
		t.Errorf("%+v", r)
	}
}

func TestStringsAreEscapedAndCut(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, in, line string
		limit          int
	}{
		{"plain", "alice@example.com", `alice@example.com`, 99},
		{"quote and backslash", `a"\b`, `a\"\\b`, 99},
		{"new line can't start a record", "a\n{\"x\":1}\r", `a\u000a{\"x\":1}\u000d`, 99},
		{"controls", "\x00\x1b[31m\x7f", `\u0000\u001b[31m\u007f`, 99},
		{"right-to-left override", "a\u202eb", `a\u202eb`, 99},
		{"line separator", "a\u2028b", `a\u2028b`, 99},
		{"outside the basic plane, unprintable", "\U000e0001", `\udb40\udc01`, 99},
		{"printable letters stay", "é日本🙂", `é日本🙂`, 99},
		{"invalid UTF-8", "a\xffb", `a\ufffdb`, 99},
		{"cut", "abcdef", `abc…`, 3},
		{"cut at a character", "aé日", `a…`, 2},
		{"cut inside invalid UTF-8", "\x80\x80\x80", `…`, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := string(appendEscaped(nil, tt.in, tt.limit)); got != tt.line {
				t.Errorf("got %s, want %s", got, tt.line)
			}
		})
	}
}

func TestARecordIsBounded(t *testing.T) {
	t.Parallel()
	e := full()
	worst := strings.Repeat("\x01", 1<<20)
	for _, s := range []*string{
		&e.RequestID, &e.Serial, &e.Issuer, &e.IssuerType, &e.Subject, &e.SAN, &e.SANType, &e.KeyAlgorithm,
		&e.KeyFingerprint, &e.Fingerprint, &e.Authority, &e.LogID, &e.Message, &e.RemoteAddr, &e.Method,
	} {
		*s = worst
	}
	e.Reason = fault.Reason(worst)
	e.FurtherSCTs = slices.Repeat([]SCT{{LogID: worst, LeafHash: worst}}, 100)
	v := newEnvelope(worst, "0123456789abcdef", fixed)
	if n := len(v.event(nil, &e)); n > maxRecord {
		t.Errorf("a record of %d bytes, the bound is %d", n, maxRecord)
	}
	if n := len(v.mark(nil, 1<<63, []byte(worst))); n > maxRecord {
		t.Errorf("a mark of %d bytes, the bound is %d", n, maxRecord)
	}
}

// TestEncodingAllocatesNothing bounds the encoder at no allocation once the batch's buffer has grown.
func TestEncodingAllocatesNothing(t *testing.T) {
	v := newEnvelope("https://ca.example", "run", fixed)
	e := full()
	buf := make([]byte, 0, maxRecord)
	if n := testing.AllocsPerRun(100, func() { buf = v.event(buf[:0], &e) }); n != 0 {
		t.Errorf("%v allocations a record", n)
	}
}

func FuzzEscape(f *testing.F) {
	for _, s := range []string{"", "alice", "a\"\\\n\x00", "\xff\xfe", "\u202e\u2028", "\U000e0001🙂", strings.Repeat("é", 2000)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		line := append(appendEscaped([]byte{'"'}, s, maxLong), '"')
		var got string
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if bytes.ContainsAny(line, "\n\r\x00\x1b") {
			t.Fatalf("%q holds a control character", line)
		}
		if len(s) <= maxLong && utf8.ValidString(s) && got != s {
			t.Fatalf("%q came back as %q", s, got)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	v := newEnvelope("https://ca.example", "run", fixed)
	e := full()
	buf := make([]byte, 0, maxRecord)
	b.ReportAllocs()
	for b.Loop() {
		buf = v.event(buf[:0], &e)
	}
	b.SetBytes(int64(len(buf)))
}
