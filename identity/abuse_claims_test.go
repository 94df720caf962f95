package identity

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

// Rows of the abuse table about what a verified token says.

func TestEmailMustBeVerified(t *testing.T) {
	t.Parallel()
	v, _, _ := verifier(t)
	for _, value := range []any{1, "1", json.RawMessage("null"), nil, false, "false", "TRUE", "yes", "", []any{true}, map[string]any{"true": true}, 1.0} {
		e := wantFault(t, v, fmt.Sprint(value), token(t, map[string]any{"email_verified": value}), fault.EmailUnverified)
		if e.Kind() != fault.Denied || e.Metadata["claim"] != "email_verified" {
			t.Errorf("%v: %v %v", value, e.Kind(), e.Metadata)
		}
	}
	for _, value := range []any{true, "true", "True"} {
		p, err := v.Authenticate(t.Context(), token(t, map[string]any{"email_verified": value}))
		if err != nil || p.SAN() != (SAN{Email, "alice@example.com"}) {
			t.Errorf("%v: %v, %v", value, p.SAN(), err)
		}
	}
	c := emailIssuer()
	c.SkipEmailVerification = true
	trusting, _, _ := verifier(t, c)
	for _, value := range []any{nil, false} {
		if _, err := trusting.Authenticate(t.Context(), token(t, map[string]any{"email_verified": value})); err != nil {
			t.Errorf("where the issuer need not say: %v", err)
		}
	}
}

func TestNamesThatReadInTwoWaysAreRefused(t *testing.T) {
	t.Parallel()
	v, _, _ := verifier(t)
	for _, address := range []string{
		"alice@example.com\r", "alice@example.com\n", "alice\x00@example.com", "alice\t@example.com", "a@b,c@d", "a@b@c", "alice", "@example.com", "alice@",
		"\u202ealice@example.com", " alice@example.com", "alice@example.com ", "al ice@example.com", "älice@example.com", "alice@exämple.com",
		strings.Repeat("a", 10<<10) + "@x", strings.Repeat("a", 65) + "@example.com", "a@" + strings.Repeat("b.", 200) + "c", `"a b"@example.com`, `"a"@example.com`,
		"<alice@example.com>", "Alice <alice@example.com>", "alice(comment)@example.com", "a;b@example.com", "a:b@example.com", `a\b@example.com`,
		".alice@example.com", "alice.@example.com", "a..b@example.com", "a@.com", "a@example..com", "a@example.com.", "a@-example.com", "a@[127.0.0.1]", "a@exa_mple.com", "a%@b@c",
	} {
		wantFault(t, v, fmt.Sprintf("%.40q", address), token(t, map[string]any{"email": address}), fault.ClaimInvalid)
	}
	for _, address := range []string{"alice@example.com", "Alice.O'Hara+tag@Sub.Example.com", "user_x.com#EXT#@tenant.onmicrosoft.com", "sa@proj.iam.gserviceaccount.com", "a@localhost"} {
		if p, err := v.Authenticate(t.Context(), token(t, map[string]any{"email": address})); err != nil || p.SAN().Value != address {
			t.Errorf("%s: %v, %v", address, p.SAN(), err)
		}
	}
	for _, sub := range []any{"", nil, 1, "a\n", "a\u202eb", "a\x7f", strings.Repeat("s", 10<<10)} {
		wantFault(t, v, fmt.Sprintf("sub %.20q", sub), token(t, map[string]any{"sub": sub}), fault.ClaimMissing, fault.ClaimInvalid)
	}

	c := IssuerConfig{URL: "https://issuer.example", Type: TypeUsername, Allow: "true", SubjectDomain: "example.com", Audiences: []string{"sigstore"}}
	users, _, _ := verifier(t, c)
	for _, sub := range []string{"a!b", "alice@example.com", "a b", " a", "a,b", "ä", "a\tb", strings.Repeat("a", 256)} {
		wantFault(t, users, fmt.Sprintf("username %.20q", sub), token(t, map[string]any{"sub": sub}), fault.ClaimInvalid)
	}
	p, err := users.Authenticate(t.Context(), token(t, nil))
	if err != nil || p.SAN() != (SAN{Username, "alice!example.com"}) {
		t.Errorf("%v, %v", p.SAN(), err)
	}
}

