package identity

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/identity/internal/claim"
	"github.com/mayfly-ca/mayfly/identity/oidc"
	"github.com/mayfly-ca/mayfly/identity/policy"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// The steps of an authentication, by the names that an explanation gives them.
const (
	stepForm      = "form"
	stepIssuer    = "issuer"
	stepAudience  = "audience"
	stepParty     = "authorized party"
	stepTimes     = "times"
	stepAge       = "age"
	stepSignature = "signature"
	stepSubject   = "name"
	stepDeny      = "deny rule"
	stepAllow     = "allow"
	stepLifetime  = "lifetime"
)

// Finding is what one step of an authentication found. It may hold values of
// the token: it is for the token's owner and the CA's operator.
type Finding struct {
	Step     string `json:"step"`
	OK       bool   `json:"ok"`
	Expected string `json:"expected,omitempty"`
	Actual   string `json:"actual,omitempty"`
	// Claims are those that a rule, a profile or a preset reads, as the token has them.
	Claims []ClaimRead `json:"claims,omitempty"`
	Notes  []string    `json:"notes,omitempty"`
}

// ClaimRead is a claim that is read, with its kind in the token.
type ClaimRead struct {
	Name  string `json:"name"` // as in an expression
	Kind  string `json:"kind"` // such as "a string", or "missing"
	Value string `json:"value,omitempty"`
}

// Explanation is how an authentication went. It is no [Principal]: nothing is
// issued for it.
type Explanation struct {
	Findings []Finding
	// Refusal is why nothing would be issued; nil when a certificate would be.
	Refusal *fault.Error
	// Rule is the policy line that decided: allow, or the name of a deny rule;
	// "" when it didn't come to that.
	Rule string
	// Entry is the configured url or pattern that the token is for, or "".
	Entry string
	// The rest is what the certificate would say, as far as it was decided.
	Issuer, Subject, Audience string
	SAN                       SAN
	Extensions                extension.Set
	Profile                   string
	Lifetime, MaxLifetime     time.Duration // zero as in Principal
}

// Explain authenticates token as [Verifier.Authenticate] does, by the same
// code, and says how each step went. It uses up no one-time token, and counts
// nothing.
func (v *Verifier) Explain(ctx context.Context, token string) *Explanation {
	s := v.current.Load()
	tr := &trace{snapshot: s}
	p, err := s.authenticate(ctx, token, tr, func(g genuine) (Principal, error) { return s.evaluatePolicy(g, tr) })
	return tr.explain(p, err)
}

// ExplainClaims says what [Verifier.Authenticate] would of a genuine token with
// these claims, a JSON object, at any time within its validity: which entry it
// is for, what name it gives, and what the policies say of it.
func (v *Verifier) ExplainClaims(claims string) *Explanation {
	s := v.current.Load()
	tr := &trace{snapshot: s}
	var p Principal
	set, err := claim.Parse(claims)
	if err != nil {
		return tr.explain(p, tr.check(stepForm, claim.Malformed("its claims can't be read: "+err.Error())))
	}
	tr.token.Claims = set
	g := genuine{token: tr.token}
	if g.issuer, g.url, g.audience, err = s.route(set, tr); err == nil {
		p, err = s.evaluatePolicy(g, tr)
	}
	if err != nil {
		p = Principal{}
	}
	return tr.explain(p, err)
}

// trace takes down the steps of one authentication. A nil trace takes nothing,
// and costs a comparison a step.
type trace struct {
	snapshot *snapshot
	token    oidc.Token
	entry    *issuer
	entries  []*issuer // those for the token's issuer, from entry on
	rule     string
	findings []Finding
}

// check takes down a step that ended with err, and returns err.
func (tr *trace) check(step string, err error) error {
	if tr == nil {
		return err
	}
	f := Finding{Step: step, OK: err == nil}
	f.Expected, f.Actual = tr.facts(step, err)
	if e := fault.From(err); e != nil {
		f.Notes = append(f.Notes, e.Public)
		if e.Cause != nil {
			f.Notes = append(f.Notes, "because: "+e.Cause.Error())
		}
	}
	if step == stepIssuer {
		f.Notes = append(f.Notes, tr.others()...)
	}
	if step == stepSubject {
		for _, name := range tr.entry.presetReads {
			tr.reading(&f, policy.Read{Path: []string{name}})
		}
	}
	tr.findings = append(tr.findings, f)
	return err
}

// reads is told the token, before its form is checked.
func (tr *trace) reads(t oidc.Token) {
	if tr != nil {
		tr.token = t
	}
}

// enters is told the entries for the token's issuer, and again those from the
// one for its audience on.
func (tr *trace) enters(entries []*issuer) {
	if tr != nil {
		tr.entry, tr.entries = entries[0], entries
	}
}

