package conformance

import (
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
)

// vendor is a CI vendor, and what a certificate for its token says: the name,
// and the values of the extensions 1.3.6.1.4.1.57264.1.N.
type vendor struct {
	name   string
	san    string
	values map[int]string
}

// vendors are written by hand from the vendors' claims: the tokens are those of
// identity/presets/testdata.
var vendors = []vendor{
	{"github", "https://github.com/octo-org/octo-automation/.github/workflows/oidc.yml@refs/heads/main", map[int]string{
		2:  "workflow_dispatch",
		3:  "3a1c5e2b9f0d4c7a8b6e1f2d3c4b5a6978877665",
		4:  "Release é",
		5:  "octo-org/octo-repo",
		6:  "refs/heads/main",
		9:  "https://github.com/octo-org/octo-automation/.github/workflows/oidc.yml@refs/heads/main",
		10: "1111111111111111111111111111111111111111",
		11: "github-hosted",
		12: "https://github.com/octo-org/octo-repo",
		13: "3a1c5e2b9f0d4c7a8b6e1f2d3c4b5a6978877665",
		14: "refs/heads/main",
		15: "74",
		16: "https://github.com/octo-org",
		17: "65",
		18: "https://github.com/octo-org/octo-repo/.github/workflows/release.yml@refs/heads/main",
		19: "2222222222222222222222222222222222222222",
		20: "workflow_dispatch",
		21: "https://github.com/octo-org/octo-repo/actions/runs/5647382910/attempts/2",
		22: "private",
		23: "prod",
	}},
	{"gitlab", "https://gitlab.com/my-group/my-project//.gitlab-ci.yml@refs/heads/main", map[int]string{
		9:  "https://gitlab.com/my-group/my-project//.gitlab-ci.yml@refs/heads/main",
		10: "714a629c0b401fdce83e847fc9589983fc6f46bd",
		11: "self-hosted",
		12: "https://gitlab.com/my-group/my-project",
		13: "714a629c0b401fdce83e847fc9589983fc6f46bc",
		14: "refs/heads/feature-branch-1",
		15: "20",
		16: "https://gitlab.com/my-group",
		17: "72",
		18: "https://gitlab.com/my-group/my-project//.gitlab-ci.yml@refs/heads/main",
		19: "714a629c0b401fdce83e847fc9589983fc6f46bd",
		20: "push",
		21: "https://gitlab.com/my-group/my-project/-/jobs/302",
		22: "public",
		23: "test-environment2",
	}},
	{"buildkite", "https://buildkite.com/acme-inc/super-duper-app", map[int]string{
		11: "self-hosted",
		13: "9f3182061f1e2cca4702c368cbc039b7dc9d4485",
		20: "webhook",
		21: "https://buildkite.com/acme-inc/super-duper-app/builds/1234567890#0184990a-477b-4fa8-9968-496074483cee",
	}},
	{"codefresh", "https://g.codefresh.io/codefresh-inc/oidc-test/oidc-test-2:628a80b693a15c0f9c13ab75/65e6d5551e47e5bc243ca93f", map[int]string{
		9:  "https://g.codefresh.io/build/65e6ebe0bfbfa1782876165e",
		11: "hybrid",
		12: "https://github.com/codefresh-contrib/fulcio-oidc",
		14: "main",
		18: "https://g.codefresh.io/api/pipelines/65e6d5551e47e5bc243ca93f",
		21: "https://g.codefresh.io/build/65e6ebe0bfbfa1782876165e",
	}},
	{"circleci", "https://circleci.com/api/v2/projects/8e1c2d3e-0000-4000-8000-000000000001/pipeline-definitions/9f2d3e4f-0000-4000-8000-000000000002", map[int]string{
		9:  "https://circleci.com/api/v2/projects/8e1c2d3e-0000-4000-8000-000000000001/pipeline-definitions/9f2d3e4f-0000-4000-8000-000000000002",
		11: "ssh-rerun",
		12: "github.com/octo-org/octo-repo",
		14: "refs/heads/main",
		18: "https://circleci.com/api/v2/pipeline/aa3e4f50-0000-4000-8000-000000000003/config",
		21: "https://app.circleci.com/workflow/bb4f5061-0000-4000-8000-000000000004/job/cc506172-0000-4000-8000-000000000005",
	}},
	{"buddy", "https://app.buddy.works/acme/app/pipelines/pipeline/12", map[int]string{
		9:  "https://app.buddy.works/acme/app/pipelines/pipeline/12",
		11: "hosted",
		12: "https://app.buddy.works/acme/app",
		13: "5f1c2d3e4b",
		14: "refs/heads/main",
		16: "https://app.buddy.works/acme",
		20: "EVENT",
		21: "https://app.buddy.works/acme/app/pipelines/pipeline/12/execution/66f1c0ffee",
	}},
	{"azure-devops", "https://dev.azure.com/3f1c2d3e-0000-4000-8000-000000000001/4a2d3e4f-0000-4000-8000-000000000002/_build?definitionId=12", map[int]string{
		9:  "https://dev.azure.com/3f1c2d3e-0000-4000-8000-000000000001/4a2d3e4f-0000-4000-8000-000000000002/_build?definitionId=12",
		12: "https://dev.azure.com/acme/Web%20shop/_git/shop",
		13: "5f1c2d3e4b",
		14: "refs/heads/main",
		15: "5b3e4f50-0000-4000-8000-000000000003",
		21: "https://dev.azure.com/3f1c2d3e-0000-4000-8000-000000000001/4a2d3e4f-0000-4000-8000-000000000002/_build/results?buildId=345",
	}},
	{"bitbucket", "https://bitbucket.org/%7B8e1c2d3e-0000-4000-8000-000000000001%7D/%7B9f2d3e4f-0000-4000-8000-000000000002%7D", map[int]string{
		9:  "https://bitbucket.org/{8e1c2d3e-0000-4000-8000-000000000001}/{9f2d3e4f-0000-4000-8000-000000000002}",
		12: "https://bitbucket.org/{8e1c2d3e-0000-4000-8000-000000000001}/{9f2d3e4f-0000-4000-8000-000000000002}",
		14: "refs/heads/main",
		15: "{9f2d3e4f-0000-4000-8000-000000000002}",
		16: "https://bitbucket.org/{8e1c2d3e-0000-4000-8000-000000000001}",
		17: "{8e1c2d3e-0000-4000-8000-000000000001}",
		21: "https://bitbucket.org/{8e1c2d3e-0000-4000-8000-000000000001}/{9f2d3e4f-0000-4000-8000-000000000002}/pipelines/results/{aa3e4f50-0000-4000-8000-000000000003}/steps/{cc506172-0000-4000-8000-000000000005}",
		23: "{bb4f5061-0000-4000-8000-000000000004}",
	}},
}

