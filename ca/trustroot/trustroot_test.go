package trustroot

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/catest"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// chain makes an intermediate and a root of the organizations.
func newChain(t testing.TB, intermediateOrg, rootOrg string) [][]byte {
	t.Helper()
	ca := func(org, name string) *x509.Certificate {
		return catest.Authority(org, name, epoch, epoch.AddDate(5, 0, 0))
	}
	rootKey := catest.Key(t)
	root := catest.Sign(t, ca(rootOrg, "root"), nil, rootKey.Public(), rootKey)
	intermediate := catest.Sign(t, ca(intermediateOrg, "intermediate"), root, catest.Key(t).Public(), rootKey)
	return [][]byte{intermediate.Raw, root.Raw}
}

func newLog(t testing.TB) ctlog.Description {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(&catest.Key(t).PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return ctlog.Description{ID: sha256.Sum256(spki), SPKI: spki, URL: "https://log.example", Operator: "example.com", Start: epoch}
}

// sample is an input with a past authority listed after the present one.
func sample(t testing.TB) Input {
	t.Helper()
	later := newLog(t)
	later.Start = epoch.AddDate(0, 6, 0)
	service := func(url string) []Service { return []Service{{URL: url, Operator: "example.com", Start: epoch}} }
	return Input{
		Authorities: []Authority{
			{Chain: newChain(t, "Example", "Example"), URL: "https://ca.example", Start: epoch.AddDate(0, 1, 0)},
			{Chain: newChain(t, "Example", "Example"), URL: "https://ca.example", Start: epoch, End: epoch.AddDate(0, 2, 0)},
		},
		Logs:  []ctlog.Description{later, newLog(t)},
		CA:    service("https://ca.example"),
		OIDC:  service("https://issuer.example"),
		Rekor: service("https://rekor.example"),
		TSA:   service("https://tsa.example"),
	}
}

func render(t testing.TB, in Input) Documents {
	t.Helper()
	d, err := Render(in)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// decoded is the trusted root as a client's JSON reader sees it.
type decoded struct {
	MediaType              string
	CertificateAuthorities []struct {
		Subject   struct{ Organization, CommonName string }
		URI       string
		CertChain struct{ Certificates []struct{ RawBytes []byte } }
		ValidFor  struct{ Start, End string }
	}
	Ctlogs []struct {
		BaseURL       string
		HashAlgorithm string
		PublicKey     struct {
			RawBytes   []byte
			KeyDetails string
			ValidFor   struct{ Start, End string }
		}
		LogID           struct{ KeyID []byte }
		CheckpointKeyID any
	}
}

func decode(t *testing.T, b []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatal(err)
	}
}

// TestRules is one subtest for each rule that a real client was seen to need.
func TestRules(t *testing.T) {
	t.Parallel()
	in := sample(t)
	d := render(t, in)
	var root decoded
	decode(t, d.TrustedRoot, &root)

	t.Run("1 media type 0.1", func(t *testing.T) {
		if root.MediaType != "application/vnd.dev.sigstore.trustedroot+json;version=0.1" {
			t.Error(root.MediaType)
		}
	})
	t.Run("2 nothing beyond the schema", func(t *testing.T) {
		var top map[string]json.RawMessage
		decode(t, d.TrustedRoot, &top)
		for field := range top {
			if !slices.Contains([]string{"mediaType", "certificateAuthorities", "ctlogs"}, field) {
				t.Errorf("field %q", field)
			}
		}
		var logs struct{ Ctlogs []map[string]any }
		decode(t, d.TrustedRoot, &logs)
		for _, l := range logs.Ctlogs {
			for field := range l {
				if !slices.Contains([]string{"baseUrl", "hashAlgorithm", "publicKey", "logId"}, field) {
					t.Errorf("field ctlogs.%q is younger than some client", field)
				}
			}
		}
	})
	t.Run("3 logs", func(t *testing.T) { logs(t, in, root) })
	t.Run("4 chains end in the root, one Organization", func(t *testing.T) {
		a := root.CertificateAuthorities[0]
		if got := a.CertChain.Certificates; len(got) != 2 || !bytes.Equal(got[0].RawBytes, in.Authorities[1].Chain[0]) || !bytes.Equal(got[1].RawBytes, in.Authorities[1].Chain[1]) {
			t.Error("another chain is written")
		}
		if a.Subject.Organization != "Example" || a.Subject.CommonName != "intermediate" || a.URI != "https://ca.example" {
			t.Errorf("%+v", a.Subject)
		}
	})
	t.Run("5 ascending starts, open end", func(t *testing.T) {
		first, second := root.CertificateAuthorities[0].ValidFor, root.CertificateAuthorities[1].ValidFor
		if first.Start != "2026-01-02T03:04:05Z" || first.End != "2026-03-02T03:04:05Z" || second.Start != "2026-02-02T03:04:05Z" || second.End != "" {
			t.Errorf("%v, %v", first, second)
		}
	})
	t.Run("6 one line and a new line, the same each time", func(t *testing.T) {
		for name, b := range map[string][]byte{"trusted root": d.TrustedRoot, "signing config": d.SigningConfig, "trust config": d.TrustConfig} {
			if bytes.Count(b, []byte("\n")) != 1 || !bytes.HasSuffix(b, []byte("}\n")) || bytes.Contains(b, []byte(": ")) || bytes.Contains(b, []byte(", ")) {
				t.Errorf("%s: %s", name, b)
			}
		}
		for range 20 {
			again := render(t, in)
			if !bytes.Equal(again.TrustConfig, d.TrustConfig) || !bytes.Equal(again.TrustedRoot, d.TrustedRoot) {
				t.Fatal("the documents differ from one rendering to the next")
			}
		}
	})
	t.Run("7 signing config", func(t *testing.T) { signing(t, d.SigningConfig) })
	t.Run("8 a log that signs is listed", func(t *testing.T) {
		parsed, err := Parse(d.TrustedRoot)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range in.Logs {
			if _, ok := parsed.Logs[l.ID]; !ok {
				t.Errorf("log %x isn't", l.ID)
			}
		}
	})
	t.Run("trust config holds both", func(t *testing.T) {
		var both struct {
			MediaType                  string
			TrustedRoot, SigningConfig json.RawMessage
		}
		decode(t, d.TrustConfig, &both)
		if both.MediaType != "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json" ||
			string(both.TrustedRoot)+"\n" != string(d.TrustedRoot) || string(both.SigningConfig)+"\n" != string(d.SigningConfig) {
			t.Errorf("%s", d.TrustConfig)
		}
	})
}

func logs(t *testing.T, in Input, root decoded) {
	t.Helper()
	if len(root.Ctlogs) != 2 {
		t.Fatalf("%d logs", len(root.Ctlogs))
	}
	for i, l := range root.Ctlogs {
		want := in.Logs[1-i] // by start
		if !bytes.Equal(l.LogID.KeyID, want.ID[:]) || !bytes.Equal(l.PublicKey.RawBytes, want.SPKI) || l.BaseURL != want.URL ||
			l.HashAlgorithm != "SHA2_256" || l.PublicKey.KeyDetails != "PKIX_ECDSA_P256_SHA_256" || l.PublicKey.ValidFor.Start != want.Start.Format(time.RFC3339) {
			t.Errorf("log %d: %+v", i, l)
		}
		if l.CheckpointKeyID != nil {
			t.Error("checkpointKeyId makes sigstore-js refuse every SCT")
		}
	}
}

func signing(t *testing.T, b []byte) {
	t.Helper()
	want := `{"mediaType":"application/vnd.dev.sigstore.signingconfig.v0.2+json",` +
		`"caUrls":[{"url":"https://ca.example","majorApiVersion":1,"validFor":{"start":"2026-01-02T03:04:05Z"},"operator":"example.com"}],` +
		`"oidcUrls":[{"url":"https://issuer.example","majorApiVersion":1,"validFor":{"start":"2026-01-02T03:04:05Z"},"operator":"example.com"}],` +
		`"rekorTlogUrls":[{"url":"https://rekor.example","majorApiVersion":1,"validFor":{"start":"2026-01-02T03:04:05Z"},"operator":"example.com"}],` +
		`"rekorTlogConfig":{"selector":"ANY"},` +
		`"tsaUrls":[{"url":"https://tsa.example","majorApiVersion":1,"validFor":{"start":"2026-01-02T03:04:05Z"},"operator":"example.com"}],` +
		`"tsaConfig":{"selector":"ANY"}}` + "\n"
	var got, expected any
	decode(t, b, &got)
	decode(t, []byte(want), &expected)
	gotJSON, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	wantJSON, err := json.Marshal(expected)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(gotJSON, wantJSON) {
		t.Errorf("got  %s\nwant %s", gotJSON, wantJSON)
	}
}

// TestLogWithoutStart: clients want a start, and nothing was logged before there
// was an authority.
func TestLogWithoutStart(t *testing.T) {
	t.Parallel()
	in := sample(t)
	in.Logs = in.Logs[:1]
	in.Logs[0].Start = time.Time{}
	var root decoded
	decode(t, render(t, in).TrustedRoot, &root)
	if got := root.Ctlogs[0].PublicKey.ValidFor.Start; got != "2026-01-02T03:04:05Z" {
		t.Errorf("start %q", got)
	}
	if !in.Logs[0].Start.IsZero() {
		t.Error("Render wrote to its input")
	}
}

func TestRenderRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		wrong func(*Input)
		want  string
	}{
		{"no authority", func(in *Input) { in.Authorities = nil }, "no authority"},
		{"no chain", func(in *Input) { in.Authorities[0].Chain = nil }, "has no certificates"},
		{"no root", func(in *Input) { in.Authorities[0].Chain = in.Authorities[0].Chain[:1] }, "isn't signed by the next, or the last by itself"},
		{"garbage", func(in *Input) { in.Authorities[0].Chain[0] = []byte("x") }, "certificate 0"},
		{"two Organizations", func(in *Input) { in.Authorities[0].Chain = newChain(t, "A", "B") }, "another Organization"},
		{"no start", func(in *Input) { in.Authorities[0].Start = time.Time{} }, "has no start"},
		{"ends before it starts", func(in *Input) { in.Authorities[1].End = epoch.Add(-1) }, "ends before it starts"},
		{"log twice", func(in *Input) { in.Logs[0] = in.Logs[1] }, "listed twice"},
		{"log id", func(in *Input) { in.Logs[0].ID[0] ^= 1 }, "isn't the SHA-256 of its key"},
		{"log key", func(in *Input) { in.Logs[0].SPKI = []byte("x") }, "parsing the log's key"},
		{"service without a URL", func(in *Input) { in.CA[0].URL = "" }, "needs a URL and a start"},
	} {
		in := sample(t)
		tt.wrong(&in)
		if _, err := Render(in); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", tt.name, err, tt.want)
		}
	}
}

