package trustroot

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/chain"
	"github.com/mayfly-ca/mayfly/ctlog"
	"github.com/mayfly-ca/mayfly/internal/catest"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// newChain makes an intermediate and a root of the organizations.
func newChain(t testing.TB, intermediateOrg, rootOrg string) []*x509.Certificate {
	t.Helper()
	ca := func(org, name string) *x509.Certificate {
		return catest.Authority(org, name, epoch, epoch.AddDate(5, 0, 0))
	}
	rootKey := catest.Key(t)
	root := catest.Sign(t, ca(rootOrg, "root"), nil, rootKey.Public(), rootKey)
	return []*x509.Certificate{catest.Sign(t, ca(intermediateOrg, "intermediate"), root, catest.Key(t).Public(), rootKey), root}
}

// stampingUsage is the extended key usage timeStamping (RFC 3161 §2.3).
func stampingUsage(critical bool) pkix.Extension {
	return pkix.Extension{Id: chain.OIDExtKeyUsage, Critical: critical, Value: []byte("\x30\x0a\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x08")}
}

// newStamping makes the chain of a timestamp authority: leaf, intermediate and root,
// after change has had its way with the first two.
func newStamping(t testing.TB, change func(leaf, intermediate *x509.Certificate)) []*x509.Certificate {
	t.Helper()
	rootKey, key := catest.Key(t), catest.Key(t)
	leaf, intermediate := catest.Authority("Stamps", "leaf", epoch, epoch.AddDate(1, 0, 0)), catest.Authority("Stamps", "intermediate", epoch, epoch.AddDate(5, 0, 0))
	leaf.IsCA, leaf.KeyUsage, leaf.ExtraExtensions = false, x509.KeyUsageDigitalSignature, []pkix.Extension{stampingUsage(true)}
	intermediate.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping}
	change(leaf, intermediate)
	root := catest.Sign(t, catest.Authority("Stamps", "root", epoch, epoch.AddDate(9, 0, 0)), nil, rootKey.Public(), rootKey)
	middle := catest.Sign(t, intermediate, root, key.Public(), rootKey)
	return []*x509.Certificate{catest.Sign(t, leaf, middle, catest.Key(t).Public(), key), middle, root}
}

func asIs(_, _ *x509.Certificate) {}

// newRekor is a Rekor log with the key.
func newRekor(t testing.TB, version uint32, key crypto.PublicKey) TransparencyLog {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	l := TransparencyLog{APIVersion: version, Description: ctlog.Description{SPKI: spki, URL: "https://rekor.example", Operator: "example.com", Start: epoch}}
	if err := l.SetID(); err != nil {
		t.Fatal(err)
	}
	return l
}