// testPresets has the certificates of all CI presets read by sigstore-go, and
// the bytes of their extensions by openssl. One issuer stands for all vendors;
// the audience tells them apart.
func testPresets(t *testing.T, dev *mayfly, _ *timestampAuthority) {
	var issuers strings.Builder
	for _, v := range vendors {
		issuers.WriteString(issuerEntry(account{issuer: dev.Issuer, client: v.name}, `
    type: ci-provider
    preset: `+v.name+`
    allow: 'principal.san == "`+v.san+`"'`))
	}
	m := startServe(t, issuers.String())
	for _, v := range vendors {
		t.Run(v.name, func(t *testing.T) {
			token, subject := v.token(t, dev)
			der, err := m.certificate(t.Context(), token)
			if err != nil {
				t.Fatal(err)
			}
			leaf, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			want := maps.Clone(v.values)
			want[1], want[8], want[24] = dev.Issuer, dev.Issuer, subject

			got, err := certificate.SummarizeCertificate(leaf)
			if err != nil {
				t.Fatal(err)
			}
			if got.SubjectAlternativeName != v.san {
				t.Errorf("sigstore-go reads the name %s, want %s", got.SubjectAlternativeName, v.san)
			}
			if want := summary(want); got.Extensions != want {
				t.Errorf("sigstore-go reads\n%+v, want\n%+v", got.Extensions, want)
			}
			v.compareBytes(t, der, want)
		})
	}
}