func TestParseReadsWhatRenderWrote(t *testing.T) {
	t.Parallel()
	in := sample(t)
	root, err := Parse(render(t, in).TrustedRoot)
	if err != nil {
		t.Fatal(err)
	}
	if len(root.Authorities) != 2 || len(root.Logs) != 2 {
		t.Fatalf("%d authorities, %d logs", len(root.Authorities), len(root.Logs))
	}
	past := root.Authorities[0]
	if !past.Holds(epoch) || past.Holds(epoch.Add(-time.Second)) || past.Holds(past.End.Add(time.Second)) || !root.Authorities[1].Holds(epoch.AddDate(9, 0, 0)) {
		t.Error("windows")
	}
	if !bytes.Equal(past.Chain[1].Raw, in.Authorities[1].Chain[1]) {
		t.Error("another chain")
	}
	l := root.Logs[in.Logs[0].ID]
	if !bytes.Equal(l.SPKI, in.Logs[0].SPKI) || !l.Start.Equal(in.Logs[0].Start) || !l.End.IsZero() || l.URL != in.Logs[0].URL {
		t.Errorf("%+v", l)
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	good := string(render(t, sample(t)).TrustedRoot)
	replace := func(old, with string) string {
		if !strings.Contains(good, old) {
			t.Errorf("the sample has no %q", old)
		}
		return strings.Replace(good, old, with, 1)
	}
	id := base64.StdEncoding.EncodeToString(make([]byte, 32))
	at := strings.Index(good, `"keyId":"`) + len(`"keyId":"`)
	for name, tt := range map[string]struct{ doc, want string }{
		"empty":         {"", "not a trusted root"},
		"array":         {"[]", "not a trusted root"},
		"media type":    {replace("version=0.1", "version=9"), "media type"},
		"no authority":  {`{"mediaType":"` + TrustedRootMediaType + `"}`, "no certificate authority"},
		"no start":      {replace(`"validFor":{"start":"2026-01-02T03:04:05Z",`, `"validFor":{`), "validFor.start is missing"},
		"end too early": {replace(`"end":"2026-03-02T03:04:05Z"`, `"end":"2025-03-02T03:04:05Z"`), "validFor.end"},
		"log id":        {good[:at] + id + good[at+len(id):], "isn't the SHA-256 of its key"},
		"short log id":  {good[:at] + "AAAA" + good[at+len(id):], "the log id has 3 bytes"},
		"too large":     {strings.Repeat(" ", MaxDocument+1), "larger than"},
	} {
		if _, err := Parse([]byte(tt.doc)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", name, err, tt.want)
		}
	}
	for name, doc := range map[string]string{
		"unknown field":          strings.Replace(good, `{"mediaType"`, `{"tomorrow":[1],"mediaType"`, 1),
		"media type 0.2":         replace(TrustedRootMediaType, "application/vnd.dev.sigstore.trustedroot.v0.2+json"),
		"a log of another kind":  replace("PKIX_ECDSA_P256_SHA_256", "PKIX_ED25519"),
		"white space and no end": " " + strings.TrimSpace(good),
	} {
		if _, err := Parse([]byte(doc)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzParse: a trusted root of any bytes is read or refused; what is read has
// chains and log ids that hold.
func FuzzParse(f *testing.F) {
	f.Add(render(f, sample(f)).TrustedRoot)
	f.Add([]byte(`{"mediaType":"` + TrustedRootMediaType + `","certificateAuthorities":[{}],"ctlogs":[{}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		root, err := Parse(b)
		if err != nil {
			return
		}
		for _, a := range root.Authorities {
			if len(a.Chain) == 0 || a.Start.IsZero() && a.End.IsZero() && a.Chain[0] == nil {
				t.Error("an authority without a chain")
			}
		}
		for id, l := range root.Logs {
			if id != l.ID || id != sha256.Sum256(l.SPKI) {
				t.Error("a log under another's id")
			}
		}
	})
}