func TestURISubjectsStayUnderTheirDomain(t *testing.T) {
	t.Parallel()
	c := IssuerConfig{URL: "https://issuer.example", Type: TypeURI, Allow: "true", SubjectDomain: "https://allowed.example", Audiences: []string{"sigstore"}}
	v, _, _ := verifier(t, c)
	for sub, want := range map[string]fault.Reason{
		"https://allowed@evil/": fault.SubjectDomain, "https://allowed.example@evil/": fault.SubjectDomain, "https://allowed.example.evil": fault.SubjectDomain,
		"https://allowed.exampl": fault.SubjectDomain, "HTTPS://allowed.example/x": fault.SubjectDomain, "https://Allowed.example/x": fault.SubjectDomain,
		"https://allowed.example:443/x": fault.SubjectDomain, "https://allowed.example:8443/": fault.SubjectDomain, "http://allowed.example/x": fault.SubjectDomain,
		"https://allowed.example?x": fault.SubjectDomain, "https://allowed.example#x": fault.SubjectDomain, `https://allowed.example\x`: fault.SubjectDomain,
		"https://user@allowed.example/x": fault.SubjectDomain, "//allowed.example/x": fault.SubjectDomain, "allowed.example": fault.SubjectDomain,
		"https://allowed.example/../x": fault.ClaimInvalid, "https://allowed.example/x/..": fault.ClaimInvalid, "https://allowed.example/./x": fault.ClaimInvalid,
		"https://allowed.example/%2e%2e/x": fault.ClaimInvalid, "https://allowed.example/%2E%2E": fault.ClaimInvalid, "https://allowed.example/.%2e/x": fault.ClaimInvalid,
		"https://allowed.example/x%2fy": fault.ClaimInvalid, "https://allowed.example/x%5C..": fault.ClaimInvalid, "https://allowed.example/%zz": fault.ClaimInvalid,
		"https://allowed.example/a b": fault.ClaimInvalid, "https://allowed.example/é": fault.ClaimInvalid, "https://allowed.example/a\\b": fault.ClaimInvalid,
		"https://allowed.example/\"": fault.ClaimInvalid, "https://allowed.example/\n": fault.ClaimInvalid, "https://allowed.example/{x}": fault.ClaimInvalid,
	} {
		e := wantFault(t, v, sub, token(t, map[string]any{"sub": sub}), want)
		if e.Kind() != fault.Denied || e.Metadata["claim"] != "sub" {
			t.Errorf("%s: %v %v", sub, e.Kind(), e.Metadata)
		}
	}
	for _, sub := range []string{"https://allowed.example", "https://allowed.example/", "https://allowed.example/a/b@c?d=e#f", "https://allowed.example/a%20b"} {
		if p, err := v.Authenticate(t.Context(), token(t, map[string]any{"sub": sub})); err != nil || p.SAN() != (SAN{URI, sub}) {
			t.Errorf("%s: %v, %v", sub, p.SAN(), err)
		}
	}

	c = IssuerConfig{URL: "https://issuer.example", Type: TypeSPIFFE, Allow: "true", SPIFFETrustDomain: "example.org", Audiences: []string{"sigstore"}}
	workloads, _, _ := verifier(t, c)
	for sub, want := range map[string]fault.Reason{
		"spiffe://other.org/x": fault.SubjectDomain, "spiffe://example.org.evil/x": fault.SubjectDomain, "spiffe://sub.example.org/x": fault.SubjectDomain,
		"SPIFFE://example.org/x": fault.ClaimInvalid, "spiffe://Example.org/x": fault.ClaimInvalid, "spiffe://u@example.org/x": fault.ClaimInvalid,
		"spiffe://example.org:1/x": fault.ClaimInvalid, "spiffe://example.org/../x": fault.ClaimInvalid, "spiffe://example.org/%2e%2e": fault.ClaimInvalid,
		"spiffe://example.org/x/": fault.ClaimInvalid, "spiffe://example.org/x?y": fault.ClaimInvalid, "https://example.org/x": fault.ClaimInvalid,
	} {
		wantFault(t, workloads, sub, token(t, map[string]any{"sub": sub}), want)
	}
	if p, err := workloads.Authenticate(t.Context(), token(t, map[string]any{"sub": "spiffe://example.org/ns/a/sa/b"})); err != nil || p.SAN() != (SAN{URI, "spiffe://example.org/ns/a/sa/b"}) {
		t.Errorf("%v, %v", p.SAN(), err)
	}
}

