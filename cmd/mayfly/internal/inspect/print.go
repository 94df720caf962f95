package inspect

import (
	"cmp"
	"fmt"
	"io"
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
		b.WriteString("\nidentity extensions (1.3.6.1.4.1.57264.1.N)\n")
	}
	for _, e := range d.Extensions {
		value := terminal.Escape(e.Value)
		if e.Fault != "" {
			value = "[" + terminal.Escape(e.Fault) + "]"
		}
		fmt.Fprintf(b, "  %3s  %-39s %s\n", strings.TrimPrefix(e.OID, "1.3.6.1.4.1.57264.1."), e.Name, value)
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
		result := "verified"
		if !s.Verified {
			result = "not verified: " + terminal.Line(s.Why)
		}
		at := "a time out of range"
		if s.Time != nil {
			at = s.Time.Format("2006-01-02 15:04:05.000 UTC")
		}
		fmt.Fprintf(b, "  %s\n    log id      %s\n", result, s.LogID)
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

// String is the SCT in one line.
func (s SCT) String() string {
	text := "verified"
	if !s.Verified {
		text = "not verified: " + terminal.Line(s.Why)
	}
	text += ", log " + s.LogID
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

// words is a span in its largest unit, rounded down; from 2 units on, so that
// little is lost: 90 seconds stay seconds.
func words(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < 0:
		return "a negative time"
	case d < 2*time.Minute:
		return count(int64(d/time.Second), "second")
	case d < 2*time.Hour:
		return count(int64(d/time.Minute), "minute")
	case d < 2*day:
		return count(int64(d/time.Hour), "hour")
	case d < 2*365*day:
		return count(int64(d/day), "day")
	case d == 1<<63-1: // what time.Sub answers beyond 292 years
		return "centuries"
	default:
		return count(int64(d/(365*day)), "year")
	}
}

func count(n int64, unit string) string {
	if n == 1 {
		return "1 " + unit
	}
	return fmt.Sprintf("%d %ss", n, unit)
}
