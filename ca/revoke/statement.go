// Package revoke makes single certificates invalid, for good, and has the world learn
// of it.
//
// What is decided is a [Statement] about one serial number under one issuing key. It
// is in the [Log], an append-only Merkle log, before anybody hears of it; nothing is
// ever taken out. From the log come the lists (lists.go): a complete CRL for each
// issuing certificate, signed by its own key; and the feeds (feed.go). Who may ask for
// what is in ask.go.
package revoke

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Statement says that a certificate is revoked. Its members are in the order of their
// names, so that its JSON without spaces is canonical (RFC 8785): a leaf of the log.
// All of it is public.
type Statement struct {
	ApprovedBy *Asker `json:"approved_by,omitempty"`
	// Authority is the subject key identifier of the issuing certificate, in hexadecimal.
	Authority   string `json:"authority"`
	By          Asker  `json:"by"`
	Fingerprint string `json:"certificate_fingerprint,omitempty"`
	Comment     string `json:"comment,omitempty"`
	Index       uint64 `json:"index"`
	// NotBefore is the certificate's; where only its serial number is known, the
	// issuing certificate's.
	NotBefore time.Time `json:"not_before"`
	Reason    Reason    `json:"reason"`
	Reference string    `json:"reference,omitempty"`
	Serial    string    `json:"serial"`
	Time      time.Time `json:"time"`
}

// Asker is who asked, and by what right. The name is that of their own token.
type Asker struct {
	Issuer  string `json:"issuer,omitempty"`
	Right   string `json:"right"`
	Rule    string `json:"rule,omitempty"`
	SAN     string `json:"san,omitempty"`
	SANType string `json:"san_type,omitempty"`
}

// Reason is why a certificate is revoked, in the words of RFC 5280 §5.3.1.
type Reason string

// reasons are their numbers: those that fit the certificate of a signature.
var reasons = map[Reason]uint8{
	"unspecified": 0, "keyCompromise": 1, "affiliationChanged": 3, "superseded": 4, "cessationOfOperation": 5, "privilegeWithdrawn": 9,
}

// Reasons are all that are taken.
func Reasons() []Reason { return slices.Sorted(maps.Keys(reasons)) }

// The bounds of a statement, in bytes.
const (
	maxText      = 1024 // of comment and reference
	maxStatement = 16 << 10
)

// checkText refuses what a comment or a reference can't be.
func checkText(what, s string) error {
	if len(s) > maxText || !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		return fmt.Errorf("the %s must be one line of UTF-8 of at most %d bytes", what, maxText)
	}
	return nil
}

// encode is the statement's canonical JSON.
func (s *Statement) encode() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(s)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}

// ParseStatement reads what encode wrote, and nothing else.
func ParseStatement(line []byte) (*Statement, error) {
	var s Statement
	if err := json.Unmarshal(line, &s); err != nil {
		return nil, errors.New("not a statement")
	}
	if again, err := s.encode(); err != nil || !bytes.Equal(again, line) {
		return nil, errors.New("not a statement in its canonical form")
	}
	if _, ok := reasons[s.Reason]; !ok {
		return nil, errors.New("a statement with an unknown reason")
	}
	if n, err := parseSerial(s.Serial); err != nil || n.String() != s.Serial {
		return nil, errors.New("a statement without a serial number")
	}
	if id, err := hex.DecodeString(s.Authority); err != nil || len(id) == 0 || s.Authority != strings.ToLower(s.Authority) {
		return nil, errors.New("a statement without an authority's key identifier")
	}
	return &s, nil
}

// serial is a serial number in the 20 octets that it may have (RFC 5280 §4.1.2.2).
type serial [20]byte

// parseSerial reads a serial number as hexadecimal, as openssl and browsers write it too.
func parseSerial(text string) (s serial, err error) {
	n, ok := new(big.Int).SetString(strings.ReplaceAll(text, ":", ""), 16)
	if !ok || n.Sign() <= 0 || n.BitLen() > 8*len(s) {
		return s, errors.New("the serial number must be hexadecimal, as `mayfly cert show` has it")
	}
	n.FillBytes(s[:])
	return s, nil
}

// number is the serial number, which was checked.
func (s *Statement) number() serial {
	n, _ := parseSerial(s.Serial)
	return n
}

func (s serial) number() *big.Int { return new(big.Int).SetBytes(s[:]) }

func (s serial) String() string { return s.number().Text(16) }