// facts is what a step expects, and what the token has.
func (tr *trace) facts(step string, err error) (expected, actual string) {
	c := tr.token.Claims
	key := tr.token.Algorithm + ", kid " + claim.Quote(tr.token.KeyID)
	switch {
	case step == stepForm && err == nil:
		return "", "compact JWS, alg " + key
	case step == stepIssuer:
		if tr.entry != nil {
			expected = tr.entry.name()
		}
		return expected, show(c.Get("iss"))
	case tr.entry == nil:
		return "", ""
	}
	config := &tr.entry.config
	switch step {
	case stepAudience:
		return claim.QuoteAll(audiencesOf(tr.entries)), show(c.Get("aud"))
	case stepParty:
		if len(config.AuthorizedParties) > 0 {
			expected = claim.QuoteAll(slices.Concat(config.Audiences, config.AuthorizedParties))
		}
		return expected, show(c.Get("azp"))
	case stepTimes:
		now := tr.snapshot.v.options.Now()
		return "now, " + now.UTC().Format(time.RFC3339) + ", within ±" + config.Leeway.String() + ", and at most " + config.MaxTokenLifetime.String() + " in all",
			"iat " + showTime(c, "iat") + ", nbf " + showTime(c, "nbf") + ", exp " + showTime(c, "exp")
	case stepAge:
		if config.MaxTokenAge > 0 {
			expected = "at most " + config.MaxTokenAge.String() + " since iat"
		}
		return expected, "iat " + showTime(c, "iat")
	case stepSignature:
		return "one of " + strings.Join(config.Algorithms, ", "), key
	}
	return "", ""
}

// others says of every other entry why the token isn't for it.
func (tr *trace) others() []string {
	iss := tr.token.Claims.Get("iss")
	url := iss.Literal()
	var notes []string
	for _, i := range tr.snapshot.issuers {
		switch {
		case tr.entry != nil && i.name() == tr.entry.name():
		case iss.Kind() != claim.String:
		case i.config.URL != "" && strings.EqualFold(strings.TrimSuffix(i.config.URL, "/"), strings.TrimSuffix(url, "/")):
			notes = append(notes, i.name()+": differs in case or a final slash, and every byte counts")
		case i.config.URL != "":
			notes = append(notes, i.name()+": is another issuer")
		case i.pattern.match(url):
			notes = append(notes, i.name()+": matches too, and is less specific")
		default:
			notes = append(notes, i.name()+": doesn't match")
		}
	}
	return notes
}

// named is told the principal before the policies are asked.
func (tr *trace) named(p Principal) {
	if tr != nil {
		tr.findings[len(tr.findings)-1].Actual = p.san.Kind.String() + " " + p.san.Value
	}
}

// ruled is told what a rule says: ok when it lets the token pass.
func (tr *trace) ruled(step, rule string, x *policy.Expression, ok bool, why error) {
	if tr == nil {
		return
	}
	f := Finding{Step: step, OK: ok, Expected: x.Text}
	if step == stepDeny {
		f.Step, f.Expected = step+" "+rule, "not "+x.Text
	}
	if why != nil {
		f.Notes = append(f.Notes, why.Error())
	}
	tr.reading(&f, x.Reads...)
	if !ok || step == stepAllow {
		tr.rule = rule
	}
	tr.findings = append(tr.findings, f)
}

// reading puts what a rule reads into its finding, and what doesn't fit there.
func (tr *trace) reading(f *Finding, reads ...policy.Read) {
	for _, r := range reads {
		v := claim.At(tr.token.Claims, r.Path)
		one := ClaimRead{Name: r.Name(), Kind: v.Kind().String()}
		if v.Kind() != claim.Missing && v.Kind() != claim.Null && v.Kind() != claim.Object {
			one.Value = show(v)
		}
		if !slices.Contains(f.Claims, one) {
			f.Claims = append(f.Claims, one)
		}
		if note := r.Misfit(v.Kind()); note != "" && !slices.Contains(f.Notes, note) {
			f.Notes = append(f.Notes, note)
		}
	}
}

// ended is told a deny rule that has ended.
func (tr *trace) ended(d *denyRule) {
	if tr != nil {
		tr.findings = append(tr.findings, Finding{Step: stepDeny + " " + d.Name, OK: true, Notes: []string{"ended at " + d.Until.UTC().Format(time.RFC3339) + ", and is ignored"}})
	}
}

// chose is told what the policy chose for the certificate.
func (tr *trace) chose(c policy.Choice, by *policy.Policy) {
	if tr == nil {
		return
	}
	f := Finding{Step: stepLifetime, OK: true, Actual: "the CA's own"}
	if c.Lifetime > 0 {
		f.Actual = c.Lifetime.String()
	}
	if c.Profile != "" {
		f.Actual += " by the profile " + c.Profile
	}
	if c.Most > 0 {
		f.Expected = "at most " + c.Most.String()
	}
	tr.reading(&f, by.ProfilesRead()...)
	tr.findings = append(tr.findings, f)
}

func (tr *trace) explain(p Principal, err error) *Explanation {
	x := &Explanation{
		Findings: tr.findings, Refusal: fault.From(err), Rule: tr.rule, Issuer: p.issuer, Subject: p.subject, Audience: p.audience,
		SAN: p.san, Extensions: p.extensions, Profile: p.choice.Profile, Lifetime: p.choice.Lifetime, MaxLifetime: p.choice.Most,
	}
	if tr.entry != nil {
		x.Entry = tr.entry.name()
	}
	return x
}

// show puts a claim into a few words.
func show(v claim.Value) string {
	switch v.Kind() {
	case claim.String:
		return claim.Quote(v.Literal())
	case claim.Array:
		return quoteValues(v.Elements())
	case claim.Bool, claim.Number:
		return v.Literal()
	default:
		return v.Kind().String()
	}
}

func showTime(c claim.Set, name string) string {
	t, present, err := numericDate(c, name)
	switch {
	case err != nil:
		return strconv.Quote(c.Get(name).Literal())
	case !present:
		return "missing"
	default:
		return t.UTC().Format(time.RFC3339)
	}
}
