package inspect

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/mayfly-ca/mayfly/internal/terminal"
)

// Print writes the description for a person who reads it at the time now.
// Everything from the certificate is escaped for the terminal.
func (d Description) Print(w io.Writer, now time.Time) error {
	var b strings.Builder
	field := func(label, value string) { fmt.Fprintf(&b, "%-13s %s\n", label, value) }

	for _, n := range d.Identity {
		field("identity", fmt.Sprintf("%s (%s)", terminal.Escape(n.Value), n.Type))
	}
	if len(d.Identity) == 0 {
		field("identity", "none: the certificate has no subject alternative name")
	}
	if d.RecordedIssuer != "" {
		field("vouched by", terminal.Escape(d.RecordedIssuer))
	}
	if d.Subject != "" {
		field("subject", terminal.Line(d.Subject))
	}
	field("validity", Validity(d.NotBefore, d.NotAfter, now))
	field("key", d.Key.Algorithm+", SHA-256 "+d.Key.SHA256)
	field("usage", terminal.Escape(strings.Join(d.Usages, ", ")))
	if d.CA {
		field("", "a CA certificate")
	}
	field("serial", d.Serial)
	field("signed by", terminal.Line(d.Issuer)+" ("+d.Signature+")")
	field("fingerprint", "SHA-256 "+d.SHA256)
	field("", "SHA-1   "+d.SHA1)
	d.printExtensions(&b)
	d.printSCTs(&b)
	d.printChain(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

func (d Description) printExtensions(b *strings.Builder) {
	if len(d.Extensions) > 0 {
		b.WriteString("\nidentity extensions (" + arc + "N)\n")
	}
	for _, e := range d.Extensions {
		value := terminal.Escape(e.Value)
		if e.Fault != "" {
			value = "[" + terminal.Escape(e.Fault) + "]"
		}
		fmt.Fprintf(b, "  %3s  %-39s %s\n", strings.TrimPrefix(e.OID, arc), e.Name, value)
	}
	if len(d.Others) > 0 {
		b.WriteString("\nother extensions\n")
	}
	for _, o := range d.Others {
		critical := ""
		if o.Critical {
			critical = " (critical)"
		}
		fmt.Fprintf(b, "  %-24s %s%s\n", o.OID, o.Name, critical)
	}
}

func (d Description) printSCTs(b *strings.Builder) {
	b.WriteString("\nsigned certificate timestamps\n")
	for _, s := range d.SCTs {
		at := "a time out of range"
		if s.Time != nil {
			at = s.Time.Format("2006-01-02 15:04:05.000 UTC")
		}
		fmt.Fprintf(b, "  %s\n    log id      %s\n", s.result(), s.LogID)
		if s.LogURL != "" {
			fmt.Fprintf(b, "    log         %s\n", terminal.Escape(s.LogURL))
		}
		fmt.Fprintf(b, "    time        %s\n", at)
		if s.LeafIndex != nil {
			fmt.Fprintf(b, "    leaf index  %d\n", *s.LeafIndex)
		}
	}
	switch {
	case d.SCTFault != "":
		fmt.Fprintf(b, "  [%s]\n", terminal.Line(d.SCTFault))
	case len(d.SCTs) == 0:
		b.WriteString("  none\n")
	}
}

func (d Description) printChain(b *strings.Builder) {
	b.WriteString("\nchain\n")
	if d.Verified {
		b.WriteString("  verified for code signing, at the start of the certificate's validity\n")
	} else {
		for i, line := range strings.Split(d.Why, "\n") {
			if i == 0 {
				line = "not verified: " + line
			}
			fmt.Fprintf(b, "  %s\n", terminal.Line(line))
		}
	}
	for i, l := range d.Chain {
		subject := cmp.Or(l.Subject, "(no subject)")
		fmt.Fprintf(b, "  %d  %s\n     until %s, SHA-256 %s\n", i+1, terminal.Line(subject), stamp(l.NotAfter), l.SHA256)
	}
}

func (s SCT) result() string {
	if s.Verified {
		return "verified"
	}
	return "not verified: " + terminal.Line(s.Why)
}

// String is the SCT in one line.
func (s SCT) String() string {
	text := s.result() + ", log " + s.LogID
	if s.LeafIndex != nil {
		text += fmt.Sprintf(", leaf %d", *s.LeafIndex)
	}
	return text
}

// Validity puts a certificate's validity into words: both ends, the span, and
// where now lies.
func Validity(notBefore, notAfter, now time.Time) string {
	// RFC 5280 §4.1.2.5: the second that notAfter names is part of the validity.
	end := notAfter.Add(time.Second)
	text := fmt.Sprintf("%s to %s (%s)", stamp(notBefore), stamp(notAfter), words(end.Sub(notBefore)))
	switch {
	case now.Before(notBefore):
		return text + ", starts in " + words(notBefore.Sub(now))
	case now.Before(end):
		return text + ", ends in " + words(end.Sub(now))
	default:
		return text + ", ended " + words(now.Sub(end)) + " ago"
	}
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

var units = []struct {
	span time.Duration
	name string
}{{time.Second, "second"}, {time.Minute, "minute"}, {time.Hour, "hour"}, {24 * time.Hour, "day"}, {365 * 24 * time.Hour, "year"}}

// words is a span in its largest unit, rounded down; from 2 units on, so that
// little is lost: 90 seconds stay seconds.
func words(d time.Duration) string {
	switch {
	case d < 0:
		return "a negative time"
	case d == math.MaxInt64: // what time.Sub answers beyond 292 years
		return "centuries"
	}
	unit := units[0]
	for _, larger := range units {
		if d >= 2*larger.span {
			unit = larger
		}
	}
	if d/unit.span == 1 {
		return "1 " + unit.name
	}
	return fmt.Sprintf("%d %ss", d/unit.span, unit.name)
}