func TestKubernetesNamesAServiceAccount(t *testing.T) {
	t.Parallel()
	c := IssuerConfig{URL: "https://issuer.example", Type: TypeKubernetes, Allow: "true", Audiences: []string{"sigstore"}}
	v, _, _ := verifier(t, c)
	account := func(namespace, name any) map[string]any {
		return map[string]any{"kubernetes.io": map[string]any{"namespace": namespace, "serviceaccount": map[string]any{"name": name, "uid": "x"}}}
	}
	const ns, sa = "kubernetes.io.namespace", "kubernetes.io.serviceaccount.name"
	for i, c := range []struct {
		changes map[string]any
		claim   string
		want    fault.Reason
	}{
		{map[string]any{}, "kubernetes.io", fault.ClaimMissing},
		{map[string]any{"kubernetes.io": json.RawMessage("null")}, "kubernetes.io", fault.ClaimMissing},
		{map[string]any{"kubernetes.io": "x"}, "kubernetes.io", fault.ClaimInvalid},
		{map[string]any{"kubernetes.io": []string{"x"}}, "kubernetes.io", fault.ClaimInvalid},
		{map[string]any{"kubernetes.io": map[string]any{}}, ns, fault.ClaimMissing},
		{map[string]any{"kubernetes.io": map[string]any{"namespace": "a"}}, sa, fault.ClaimMissing},
		{map[string]any{"kubernetes.io": map[string]any{"namespace": "a", "serviceaccount": "b"}}, sa, fault.ClaimMissing},
		{account("", "b"), ns, fault.ClaimMissing}, {account("a", ""), sa, fault.ClaimMissing},
		{account(1, "b"), ns, fault.ClaimInvalid}, {account("a", 1), sa, fault.ClaimInvalid},
		{account(map[string]any{}, "b"), ns, fault.ClaimInvalid}, {account("a", []string{"b"}), sa, fault.ClaimInvalid},
		{account("..", "b"), ns, fault.ClaimInvalid}, {account("a/b", "b"), ns, fault.ClaimInvalid}, {account("a.b", "b"), ns, fault.ClaimInvalid},
		{account("a", ".."), sa, fault.ClaimInvalid}, {account("a", "b/c"), sa, fault.ClaimInvalid}, {account("a", "b%2fc"), sa, fault.ClaimInvalid},
		{account("A", "b"), ns, fault.ClaimInvalid}, {account("a", "b "), sa, fault.ClaimInvalid}, {account("a?b", "b"), ns, fault.ClaimInvalid},
	} {
		e := wantFault(t, v, fmt.Sprint(i), token(t, c.changes), c.want)
		if e.Metadata["claim"] != c.claim || !strings.Contains(e.Public, c.claim) {
			t.Errorf("%d: %v, want it to name %s", i, e, c.claim)
		}
	}
	p, err := v.Authenticate(t.Context(), token(t, account("prod-1", "builder.v2")))
	if err != nil || p.SAN() != (SAN{URI, "https://kubernetes.io/namespaces/prod-1/serviceaccounts/builder.v2"}) {
		t.Errorf("%v, %v", p.SAN(), err)
	}
}

