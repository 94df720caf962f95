package revoke

import (
	"context"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/identity/access"
	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

func administrator(name string) By {
	return Administrator(access.Grant{Right: access.Administer, Rule: "security", Issuer: "https://i.example", SAN: name, SANType: "email"})
}

// listed is an index of what a test issued.
type listed []Certificate

func (l listed) Issued(_ context.Context, _ Query, most int) ([]Certificate, error) {
	return l[:min(most, len(l))], nil
}

func wantFault(t *testing.T, what string, err error, reason fault.Reason, words string) {
	t.Helper()
	if f := fault.From(err); f == nil || f.Reason != reason || !strings.Contains(f.Public, words) {
		t.Errorf("%s: %v; want %s, %q", what, err, reason, words)
	}
}

// TestRange: what is searched for is revoked once its count was repeated, all of it under
// one checkpoint; a wrong count, a search for nothing and too much are refused.
func TestRange(t *testing.T) {
	t.Parallel()
	by, _ := issuing(t, key(t, "P-256"))
	var found listed
	for range 5 {
		c := leaf(t, by, catest.Key(t), nil, begin)
		found = append(found, Certificate{Authority: ID(by.Certificate), Serial: c.SerialNumber.Text(16), NotBefore: c.NotBefore, SAN: "alice@example.com"})
	}
	r := newRig(t, func(o *Options) { o.Index = found }, by)
	sue, q := administrator("sue@example.com"), Request{Find: &Query{Where: []string{"san=alice@example.com"}}}
	q.DryRun = true
	if a, err := r.ask(t, sue, q); err != nil || len(a.Found) != 5 || r.Log.Size() != 0 {
		t.Fatalf("%+v, %v", a, err)
	}
	q.DryRun = false
	for _, count := range []int{0, 4, 6} {
		q.Count = count
		_, err := r.ask(t, sue, q)
		wantFault(t, "a wrong count", err, fault.RequestMalformed, "5 certificates are meant")
	}
	q.Count = 5
	a, err := r.ask(t, sue, q)
	if err != nil || len(a.Statements) != 5 || len(a.Proofs) != 5 || r.Log.Size() != 5 {
		t.Fatalf("%+v, %v", a, err)
	}
	_, err = r.ask(t, sue, Request{Find: &Query{From: begin}})
	wantFault(t, "a search for everything", err, fault.RequestMalformed, "at least one condition")
	r.Revoker.o.Index = make(listed, maxFound+1)
	_, err = r.ask(t, sue, q)
	wantFault(t, "too much", err, fault.RequestMalformed, "narrow it in time")
	r.Revoker.o.Index = nil
	_, err = r.ask(t, sue, q)
	wantFault(t, "no index", err, fault.RequestMalformed, "no index")
	_, err = r.ask(t, By{}, q)
	wantFault(t, "nobody", err, fault.AccessDenied, "")
	_, err = r.ask(t, Administrator(access.Grant{Right: access.Read, Rule: "r"}), q)
	wantFault(t, "a reader", err, fault.AccessDenied, "")
}

// TestTwoPeople: a range waits for another administrator, for a day; one certificate
// doesn't. Both are in the statement.
func TestTwoPeople(t *testing.T) {
	t.Parallel()
	by, _ := issuing(t, key(t, "P-256"))
	r := newRig(t, func(o *Options) { o.Config.TwoPeople = true }, by)
	two := Request{Certificates: [][]byte{leaf(t, by, catest.Key(t), nil, begin).Raw, leaf(t, by, catest.Key(t), nil, begin).Raw}, Comment: "theirs"}
	sue, bob := administrator("sue@example.com"), administrator("bob@example.com")
	if a, err := r.ask(t, sue, Request{Certificates: two.Certificates[:1]}); err != nil || len(a.Statements) != 1 {
		t.Fatalf("%+v, %v", a, err)
	}
	ask := func() string {
		t.Helper()
		a, err := r.ask(t, sue, two)
		if err != nil || a.Pending == "" || len(a.Found) != 2 || r.Log.Size() != 1 {
			t.Fatalf("%+v, %v", a, err)
		}
		return a.Pending
	}
	id := ask()
	_, err := r.ask(t, sue, Request{Approve: id, Count: 2})
	wantFault(t, "the same person", err, fault.AccessDenied, "another person")
	_, err = r.ask(t, KeyHolder(), Request{Approve: id, Count: 2})
	wantFault(t, "no administrator", err, fault.AccessDenied, "administrators alone")
	_, err = r.ask(t, bob, Request{Approve: id, Count: 1})
	wantFault(t, "another count", err, fault.RequestMalformed, "2 certificates are meant")
	_, err = r.ask(t, bob, Request{Approve: "X", Count: 2})
	wantFault(t, "another name", err, fault.RequestMalformed, "ask anew")
	_, err = r.ask(t, bob, Request{Approve: id, Serial: "1f", Count: 2})
	wantFault(t, "two things at once", err, fault.RequestMalformed, "send one of")
	a, err := r.ask(t, bob, Request{Approve: id, DryRun: true})
	if err != nil || len(a.Found) != 2 || r.Log.Size() != 1 {
		t.Fatalf("a dry run: %+v, %v, %d statements", a, err, r.Log.Size())
	}
	a, err = r.ask(t, bob, Request{Approve: id, Count: 2})
	if err != nil || len(a.Statements) != 2 {
		t.Fatalf("%+v, %v", a, err)
	}
	if s, err := ParseStatement(a.Statements[1]); err != nil || s.By.SAN != "sue@example.com" || s.ApprovedBy == nil || s.ApprovedBy.SAN != "bob@example.com" || s.Comment != "theirs" {
		t.Errorf("%s, %v", a.Statements[1], err)
	}
	_, err = r.ask(t, bob, Request{Approve: id, Count: 2})
	wantFault(t, "once more", err, fault.RequestMalformed, "ask anew")

	two.Certificates = [][]byte{leaf(t, by, catest.Key(t), nil, begin).Raw, leaf(t, by, catest.Key(t), nil, begin).Raw}
	var last string
	for range maxPending {
		a, err := r.ask(t, sue, two)
		if err != nil {
			t.Fatal(err)
		}
		last = a.Pending
	}
	_, err = r.ask(t, sue, two)
	wantFault(t, "too many", err, fault.RequestMalformed, "wait for another person already")
	r.now = r.now.Add(25 * time.Hour)
	_, err = r.ask(t, bob, Request{Approve: last, Count: 2})
	wantFault(t, "too late", err, fault.RequestMalformed, "ask anew")
	if a, err := r.ask(t, sue, two); err != nil || a.Pending == "" {
		t.Errorf("after those were over: %+v, %v", a, err)
	}
}

// TestRequests: what a request must say.
func TestRequests(t *testing.T) {
	t.Parallel()
	by, _ := issuing(t, key(t, "P-256"))
	other, _ := issuing(t, key(t, "P-256"))
	third, _ := issuing(t, key(t, "P-256"))
	r := newRig(t, nil, by, other)
	sue := administrator("sue@example.com")
	for name, c := range map[string]struct {
		q     Request
		words string
	}{
		"nothing":                   {Request{}, "send certificates, a serial number, or what to find"},
		"a comment of two lines":    {Request{Serial: "1", Comment: "a\nb"}, "the comment must be one line"},
		"a long reference":          {Request{Serial: "1", Reference: strings.Repeat("x", maxText+1)}, "the reference must be one line"},
		"an unknown reason":         {Request{Serial: "1", Reason: "certificateHold"}, "the reason must be one of [affiliationChanged"},
		"no serial number":          {Request{Serial: "xyz"}, "must be hexadecimal"},
		"a negative one":            {Request{Serial: "-1"}, "must be hexadecimal"},
		"one of too many octets":    {Request{Serial: strings.Repeat("f", 41)}, "must be hexadecimal"},
		"whose serial number":       {Request{Serial: "1"}, "2 authorities"},
		"an unknown authority":      {Request{Serial: "1", Authority: ID(third.Certificate)}, "0 authorities"},
		"no certificate":            {Request{Certificates: [][]byte{[]byte("x")}}, "can't be read"},
		"another CA's certificate":  {Request{Certificates: [][]byte{leaf(t, third, catest.Key(t), nil, begin).Raw}}, "wasn't issued by"},
		"a certificate of its name": {Request{Certificates: [][]byte{forged(t, by, third)}}, "wasn't issued by"},
	} {
		_, err := r.ask(t, sue, c.q)
		wantFault(t, name, err, fault.RequestMalformed, c.words)
	}
	a, err := r.ask(t, sue, Request{Serial: "0A:bc", Authority: ID(other.Certificate)})
	if err != nil || len(a.Statements) != 1 || !strings.Contains(string(a.Statements[0]), `"serial":"abc"`) || r.Log.Size() != 1 {
		t.Errorf("%+v, %v", a, err)
	}
}

// forged names one authority as its issuer and is signed by another.
func forged(t *testing.T, of, by Signing) []byte {
	t.Helper()
	lie := *of.Certificate
	lie.PublicKey = by.Certificate.PublicKey
	return leaf(t, Signing{Certificate: &lie, Key: by.Key}, catest.Key(t), func(*x509.Certificate) {}, begin).Raw
}
