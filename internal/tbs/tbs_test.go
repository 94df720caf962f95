package tbs_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"testing"
	"time"

	"golang.org/x/crypto/cryptobyte"
	cryptobyteasn1 "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/mayfly-ca/mayfly/internal/tbs"
)

var mark = asn1.ObjectIdentifier{1, 2, 3}

// sample is the TBSCertificate of a certificate with these extensions.
func sample(t testing.TB, extensions ...pkix.Extension) []byte {
	t.Helper()
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Unix(1, 0), ExtraExtensions: extensions}
	der, err := x509.CreateCertificate(nil, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c.RawTBSCertificate
}

// edit replaces the marked extensions and puts the rest together again.
func edit(der, with []byte) ([]byte, int, error) {
	before, extensions, err := tbs.Split(der)
	if err != nil {
		return nil, 0, err
	}
	extensions, found, err := tbs.Replace(extensions, mark, func(cryptobyte.String) ([]byte, error) { return with, nil })
	if err != nil {
		return nil, 0, err
	}
	return tbs.Join(before, extensions), found, nil
}

func TestOnlyTheExtensionChanges(t *testing.T) {
	t.Parallel()
	other := pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 4}, Value: bytes.Repeat([]byte{7}, 200)}
	marked, second := pkix.Extension{Id: mark, Critical: true, Value: []byte{5, 0}}, pkix.Extension{Id: mark, Value: []byte{1}}
	encoded, err := asn1.Marshal(second)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		der, with, want []byte
		found           int
	}{
		"none":         {sample(t, other), nil, sample(t, other), 0},
		"taken out":    {sample(t, marked, other), nil, sample(t, other), 1},
		"in its place": {sample(t, marked, other), encoded, sample(t, second, other), 1},
	} {
		got, found, err := edit(tt.der, tt.with)
		if err != nil || found != tt.found || !bytes.Equal(got, tt.want) {
			t.Errorf("%s: %x, %d, %v; want %x, %d", name, got, found, err, tt.want, tt.found)
		}
	}
}

func TestRefusalIsHandedOn(t *testing.T) {
	t.Parallel()
	refused := errors.New("refused")
	_, extensions, err := tbs.Split(sample(t, pkix.Extension{Id: mark, Critical: true, Value: []byte{5, 0}}))
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = tbs.Replace(extensions, mark, func(rest cryptobyte.String) ([]byte, error) {
		var critical bool
		if !rest.ReadASN1Boolean(&critical) || !critical {
			t.Error("the fields after the type aren't handed over")
		}
		return nil, refused
	})
	if !errors.Is(err, refused) {
		t.Errorf("got %v", err)
	}
}

func TestExtensionsCanBeAbsent(t *testing.T) {
	t.Parallel()
	before, _, err := tbs.Split(sample(t, pkix.Extension{Id: mark}))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := tbs.Split(tbs.Join(before, nil)); !errors.Is(err, tbs.ErrMalformed) {
		t.Errorf("no extensions: %v", err)
	}
}

// TestWrap: elements of every form of length are those of encoding/asn1, with what
// comes before them as it was.
func TestWrap(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x10000} {
		content := bytes.Repeat([]byte{7}, n)
		want, err := asn1.Marshal(content) // an OCTET STRING
		if err != nil {
			t.Fatal(err)
		}
		got := tbs.Wrap(append([]byte("before"), content...), len("before"), cryptobyteasn1.OCTET_STRING)
		if !bytes.Equal(got, append([]byte("before"), want...)) {
			t.Errorf("%d bytes are wrapped as %.20x…, want %.20x…", n, got, want)
		}
	}
}

func FuzzSplit(f *testing.F) {
	der := sample(f, pkix.Extension{Id: mark, Value: []byte{5, 0}})
	f.Add(der)
	f.Add(der[:len(der)-1])
	f.Add(append(bytes.Clone(der), 0))
	f.Fuzz(func(t *testing.T, der []byte) {
		before, extensions, err := tbs.Split(der)
		if err != nil || len(extensions) == 0 {
			return
		}
		if got := tbs.Join(before, extensions); !bytes.Equal(got, der) {
			t.Errorf("%x came back as %x", der, got)
		}
		if _, _, err := edit(der, nil); err != nil && !errors.Is(err, tbs.ErrMalformed) {
			t.Error(err)
		}
	})
}

// FuzzObjectIdentifier: the type of an extension is read as cryptobyte reads it.
func FuzzObjectIdentifier(f *testing.F) {
	for _, content := range []string{"", "\x2a\x03", "\x80\x01", "\x2a\x83", "\x2a\x87\xff\xff\xff\x7f", "\x2a\x88\x80\x80\x80\x00", "\x2a\x8f\xff\xff\xff\xff\x7f"} {
		f.Add([]byte(content))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		var b cryptobyte.Builder
		b.AddASN1(cryptobyteasn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1(cryptobyteasn1.OBJECT_IDENTIFIER, func(b *cryptobyte.Builder) { b.AddBytes(content) })
		})
		extension, err := b.Bytes()
		if err != nil {
			return
		}
		var id asn1.ObjectIdentifier
		fields := cryptobyte.String(extension)
		good := fields.ReadASN1(&fields, cryptobyteasn1.SEQUENCE) && fields.ReadASN1ObjectIdentifier(&id)
		_, found, err := tbs.Replace(extension, mark, func(cryptobyte.String) ([]byte, error) { return nil, nil })
		if (err == nil) != good || good && (found == 1) != id.Equal(mark) {
			t.Errorf("%x: %d found, %v; cryptobyte reads it: %t, as %v", content, found, err, good, id)
		}
	})
}
