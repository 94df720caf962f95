//go:build pkcs11 && cgo

package pkcs11

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"os"
	"slices"
	"strconv"
	"sync"
	"unsafe"

	"github.com/miekg/pkcs11"

	"github.com/mayfly-ca/mayfly/internal/pubkey"
)

// module is one library, loaded and initialised.
type module struct {
	path     string
	context  *pkcs11.Ctx
	reserved []byte // the string of C_Initialize, kept: a library may hold on to it
}

// modules are the libraries of this process. C_Initialize is once a process
// (PKCS #11 v2.40 §5.4), and other keys' sessions live in the same library, so
// they stay until the process ends.
var modules = struct {
	sync.Mutex
	byPath map[string]*module
}{byPath: make(map[string]*module)}

// load gives the library at path. The first to ask decides what reserved is.
func load(path, reserved string) (*module, error) {
	modules.Lock()
	defer modules.Unlock()
	if m := modules.byPath[path]; m != nil {
		if !bytes.Equal(m.reserved, reservedBytes(reserved)) {
			return nil, fmt.Errorf("library %s is in use with another %s: one process, one of them", path, attributeReserved)
		}
		return m, nil
	}
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("library: %w", err)
	}
	m := &module{path: path, context: pkcs11.New(path), reserved: reservedBytes(reserved)}
	if m.context == nil {
		return nil, fmt.Errorf("library %s can't be loaded: is it a PKCS #11 module of this machine's architecture, with all that it links (ldd)?", path)
	}
	var options []pkcs11.InitializeOption
	if m.reserved != nil {
		options = append(options, pkcs11.InitializeWithReserved(unsafe.Pointer(&m.reserved[0]))) // #nosec G103 -- a C string
	}
	if err := m.context.Initialize(options...); err != nil && !is(err, pkcs11.CKR_CRYPTOKI_ALREADY_INITIALIZED) {
		m.context.Destroy()
		return nil, fmt.Errorf("library %s: C_Initialize: %w", path, err)
	}
	modules.byPath[path] = m
	return m, nil
}

// reservedBytes is s as C reads it, nil for none.
func reservedBytes(s string) []byte {
	if s == "" {
		return nil
	}
	return append([]byte(s), 0)
}

// is reports whether err is one of the library's return values.
func is(err error, values ...pkcs11.Error) bool {
	var e pkcs11.Error
	return errors.As(err, &e) && slices.Contains(values, e)
}

// slot is the one slot whose token the URI names.
func (m *module) slot(u *uri) (uint, error) {
	slots, err := m.context.GetSlotList(true)
	if err != nil {
		return 0, fmt.Errorf("C_GetSlotList: %w", err)
	}
	var matching []uint
	var seen []string
	for _, slot := range slots {
		token, err := m.context.GetTokenInfo(slot)
		info, infoErr := m.context.GetSlotInfo(slot)
		if err != nil || infoErr != nil || token.Flags&pkcs11.CKF_TOKEN_INITIALIZED == 0 {
			continue // one that nobody set up, or a reader whose card was just pulled
		}
		seen = append(seen, strconv.Quote(token.Label))
		if u.matches(map[string]string{
			attributeSlotID: strconv.FormatUint(uint64(slot), 10), "slot-manufacturer": info.ManufacturerID, "slot-description": info.SlotDescription,
			"model": token.Model, "manufacturer": token.ManufacturerID, "serial": token.SerialNumber, "token": token.Label,
		}) {
			matching = append(matching, slot)
		}
	}
	switch len(matching) {
	case 1:
		return matching[0], nil
	case 0:
		return 0, fmt.Errorf("no token matches; the library has %v", seen)
	default:
		return 0, fmt.Errorf("%d tokens match: add token=LABEL or serial=…; the library has %v", len(matching), seen)
	}
}

// matches reports whether what the URI says is what a token or its slot has.
func (u *uri) matches(has map[string]string) bool {
	for name, value := range has {
		if want, ok := u.values[name]; ok && want != value {
			return false
		}
	}
	return true
}