// token is the vendor's, of the development issuer and for now.
func (v vendor) token(t *testing.T, dev *mayfly, other ...url.Values) (token, subject string) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("..", "..", "..", "identity", "presets", "testdata", v.name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]json.RawMessage
	if err := json.Unmarshal(content, &claims); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(claims["sub"], &subject); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"iss", "sub", "aud", "iat", "nbf", "exp"} {
		delete(claims, name)
	}
	query := url.Values{"aud": {v.name}, "sub": {subject}}
	for name, value := range claims {
		query.Set("claim."+name, string(value))
	}
	for _, changes := range other {
		maps.Copy(query, changes)
	}
	return strings.TrimSpace(string(get(t, dev.Issuer+"/dev/token?"+query.Encode()))), subject
}

// summary is what sigstore-go makes of the values; it doesn't read 23 and 24.
func summary(v map[int]string) certificate.Extensions {
	return certificate.Extensions{
		Issuer:                              v[8],
		GithubWorkflowTrigger:               v[2],
		GithubWorkflowSHA:                   v[3],
		GithubWorkflowName:                  v[4],
		GithubWorkflowRepository:            v[5],
		GithubWorkflowRef:                   v[6],
		BuildSignerURI:                      v[9],
		BuildSignerDigest:                   v[10],
		RunnerEnvironment:                   v[11],
		SourceRepositoryURI:                 v[12],
		SourceRepositoryDigest:              v[13],
		SourceRepositoryRef:                 v[14],
		SourceRepositoryIdentifier:          v[15],
		SourceRepositoryOwnerURI:            v[16],
		SourceRepositoryOwnerIdentifier:     v[17],
		BuildConfigURI:                      v[18],
		BuildConfigDigest:                   v[19],
		BuildTrigger:                        v[20],
		RunInvocationURI:                    v[21],
		SourceRepositoryVisibilityAtSigning: v[22],
	}
}

// asn1Extension is an extension that isn't critical, as openssl asn1parse shows
// it: bytes that are printable as text, and others in hexadecimal digits.
var asn1Extension = regexp.MustCompile(`prim: OBJECT +:1\.3\.6\.1\.4\.1\.57264\.1\.(\d+)\n.*prim: OCTET STRING +(?:\[HEX DUMP\]:([0-9A-F]*)|:(.*))\n`)

// compareBytes holds what openssl finds in the extensions to the values: raw up
// to 6, and a DER UTF8String from 8 on.
func (v vendor) compareBytes(t *testing.T, der []byte, values map[int]string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "leaf.pem")
	write(t, file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	said := command(t, nil, "openssl", "asn1parse", "-in", file)

	want := make(map[int]string)
	for number, value := range values {
		raw := []byte(value)
		if number >= 8 {
			var err error
			if raw, err = asn1.MarshalWithParams(value, "utf8"); err != nil {
				t.Fatal(err)
			}
		}
		want[number] = strings.ToUpper(hex.EncodeToString(raw))
	}
	got := make(map[int]string)
	for _, extension := range asn1Extension.FindAllStringSubmatch(said, -1) {
		number, err := strconv.Atoi(extension[1])
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := got[number]; twice {
			t.Errorf("openssl finds the extension %d twice", number)
		}
		got[number] = extension[2] + strings.ToUpper(hex.EncodeToString([]byte(extension[3])))
	}
	if !maps.Equal(got, want) {
		t.Errorf("openssl finds the extensions\n%v, want\n%v\n%s", got, want, said)
	}
	// The name is the one URI in the extension (RFC 5280 §4.2.1.6), critical.
	text := command(t, nil, "openssl", "x509", "-in", file, "-noout", "-ext", "subjectAltName")
	if name := "X509v3 Subject Alternative Name: critical\n    URI:" + v.san; text != name {
		t.Errorf("openssl shows %s, want %s", text, name)
	}
}