func newLog(t testing.TB) ctlog.Description {
	t.Helper()
	spki, err := x509.MarshalPKIXPublicKey(&catest.Key(t).PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return ctlog.Description{ID: sha256.Sum256(spki), SPKI: spki, URL: "https://log.example", Operator: "example.com", Start: epoch}
}

// sample is a history with past entries listed after the present ones.
func sample(t testing.TB) History {
	t.Helper()
	later := newLog(t)
	later.Start = epoch.AddDate(0, 6, 0)
	ca := func(start, end time.Time) Authority {
		return Authority{Chain: newChain(t, "Example", "Example"), URL: "https://ca.example", Operator: "example.com", Start: start, End: end}
	}
	tsa := func(start, end time.Time) Authority {
		return Authority{Chain: newStamping(t, asIs), URL: "https://tsa.example", Operator: "example.com", Start: start, End: end}
	}
	change := epoch.AddDate(0, 1, 0)
	rekor := newRekor(t, 2, catest.Key(t).Public())
	rekor.Start = change
	return History{
		Authorities:          []Authority{ca(change, time.Time{}), ca(epoch, epoch.AddDate(0, 2, 0))},
		CTLogs:               []ctlog.Description{later, newLog(t)},
		TimestampAuthorities: []Authority{tsa(change, time.Time{}), tsa(epoch, change)},
		TransparencyLogs:     []TransparencyLog{rekor, newRekor(t, 1, catest.Key(t).Public())},
		Issuers:              []Service{{URL: "https://issuer.example", Operator: "example.com", Start: epoch}},
	}
}

func render(t testing.TB, in History) Documents {
	t.Helper()
	d, err := Render(in)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// decoded is the trusted root as a client's JSON reader sees it.
type decoded struct {
	MediaType                                    string
	CertificateAuthorities, TimestampAuthorities []decodedAuthority
	Ctlogs, Tlogs                                []decodedLog
}

type decodedAuthority struct {
	Subject   struct{ Organization, CommonName string }
	URI       string
	CertChain struct{ Certificates []struct{ RawBytes []byte } }
	ValidFor  struct{ Start, End string }
}

type decodedLog struct {
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
	t.Run("2 nothing beyond the schema", func(t *testing.T) { schema(t, d.TrustedRoot) })
	t.Run("3 logs", func(t *testing.T) {
		var want []ctlog.Description
		for _, l := range slices.Backward(in.CTLogs) {
			want = append(want, l)
		}
		logs(t, root.Ctlogs, want)
		logs(t, root.Tlogs, []ctlog.Description{in.TransparencyLogs[1].Description, in.TransparencyLogs[0].Description})
	})
	t.Run("4 chains end in the root, one Organization", func(t *testing.T) {
		chains(t, root.CertificateAuthorities, in.Authorities, "Example", "intermediate")
		chains(t, root.TimestampAuthorities, in.TimestampAuthorities, "Stamps", "leaf")
	})
	t.Run("5 ascending starts, open end", func(t *testing.T) {
		for _, list := range [][]decodedAuthority{root.CertificateAuthorities, root.TimestampAuthorities} {
			first, second := list[0].ValidFor, list[1].ValidFor
			if first.Start != "2026-01-02T03:04:05Z" || first.End == "" || second.Start != "2026-02-02T03:04:05Z" || second.End != "" {
				t.Errorf("%v, %v", first, second)
			}
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
		for _, l := range in.CTLogs {
			if !slices.ContainsFunc(parsed.CTLogs, func(p ctlog.Description) bool { return p.ID == l.ID }) {
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

// schema wants only the fields that the oldest client knows.
func schema(t *testing.T, doc []byte) {
	t.Helper()
	var top map[string]json.RawMessage
	decode(t, doc, &top)
	known := map[string][]string{
		"certificateAuthorities": {"subject", "uri", "certChain", "validFor"}, "timestampAuthorities": {"subject", "uri", "certChain", "validFor"},
		"ctlogs": {"baseUrl", "hashAlgorithm", "publicKey", "logId"}, "tlogs": {"baseUrl", "hashAlgorithm", "publicKey", "logId"},
	}
	if len(top) != len(known)+1 {
		t.Errorf("%d fields", len(top))
	}
	for list, fields := range known {
		var entries []map[string]any
		decode(t, top[list], &entries)
		if len(entries) != 2 {
			t.Errorf("%s has %d entries", list, len(entries))
		}
		for _, e := range entries {
			for field := range e {
				if !slices.Contains(fields, field) {
					t.Errorf("field %s.%q is younger than some client", list, field)
				}
			}
		}
	}
}

// chains wants the entries to be those of the history, which are in opposite order.
func chains(t *testing.T, got []decodedAuthority, in []Authority, organization, name string) {
	t.Helper()
	if len(got) != len(in) {
		t.Fatalf("%d authorities", len(got))
	}
	for i, a := range got {
		want := in[len(in)-1-i]
		if len(a.CertChain.Certificates) != len(want.Chain) {
			t.Fatalf("%d certificates", len(a.CertChain.Certificates))
		}
		for j, c := range a.CertChain.Certificates {
			if !bytes.Equal(c.RawBytes, want.Chain[j].Raw) {
				t.Error("another chain is written")
			}
		}
		if a.Subject.Organization != organization || a.Subject.CommonName != name || a.URI != want.URL {
			t.Errorf("%+v, %s", a.Subject, a.URI)
		}
	}
}

func logs(t *testing.T, got []decodedLog, wanted []ctlog.Description) {
	t.Helper()
	if len(got) != len(wanted) {
		t.Fatalf("%d logs", len(got))
	}
	for i, l := range got {
		want := wanted[i]
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
		`"rekorTlogUrls":[{"url":"https://rekor.example","majorApiVersion":1,"validFor":{"start":"2026-01-02T03:04:05Z"},"operator":"example.com"},` +
		`{"url":"https://rekor.example","majorApiVersion":2,"validFor":{"start":"2026-02-02T03:04:05Z"},"operator":"example.com"}],` +
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
	in.CTLogs = in.CTLogs[:1]
	in.CTLogs[0].Start = time.Time{}
	var root decoded
	decode(t, render(t, in).TrustedRoot, &root)
	if got := root.Ctlogs[0].PublicKey.ValidFor.Start; got != "2026-01-02T03:04:05Z" {
		t.Errorf("start %q", got)
	}
	if !in.CTLogs[0].Start.IsZero() {
		t.Error("Render wrote to its input")
	}
}

func TestRenderRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		wrong func(*History)
		want  string
	}{
		{"no authority", func(in *History) { in.Authorities = nil }, "no authority"},
		{"no chain", func(in *History) { in.Authorities[0].Chain = nil }, "has no certificates"},
		{"no root", func(in *History) { in.Authorities[0].Chain = in.Authorities[0].Chain[:1] }, "isn't signed by the next, or the last by itself"},
		{"two Organizations", func(in *History) { in.Authorities[0].Chain = newChain(t, "A", "B") }, "another Organization"},
		{"no start", func(in *History) { in.Authorities[0].Start = time.Time{} }, "has no start"},
		{"ends before it starts", func(in *History) { in.Authorities[1].End = epoch.Add(-1) }, "ends before it starts"},
		{"log twice", func(in *History) { in.CTLogs[0] = in.CTLogs[1] }, "listed twice"},
		{"log id", func(in *History) { in.CTLogs[0].ID[0] ^= 1 }, "isn't the SHA-256 of its key"},
		{"log key", func(in *History) { in.CTLogs[0].SPKI = []byte("x") }, "parsing the log's key"},
		{"issuer without a start", func(in *History) { in.Issuers[0].Start = time.Time{} }, "needs a start"},
		{"timestamps without a root", func(in *History) { in.TimestampAuthorities[0].Chain = in.TimestampAuthorities[0].Chain[:2] }, "timestamp authority 1: certificate 1 isn't signed by the next"},
		{"timestamps by a CA", func(in *History) { in.TimestampAuthorities[0].Chain = newChain(t, "A", "A") }, "begins with a CA certificate"},
		{"timestamps without a start", func(in *History) { in.TimestampAuthorities[0].Start = time.Time{} }, "timestamp authority 0 has no start"},
		{"Rekor twice", func(in *History) { in.TransparencyLogs[0] = in.TransparencyLogs[1] }, "transparency log"},
		{"Rekor's id", func(in *History) { in.TransparencyLogs[0].ID[0] ^= 1 }, "the id isn't that of its key"},
		{"Rekor's key", func(in *History) { in.TransparencyLogs[0].SPKI = []byte("x") }, "parsing its key"},
		{"Rekor's curve", func(in *History) { in.TransparencyLogs[0] = newRekor(t, 1, p224(t)) }, "P-224"},
		{"Rekor's version", func(in *History) { in.TransparencyLogs[0].APIVersion = 3 }, "API version 3"},
		{"Rekor ends before it starts", func(in *History) { in.TransparencyLogs[0].End = epoch }, "ends before it starts"},
	} {
		in := sample(t)
		tt.wrong(&in)
		if _, err := Render(in); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", tt.name, err, tt.want)
		}
	}
}

func p224(t *testing.T) crypto.PublicKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key.Public()
}

// TestStampingChains: what verifiers of timestamps refuse isn't told to clients.
func TestStampingChains(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		change func(leaf, intermediate *x509.Certificate)
		want   string
	}{
		"as it should be":             {asIs, ""},
		"intermediate without usages": {func(_, i *x509.Certificate) { i.ExtKeyUsage = nil }, ""},
		"intermediate for anything":   {func(_, i *x509.Certificate) { i.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }, ""},
		"intermediate for code":       {func(_, i *x509.Certificate) { i.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }, "certificate 1 has extended key usages that exclude timeStamping"},
		"not critical":                {func(l, _ *x509.Certificate) { l.ExtraExtensions[0] = stampingUsage(false) }, "isn't timeStamping alone, critical"},
		"no usage":                    {func(l, _ *x509.Certificate) { l.ExtraExtensions = nil }, "isn't timeStamping alone, critical"},
		"another usage": {func(l, _ *x509.Certificate) {
			l.ExtraExtensions[0].Value = []byte("\x30\x0a\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x03")
		}, "isn't timeStamping alone, critical"},
		"an unknown usage": {func(l, _ *x509.Certificate) {
			l.ExtraExtensions[0].Value = []byte("\x30\x0a\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x63")
		}, "isn't timeStamping alone, critical"},
		"and another usage": {func(l, _ *x509.Certificate) {
			l.ExtraExtensions[0].Value = []byte("\x30\x14\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x08\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x03")
		}, "isn't timeStamping alone, critical"},
	} {
		in := sample(t)
		in.TimestampAuthorities[0].Chain = newStamping(t, tt.change)
		if _, err := Render(in); (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", name, err, tt.want)
		}
	}
}

// TestEmptyTlogs: sigstore-python can't read a root or a config without that list.
func TestEmptyTlogs(t *testing.T) {
	t.Parallel()
	in := sample(t)
	in.TransparencyLogs, in.TimestampAuthorities = nil, nil
	d := render(t, in)
	for name, b := range map[string][]byte{"trusted root": d.TrustedRoot, "trust config": d.TrustConfig} {
		if bytes.Count(b, []byte(`"tlogs":[]`)) != 1 || bytes.Contains(b, []byte("[],[]")) {
			t.Errorf("%s: %s", name, b)
		}
	}
	var root struct {
		Tlogs                []any
		TimestampAuthorities *[]any
	}
	decode(t, d.TrustedRoot, &root)
	if root.Tlogs == nil || root.TimestampAuthorities != nil { // an older gh can't read all empty fields
		t.Errorf("%s", d.TrustedRoot)
	}
}

// TestNoServiceNoChoice: where no service is listed, the signing config asks for none.
// sigstore-js would look for one, and sign nothing.
func TestNoServiceNoChoice(t *testing.T) {
	t.Parallel()
	in := sample(t)
	in.TransparencyLogs, in.TimestampAuthorities = nil, nil
	if got := render(t, in).SigningConfig; bytes.Contains(got, []byte("Config\":")) {
		t.Errorf("asks for services that aren't there: %s", got)
	}
}

// TestRekorIDs: the id that entries name a log by, for each kind of key. That of the
// public good instance's second version is as its own trusted root has it.
func TestRekorIDs(t *testing.T) {
	t.Parallel()
	public, err := base64.StdEncoding.DecodeString("MCowBQYDK2VwAyEAt8rlp1knGwjfbcXAYPYAkn0XiLz1x8O4t0YkEhie244=")
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		log  TransparencyLog
		want string
	}{
		"version 2":          {TransparencyLog{APIVersion: 2, Description: ctlog.Description{URL: "https://log2025-1.rekor.sigstore.dev"}}, "zxGZFVvd0FEmjR8WrFwMdcAJ9vtaY/QXf44Y1wUeP6A="},
		"version 2, a port":  {TransparencyLog{APIVersion: 2, Description: ctlog.Description{URL: "https://log2025-1.rekor.sigstore.dev:443/x"}}, "zxGZFVvd0FEmjR8WrFwMdcAJ9vtaY/QXf44Y1wUeP6A="},
		"version 2, origin":  {TransparencyLog{APIVersion: 2, Origin: "log2025-1.rekor.sigstore.dev", Description: ctlog.Description{URL: "http://10.0.0.1:3003"}}, "zxGZFVvd0FEmjR8WrFwMdcAJ9vtaY/QXf44Y1wUeP6A="},
		"version 1, Ed25519": {TransparencyLog{APIVersion: 1, Description: ctlog.Description{URL: "https://log2025-1.rekor.sigstore.dev"}}, base64.StdEncoding.EncodeToString(sum(public))},
	} {
		l := tt.log
		l.SPKI = public
		if err := l.SetID(); err != nil || base64.StdEncoding.EncodeToString(l.ID[:]) != tt.want {
			t.Errorf("%s: %x, %v; want %s", name, l.ID, err, tt.want)
		}
	}
	ec := newRekor(t, 2, catest.Key(t).Public())
	if !bytes.Equal(ec.ID[:], sum(ec.SPKI)) {
		t.Error("version 2 with an ECDSA key isn't known by the key's SHA-256")
	}
}

func sum(b []byte) []byte { s := sha256.Sum256(b); return s[:] }

// TestRekorOrigin: clients take the name in checkpoints from the URL of the trusted
// root, and submit to that of the signing config.
func TestRekorOrigin(t *testing.T) {
	t.Parallel()
	in := sample(t)
	l := newRekor(t, 2, catest.Key(t).Public())
	l.URL, l.Origin = "http://10.0.0.7:3003", "rekor.internal"
	in.TransparencyLogs = []TransparencyLog{l}
	d := render(t, in)
	var root decoded
	decode(t, d.TrustedRoot, &root)
	var signing struct {
		RekorTlogUrls []struct{ URL string }
	}
	decode(t, d.SigningConfig, &signing)
	if root.Tlogs[0].BaseURL != "https://rekor.internal" || signing.RekorTlogUrls[0].URL != "http://10.0.0.7:3003" {
		t.Errorf("%s, %s", root.Tlogs[0].BaseURL, signing.RekorTlogUrls[0].URL)
	}
}

// TestServices: clients get one service for each URL and version, and none without a URL.
func TestServices(t *testing.T) {
	t.Parallel()
	change, end := epoch.AddDate(0, 1, 0), epoch.AddDate(0, 2, 0)
	tsa := func(url string, start, end time.Time) Authority {
		return Authority{URL: url, Operator: url, Start: start, End: end}
	}
	h := History{TimestampAuthorities: []Authority{
		tsa("b", change, time.Time{}), tsa("b", epoch, change), // another key at the same place
		tsa("", epoch, time.Time{}),                    // only verified
		tsa("a", epoch, change), tsa("a", change, end), // ended
	}}
	_, _, _, got := h.services()
	want := []Service{{URL: "b", Operator: "b", Start: epoch}, {URL: "a", Operator: "a", Start: epoch, End: end}}
	if !slices.Equal(got, want) {
		t.Errorf("%+v; want %+v", got, want)
	}
}

func TestParseReadsWhatRenderWrote(t *testing.T) {
	t.Parallel()
	in := sample(t)
	root, err := Parse(render(t, in).TrustedRoot)
	if err != nil {
		t.Fatal(err)
	}
	if len(root.Authorities) != 2 || len(root.CTLogs) != 2 || len(root.TimestampAuthorities) != 2 || len(root.TransparencyLogs) != 2 {
		t.Fatalf("%+v", root)
	}
	past := root.Authorities[0]
	if !past.Holds(epoch) || past.Holds(epoch.Add(-time.Second)) || past.Holds(past.End.Add(time.Second)) || !root.Authorities[1].Holds(epoch.AddDate(9, 0, 0)) {
		t.Error("windows")
	}
	if !past.Chain[1].Equal(in.Authorities[1].Chain[1]) || !root.TimestampAuthorities[0].Chain[0].Equal(in.TimestampAuthorities[1].Chain[0]) {
		t.Error("another chain")
	}
	l, want := root.CTLogs[1], in.CTLogs[0]
	want.Operator = ""
	if !reflect.DeepEqual(l, want) {
		t.Errorf("%+v; want %+v", l, want)
	}
	if got, want := root.TransparencyLogs[0], in.TransparencyLogs[1]; got.ID != want.ID || !bytes.Equal(got.SPKI, want.SPKI) || !got.Start.Equal(want.Start) || got.URL != want.URL {
		t.Errorf("%+v; want %+v", got, want)
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
	ctlogs := strings.Index(good, `"ctlogs"`)
	at := ctlogs + strings.Index(good[ctlogs:], `"keyId":"`) + len(`"keyId":"`)
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
		"a log of another kind":  good[:ctlogs] + strings.Replace(good[ctlogs:], "PKIX_ECDSA_P256_SHA_256", "PKIX_ED25519", 1),
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
		for _, l := range root.CTLogs {
			if l.ID != sha256.Sum256(l.SPKI) {
				t.Error("a log under another's id")
			}
		}
	})
}