// one finds the only object of a class that the template describes.
func (m *module) one(session pkcs11.SessionHandle, template []*pkcs11.Attribute) (pkcs11.ObjectHandle, error) {
	const most = 16
	if err := m.context.FindObjectsInit(session, template); err != nil {
		return 0, fmt.Errorf("C_FindObjectsInit: %w", err)
	}
	found, _, err := m.context.FindObjects(session, most)
	if finalErr := m.context.FindObjectsFinal(session); err == nil && finalErr != nil {
		err = finalErr
	}
	switch {
	case err != nil:
		return 0, fmt.Errorf("C_FindObjects: %w", err)
	case len(found) == 0:
		return 0, errNoObject
	case len(found) > 1:
		return 0, fmt.Errorf("%d objects match: name both id= and object=", len(found))
	}
	return found[0], nil
}

var errNoObject = errors.New("no such object")

// attribute reads one attribute of an object; nil when it has none.
func (m *module) attribute(session pkcs11.SessionHandle, object pkcs11.ObjectHandle, kind uint) []byte {
	got, err := m.context.GetAttributeValue(session, object, []*pkcs11.Attribute{pkcs11.NewAttribute(kind, nil)})
	if err != nil || len(got) != 1 || len(got[0].Value) == 0 {
		return nil
	}
	return got[0].Value
}

// public reads the public key of a private one, from where tokens keep it: the
// private key itself, the public key of the same id or label, or a certificate.
// The trial signature shows later that they belong together.
func (m *module) public(session pkcs11.SessionHandle, private pkcs11.ObjectHandle) (crypto.PublicKey, error) {
	if public := m.publicOf(session, private, pkcs11.CKO_PRIVATE_KEY); public != nil {
		return public, nil
	}
	for _, name := range []uint{pkcs11.CKA_ID, pkcs11.CKA_LABEL} {
		value := m.attribute(session, private, name)
		if value == nil {
			continue
		}
		for _, class := range []uint{pkcs11.CKO_PUBLIC_KEY, pkcs11.CKO_CERTIFICATE} {
			object, err := m.one(session, []*pkcs11.Attribute{
				pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), pkcs11.NewAttribute(name, value),
			})
			if err != nil {
				continue
			}
			if public := m.publicOf(session, object, class); public != nil {
				return public, nil
			}
		}
	}
	return nil, errors.New("has no public key that can be read: store its public key or certificate beside it, under the same id")
}

// publicOf reads the public key that an object of a class holds, nil for none.
func (m *module) publicOf(session pkcs11.SessionHandle, object pkcs11.ObjectHandle, class uint) crypto.PublicKey {
	if class == pkcs11.CKO_CERTIFICATE { // only there is CKA_VALUE public
		if c, err := x509.ParseCertificate(m.attribute(session, object, pkcs11.CKA_VALUE)); err == nil {
			return c.PublicKey
		}
		return nil
	}
	if der := m.attribute(session, object, pkcs11.CKA_PUBLIC_KEY_INFO); der != nil {
		if public, err := x509.ParsePKIXPublicKey(der); err == nil {
			return public
		}
	}
	if n, e := m.attribute(session, object, pkcs11.CKA_MODULUS), m.attribute(session, object, pkcs11.CKA_PUBLIC_EXPONENT); n != nil && e != nil {
		exponent := new(big.Int).SetBytes(e)
		if !exponent.IsInt64() || exponent.Int64() > 1<<31-1 {
			return nil
		}
		return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(exponent.Int64())}
	}
	if public := parsePoint(m.attribute(session, object, pkcs11.CKA_EC_PARAMS), m.attribute(session, object, pkcs11.CKA_EC_POINT)); public != nil {
		return public
	}
	return nil
}

// parsePoint reads CKA_EC_PARAMS and CKA_EC_POINT (PKCS #11 v2.40 §2.3.3):
// a point is an OCTET STRING of the uncompressed form, or that form bare, as
// some tokens give it.
func parsePoint(parameters, point []byte) *ecdsa.PublicKey {
	var oid asn1.ObjectIdentifier
	if rest, err := asn1.Unmarshal(parameters, &oid); err != nil || len(rest) > 0 {
		return nil
	}
	var inner []byte
	if rest, err := asn1.Unmarshal(point, &inner); err == nil && len(rest) == 0 {
		point = inner
	}
	curve, ok := pubkey.NamedCurve(oid)
	if !ok {
		return nil
	}
	public, err := ecdsa.ParseUncompressedPublicKey(curve.Curve, point)
	if err != nil {
		return nil
	}
	return public
}