// TestCIClaimsGiveAWellFormedName holds the whole path to what presets are held to one by one.
func TestCIClaimsGiveAWellFormedName(t *testing.T) {
	t.Parallel()
	c := IssuerConfig{URL: "https://issuer.example", Type: TypeCI, Allow: "true", Preset: "gitlab", Audiences: []string{"sigstore"}}
	v, _, _ := verifier(t, c)
	good := map[string]any{
		"ci_config_ref_uri": "gitlab.com/g/p//.gitlab-ci.yml@refs/heads/main", "ci_config_sha": "a", "runner_environment": "gitlab-hosted", "project_path": "g/p", "sha": "b",
		"ref": "main", "ref_type": "branch", "project_id": "1", "namespace_path": "g", "namespace_id": "2", "pipeline_source": "push", "job_id": "3", "project_visibility": "public",
	}
	p, err := v.Authenticate(t.Context(), token(t, good))
	if err != nil {
		t.Fatal(err)
	}
	if e := p.Extensions(); p.SAN() != (SAN{URI, "https://gitlab.com/g/p//.gitlab-ci.yml@refs/heads/main"}) || e.Issuer != c.URL || e.TokenSubject != "alice" ||
		e.SourceRepositoryRef != "refs/heads/main" || e.DeploymentEnvironment != "" || e.GitHubSHA != "" {
		t.Errorf("%v %+v", p.SAN(), e)
	}
	for _, value := range []string{"gitlab.com/g/../p", "gitlab.com/%2e%2e/x", "gitlab.com/%C3%BC", "gitlab.com/100%", "gitlab.com/a\\b", "gitlab.com/a?é", "gitlab.com/a#", "gitlab.com:443/x", "u@gitlab.com/x"} {
		good["ci_config_ref_uri"] = value
		if e := wantFault(t, v, value, token(t, good), fault.ClaimInvalid); e.Metadata["claim"] != "ci_config_ref_uri" {
			t.Errorf("%s: %v", value, e)
		}
	}
}

// TestNamesThatPeopleGiveArePercentEncoded as Go's url.Parse and String do, which
// is what Fulcio does; texts stay as they are, and no two names give one SAN.
func TestNamesThatPeopleGiveArePercentEncoded(t *testing.T) {
	t.Parallel()
	c := IssuerConfig{URL: "https://issuer.example", Type: TypeCI, Allow: "true", Preset: "github", Audiences: []string{"sigstore"}}
	v, _, _ := verifier(t, c)
	given := map[string]string{} // by SAN
	for _, ref := range []string{
		"o/r/.github/workflows/x.yml@refs/heads/ünicode", "o/r/.github/workflows/build & push.yml@refs/heads/main", "o/r/.github/workflows/x.yml@refs/heads/fix/#123",
		"o/r/.github/workflows/x.yml@refs/heads/日本/語", "o/r/.github/workflows/a[b].yml@refs/heads/main", "o/r/.github/workflows/a[b] c.yml@refs/heads/main", "o/r/.github/workflows/\"x\".yml@refs/heads/a{b}<c>|`^",
		"o/r/.github/workflows/x+y;z=$1,2!('3')*.yml@refs/heads/main", "o/r/.github/workflows/x.yml@refs/heads/u\u0308nicode", "o/r/.github/workflows/x.yml@refs/heads/fix/#ü", "o/r/.github/workflows/x.yml@refs/heads/main",
	} {
		claims := gitHubClaims(ref)
		p, err := v.Authenticate(t.Context(), token(t, claims))
		if err != nil {
			t.Errorf("%s: %v", ref, err)
			continue
		}
		reference, err := url.Parse("https://github.com/" + ref)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.SAN().Value; got != reference.String() || given[got] != "" {
			t.Errorf("%s: %s, want %s; given to %q", ref, got, reference, given[got])
		}
		given[p.SAN().Value] = ref
		if e := p.Extensions(); e.BuildSignerURI != "https://github.com/"+ref || e.GitHubWorkflow != "build & push ü" {
			t.Errorf("%s: the texts are %+v", ref, e)
		}
	}
	for ref, blamed := range map[string]string{
		"o/r/.github/workflows/x.yml@refs/heads/%C3%BCnicode": "job_workflow_ref", "o/r/.github/workflows/100%.yml@refs/heads/main": "job_workflow_ref", "o/r/x.yml@a#": "job_workflow_ref",
	} {
		if e := wantFault(t, v, ref, token(t, gitHubClaims(ref)), fault.ClaimInvalid); e.Metadata["claim"] != blamed {
			t.Errorf("%s: %v", ref, e)
		}
	}
}

