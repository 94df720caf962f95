package identity

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/identity/extension"
	"github.com/mayfly-ca/mayfly/identity/internal/claim"
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

// Explanation is how an authentication went, with the JSON form that docs/json.md
// promises. It is no [Principal]: nothing is issued for it.
type Explanation struct {
	Issued bool `json:"would_be_issued"`
	// Refusal is why not; nil when a certificate would be issued.
	Refusal *fault.Error `json:"-"`
	Reason  string       `json:"reason,omitempty"`  // the refusal's
	Message string       `json:"message,omitempty"` // what it says to clients
	// Rule is the policy line that decided: allow, or the name of a deny rule;
	// "" when it didn't come to that.
	Rule string `json:"rule,omitempty"`
	// Entry is the configured url or pattern that the token is for, or "".
	Entry    string    `json:"entry,omitempty"`
	Findings []Finding `json:"steps"`
	// The rest is what the certificate would say; nothing where there would be none.
	SAN         string            `json:"san,omitempty"`
	SANType     string            `json:"san_type,omitempty"`
	Set         extension.Set     `json:"-"`
	Extensions  map[string]string `json:"extensions,omitempty"` // the set's that aren't empty
	Profile     string            `json:"profile,omitempty"`
	Lifetime    string            `json:"lifetime,omitempty"` // "" where Principal has zero
	MaxLifetime string            `json:"max_lifetime,omitempty"`
}

// Explain authenticates token as [Verifier.Authenticate] does, by the same
// code, and says how each step went. It uses up no one-time token, and counts
// nothing.
func (v *Verifier) Explain(ctx context.Context, token string) *Explanation {
	a := attempt{snapshot: v.current.Load(), explains: true}
	return a.explanation(a.authenticate(ctx, token, true))
}

// ExplainClaims says what [Verifier.Authenticate] would of a genuine token with
// these claims, a JSON object, at any time within its validity: which entry it
// is for, what name it gives, and what the policies say of it.
func (v *Verifier) ExplainClaims(claims string) *Explanation {
	a := attempt{snapshot: v.current.Load(), explains: true}
	set, err := claim.Parse(claims)
	if err != nil {
		return a.explanation(a.check(stepForm, claim.Malformed("its claims can't be read: "+err.Error())))
	}
	a.token.Claims = set
	if err = a.route(); err == nil {
		err = a.judge(true)
	}
	return a.explanation(err)
}

// check takes down a step that ended with err, and returns err.
func (a *attempt) check(step string, err error) error {
	if !a.explains {
		return err
	}
	f := Finding{Step: step, OK: err == nil}
	f.Expected, f.Actual = a.facts(step, err)
	if e := fault.From(err); e != nil {
		f.Notes = append(f.Notes, e.Public)
		if e.Cause != nil {
			f.Notes = append(f.Notes, "because: "+e.Cause.Error())
		}
	}
	if step == stepIssuer {
		f.Notes = append(f.Notes, a.others()...)
	}
	if step == stepSubject {
		for _, name := range a.issuer.presetReads {
			a.reading(&f, policy.Read{Path: []string{name}})
		}
	}
	a.findings = append(a.findings, f)
	return err
}

// facts is what a step expects, and what the token has.
func (a *attempt) facts(step string, err error) (expected, actual string) {
	c := a.token.Claims
	key := a.token.Algorithm + ", kid " + claim.Quote(a.token.KeyID)
	switch {
	case step == stepForm && err == nil:
		return "", "compact JWS, alg " + key
	case step == stepIssuer:
		if a.issuer != nil {
			expected = a.issuer.name()
		}
		return expected, show(c.Get("iss"))
	case step == stepSubject && err == nil:
		return "", a.principal.san.Kind.String() + " " + a.principal.san.Value
	case a.issuer == nil:
		return "", ""
	}
	config := &a.issuer.config
	switch step {
	case stepAudience:
		return claim.QuoteAll(audiencesOf(a.entries)), show(c.Get("aud"))
	case stepParty:
		if len(config.AuthorizedParties) > 0 {
			expected = claim.QuoteAll(slices.Concat(config.Audiences, config.AuthorizedParties))
		}
		return expected, show(c.Get("azp"))
	case stepTimes:
		now := a.v.options.Now()
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
func (a *attempt) others() []string {
	iss := a.token.Claims.Get("iss")
	url := iss.Literal()
	var notes []string
	for _, i := range a.issuers {
		switch {
		case a.issuer != nil && i.name() == a.issuer.name():
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

// ruled takes down what a rule says: ok when it lets the token pass.
func (a *attempt) ruled(step, rule string, x *policy.Expression, ok bool, why error) {
	if !a.explains {
		return
	}
	f := Finding{Step: step, OK: ok, Expected: x.Text}
	if step == stepDeny {
		f.Step, f.Expected = step+" "+rule, "not "+x.Text
	}
	if why != nil {
		f.Notes = append(f.Notes, why.Error())
	}
	a.reading(&f, x.Reads...)
	if !ok || step == stepAllow {
		a.rule = rule
	}
	a.findings = append(a.findings, f)
}

// reading puts what a rule reads into its finding, and what doesn't fit there.
func (a *attempt) reading(f *Finding, reads ...policy.Read) {
	for _, r := range reads {
		v := claim.At(a.token.Claims, r.Path)
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

// ended takes down a deny rule that has ended.
func (a *attempt) ended(d *denyRule) {
	if a.explains {
		a.findings = append(a.findings, Finding{Step: stepDeny + " " + d.Name, OK: true, Notes: []string{"ended at " + d.Until.UTC().Format(time.RFC3339) + ", and is ignored"}})
	}
}

// chose takes down what the policy chose for the certificate.
func (a *attempt) chose() {
	if !a.explains {
		return
	}
	c, f := a.principal.choice, Finding{Step: stepLifetime, OK: true, Actual: "the CA's own"}
	if c.Lifetime > 0 {
		f.Actual = c.Lifetime.String()
	}
	if c.Profile != "" {
		f.Actual += " by the profile " + c.Profile
	}
	if c.Most > 0 {
		f.Expected = "at most " + c.Most.String()
	}
	a.reading(&f, a.issuer.policy.ProfilesRead()...)
	a.findings = append(a.findings, f)
}

func (a *attempt) explanation(err error) *Explanation {
	x := &Explanation{Issued: err == nil, Refusal: fault.From(err), Rule: a.rule, Findings: a.findings}
	if a.issuer != nil {
		x.Entry = a.issuer.name()
	}
	if err != nil {
		x.Reason, x.Message = string(x.Refusal.Reason), x.Refusal.Public
		return x
	}
	p := &a.principal
	x.SAN, x.SANType, x.Set, x.Extensions = p.san.Value, p.san.Kind.String(), p.extensions, p.extensions.Map()
	x.Profile = p.choice.Profile
	if p.choice.Lifetime > 0 {
		x.Lifetime = p.choice.Lifetime.String()
	}
	if p.choice.Most > 0 {
		x.MaxLifetime = p.choice.Most.String()
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
