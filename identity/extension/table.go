package extension

import (
	"encoding/asn1"
	"slices"
)

// row is one extension: the last arc of its OID, its names, and its place in a Set.
type row struct {
	arc      int
	name     string // for people
	field    string // for presets and JSON
	raw      bool   // the bytes themselves, as the first six were defined, and not a DER UTF8String (X.690 §8.23)
	required bool   // always written, from the verified token alone
	value    func(*Set) *string
	oid      asn1.ObjectIdentifier // filled in from arc
}

// arc is the parent of every OID here: 1.3.6.1.4.1.57264.1, Sigstore's arc for Fulcio.
var arc = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1}

// OtherNameOID is the type of the otherName SAN that carries a username. It
// occurs only inside the SAN, never as an extension.
var OtherNameOID = under(7)

// table is every extension in the order in which they are written: by arc.
// The issuer is written twice, raw and as UTF8String; both rows read one field.
var table = withOIDs([]row{
	{arc: 1, name: "Issuer", field: "issuer", raw: true, required: true, value: func(s *Set) *string { return &s.Issuer }},
	{arc: 2, name: "GitHub Workflow Trigger", field: "github_trigger", raw: true, value: func(s *Set) *string { return &s.GitHubTrigger }},
	{arc: 3, name: "GitHub Workflow SHA", field: "github_sha", raw: true, value: func(s *Set) *string { return &s.GitHubSHA }},
	{arc: 4, name: "GitHub Workflow Name", field: "github_workflow", raw: true, value: func(s *Set) *string { return &s.GitHubWorkflow }},
	{arc: 5, name: "GitHub Workflow Repository", field: "github_repository", raw: true, value: func(s *Set) *string { return &s.GitHubRepository }},
	{arc: 6, name: "GitHub Workflow Ref", field: "github_ref", raw: true, value: func(s *Set) *string { return &s.GitHubRef }},
	{arc: 8, name: "Issuer (v2)", field: "issuer", required: true, value: func(s *Set) *string { return &s.Issuer }},
	{arc: 9, name: "Build Signer URI", field: "build_signer_uri", value: func(s *Set) *string { return &s.BuildSignerURI }},
	{arc: 10, name: "Build Signer Digest", field: "build_signer_digest", value: func(s *Set) *string { return &s.BuildSignerDigest }},
	{arc: 11, name: "Runner Environment", field: "runner_environment", value: func(s *Set) *string { return &s.RunnerEnvironment }},
	{arc: 12, name: "Source Repository URI", field: "source_repository_uri", value: func(s *Set) *string { return &s.SourceRepositoryURI }},
	{arc: 13, name: "Source Repository Digest", field: "source_repository_digest", value: func(s *Set) *string { return &s.SourceRepositoryDigest }},
	{arc: 14, name: "Source Repository Ref", field: "source_repository_ref", value: func(s *Set) *string { return &s.SourceRepositoryRef }},
	{arc: 15, name: "Source Repository Identifier", field: "source_repository_id", value: func(s *Set) *string { return &s.SourceRepositoryID }},
	{arc: 16, name: "Source Repository Owner URI", field: "source_repository_owner_uri", value: func(s *Set) *string { return &s.SourceRepositoryOwnerURI }},
	{arc: 17, name: "Source Repository Owner Identifier", field: "source_repository_owner_id", value: func(s *Set) *string { return &s.SourceRepositoryOwnerID }},
	{arc: 18, name: "Build Config URI", field: "build_config_uri", value: func(s *Set) *string { return &s.BuildConfigURI }},
	{arc: 19, name: "Build Config Digest", field: "build_config_digest", value: func(s *Set) *string { return &s.BuildConfigDigest }},
	{arc: 20, name: "Build Trigger", field: "build_trigger", value: func(s *Set) *string { return &s.BuildTrigger }},
	{arc: 21, name: "Run Invocation URI", field: "run_invocation_uri", value: func(s *Set) *string { return &s.RunInvocationURI }},
	{arc: 22, name: "Source Repository Visibility At Signing", field: "source_repository_visibility", value: func(s *Set) *string { return &s.SourceRepositoryVisibility }},
	{arc: 23, name: "Deployment Environment", field: "deployment_environment", value: func(s *Set) *string { return &s.DeploymentEnvironment }},
	{arc: 24, name: "Token Subject", field: "token_subject", required: true, value: func(s *Set) *string { return &s.TokenSubject }},
})

func withOIDs(rows []row) []row {
	for i := range rows {
		rows[i].oid = under(rows[i].arc)
	}
	return rows
}

func under(last int) asn1.ObjectIdentifier {
	return append(slices.Clone(arc), last)
}

// rowFor finds the row of an OID, or nil.
func rowFor(oid asn1.ObjectIdentifier) *row {
	for i := range table {
		if table[i].oid.Equal(oid) {
			return &table[i]
		}
	}
	return nil
}

// Fields lists the names that [Place] knows, in the table's order. The
// issuer and the token's subject are not among them: they come from the
// verified token alone, so no rule may set them.
func Fields() []string {
	var names []string
	for _, r := range table {
		if !r.required {
			names = append(names, r.field)
		}
	}
	return names
}

// Place says where a Set holds the value with one of the names in [Fields]; nil
// for an unknown name. Rules ask once, when they are compiled.
func Place(name string) func(*Set) *string {
	for i := range table {
		if table[i].field == name && !table[i].required {
			return table[i].value
		}
	}
	return nil
}