func gitHubClaims(ref string) map[string]any {
	return map[string]any{
		"event_name": "push", "sha": "a", "workflow": "build & push ü", "repository": "o/r", "ref": "refs/heads/main", "job_workflow_ref": ref, "job_workflow_sha": "b", "runner_environment": "github-hosted",
		"repository_id": "1", "repository_owner": "o", "repository_owner_id": "2", "workflow_ref": ref, "workflow_sha": "c", "run_id": "3", "run_attempt": "1", "repository_visibility": "public",
	}
}

// TestTheClaimAtFaultIsBlamed also where the name begins with another claim.
func TestTheClaimAtFaultIsBlamed(t *testing.T) {
	t.Parallel()
	c := IssuerConfig{URL: "https://issuer.example", Type: TypeCI, Allow: "true", Preset: "codefresh", Audiences: []string{"sigstore"}}
	v, _, _ := verifier(t, c)
	good := map[string]any{"account_id": "a1", "account_name": "acme", "pipeline_id": "p1", "pipeline_name": "shop/build & push", "workflow_id": "w1"}
	p, err := v.Authenticate(t.Context(), token(t, good))
	if err != nil || p.SAN().Value != "https://g.codefresh.io/acme/shop/build%20&%20push:a1/p1" {
		t.Errorf("%v, %v", p.SAN(), err)
	}
	for name, value := range map[string]string{"pipeline_name": "shop/../x", "account_id": "a/b", "pipeline_id": "..", "account_name": "%41", "platform_url": "https://github.com"} {
		changed := maps.Clone(good)
		changed[name] = value
		if e := wantFault(t, v, name, token(t, changed), fault.ClaimInvalid); e.Metadata["claim"] != name || !strings.Contains(e.Public, name) {
			t.Errorf("%s: %v", name, e)
		}
	}
}

func TestOverlappingPatterns(t *testing.T) {
	t.Parallel()
	config := func(patterns ...string) []IssuerConfig {
		var out []IssuerConfig
		for _, p := range patterns {
			out = append(out, IssuerConfig{Pattern: p, Type: TypeKubernetes, Allow: "true", Audiences: []string{"sigstore"}})
		}
		return out
	}
	patterns := []string{"https://*.k8s.example.com/*/*", "https://*.k8s.example.com/id/*", "https://eu.k8s.example.com/id/*", "https://*.k8s.example.com/*", "https://*.k8s.example.com/*/"}
	for round := range 1000 {
		order := slices.Clone(patterns)
		for i := range order { // another order every round
			j := (round*7 + i*3) % len(order)
			order[i], order[j] = order[j], order[i]
		}
		v, err := NewVerifier(config(order...), Options{Now: atMoment, Transport: new(world)})
		if err != nil {
			t.Fatal(err)
		}
		for issuer, want := range map[string]string{
			"https://us.k8s.example.com/x/1": patterns[0], "https://us.k8s.example.com/id/1": patterns[1], "https://eu.k8s.example.com/id/1": patterns[2],
			"https://eu.k8s.example.com/x/1": patterns[0], "https://eu.k8s.example.com/id": patterns[3], "https://eu.k8s.example.com/id/": patterns[4],
		} {
			if i := first(v.current.Load().match(issuer)); i == nil || i.config.Pattern != want {
				t.Fatalf("round %d: %s is matched by %v, want %s", round, issuer, i, want)
			}
		}
	}
	for _, crossed := range [][]string{
		{"https://a.*.example.com/*", "https://*.b.example.com/*"}, {"https://*.example.com/*/b", "https://*.example.com/a/*"},
		{"https://*.example.com/*", "https://*.example.com/*"},
	} {
		want := "issuers[1].pattern: matches"
		if crossed[0] == crossed[1] {
			want = "issuers[1].audiences[0]: "
		}
		if _, err := NewVerifier(config(crossed...), Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", crossed, err)
		}
	}
}
