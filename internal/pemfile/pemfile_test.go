package pemfile_test

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/mayfly-ca/mayfly/internal/pemfile"
)

// workshop is a folder in which the openssl that is installed makes files.
type workshop struct {
	*testing.T
	dir string
}

func newWorkshop(t *testing.T) workshop {
	w := workshop{t, t.TempDir()}
	w.sh(`openssl req -x509 -newkey rsa:2048 -noenc -keyout rsa.key -out root.pem -days 2 -subj /O=Example/CN=root 2>/dev/null
		openssl ecparam -name prime256v1 -genkey -noout -out sec1.key
		openssl pkcs8 -topk8 -nocrypt -in sec1.key -out ec.key
		openssl req -new -key ec.key -subj /O=Example/CN=issuing -out csr.pem
		openssl x509 -req -in csr.pem -CA root.pem -CAkey rsa.key -set_serial 2 -days 1 -out issuing.pem 2>/dev/null
		cat issuing.pem root.pem > chain.pem`)
	return w
}

// sh runs a shell in the folder.
func (w workshop) sh(script string) {
	w.Helper()
	cmd := exec.Command("sh", "-ec", script) // #nosec G204 -- a test's own script
	cmd.Dir = w.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		w.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// made is what a shell command writes to its standard output.
func (w workshop) made(script string) []byte {
	w.Helper()
	w.sh("{ " + script + "; } > made")
	return w.file("made")
}

func (w workshop) file(name string) []byte {
	w.Helper()
	b, err := os.ReadFile(filepath.Join(w.dir, name))
	if err != nil {
		w.Fatal(err)
	}
	return b
}

// utf16Of is a text as Windows PowerShell redirects it.
func utf16Of(b []byte, mark, bigEndian bool) []byte {
	var out []byte
	units := utf16.Encode([]rune(string(b)))
	if mark {
		units = append([]uint16{0xfeff}, units...)
	}
	for _, u := range units {
		if bigEndian {
			out = append(out, byte(u>>8), byte(u))
		} else {
			out = append(out, byte(u), byte(u>>8))
		}
	}
	return out
}

// TestCertificatesOfOtherTools: one chain of two in every form that tools write.
func TestCertificatesOfOtherTools(t *testing.T) {
	t.Parallel()
	w := newWorkshop(t)
	chain := w.file("chain.pem")
	var want []*x509.Certificate
	for rest := chain; len(bytes.TrimSpace(rest)) > 0; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, c)
	}
	lines := func(end string) []byte { return bytes.ReplaceAll(chain, []byte("\n"), []byte(end)) }
	for name, b := range map[string][]byte{
		"PEM":                           chain,
		"text before each block":        w.made("openssl x509 -text -in issuing.pem; openssl x509 -text -in root.pem"),
		"names before each block":       w.made("openssl crl2pkcs7 -nocrl -certfile chain.pem | openssl pkcs7 -print_certs"),
		"bag attributes":                w.made("openssl pkcs12 -export -inkey ec.key -in issuing.pem -certfile root.pem -passout pass:x -out f.p12; openssl pkcs12 -in f.p12 -passin pass:x -nokeys"),
		"a byte order mark":             append([]byte("\xef\xbb\xbf"), chain...),
		"UTF-16 with a mark":            utf16Of(chain, true, false),
		"UTF-16, big endian":            utf16Of(chain, true, true),
		"UTF-16 without a mark":         utf16Of(chain, false, false),
		"CRLF":                          lines("\r\n"),
		"CR":                            lines("\r"),
		"blanks after lines":            lines(" \t\n"),
		"indented, as in YAML":          append([]byte("  "), lines("\n  ")...),
		"no final new line":             bytes.TrimSpace(chain),
		"joined without a new line":     bytes.ReplaceAll(chain, []byte("-----\n-----"), []byte("----------")),
		"duplicates":                    append(bytes.Clone(chain), chain...),
		"DER, one after the other":      w.made("openssl x509 -in issuing.pem -outform DER; openssl x509 -in root.pem -outform DER"),
		"PKCS #7 in DER":                w.made("openssl crl2pkcs7 -nocrl -certfile chain.pem -outform DER"),
		"PKCS #7 in PEM":                w.made("openssl crl2pkcs7 -nocrl -certfile chain.pem"),
		"PKCS #7 called a certificate":  w.made("openssl crl2pkcs7 -nocrl -certfile chain.pem | sed s/PKCS7/CERTIFICATE/"),
		"PKCS #7 in another order":      w.made("cat root.pem issuing.pem > turned.pem; openssl crl2pkcs7 -nocrl -certfile turned.pem"),
		"the old name of certificates":  bytes.ReplaceAll(chain, []byte("CERTIFICATE-"), []byte("X509 CERTIFICATE-")),
		"with attributes of Windows":    bytes.ReplaceAll(chain, []byte("-----BEGIN"), []byte("friendlyName: ünïcode\r\n-----BEGIN")),
		"a comment with a beginning in": append([]byte("# keep -----this\n"), chain...),
	} {
		got, err := pemfile.Certificates(b)
		if err != nil || len(got) != 2 || !got[0].Equal(want[0]) || !got[1].Equal(want[1]) {
			t.Errorf("%s: %d certificates, %v", name, len(got), err)
		}
		pool, err := pemfile.Pool(b)
		if err != nil {
			t.Errorf("a pool of %s: %v", name, err)
			continue
		}
		whole := x509.NewCertPool()
		for _, c := range want {
			whole.AddCert(c)
		}
		if !pool.Equal(whole) {
			t.Errorf("%s: the pool lacks a certificate", name)
		}
	}
	among := w.made("cat ec.key chain.pem")
	if got, err := pemfile.CertificatesAmong(among); err != nil || len(got) != 2 {
		t.Errorf("beside their key: %d, %v", len(got), err)
	}
}

// TestCertificatesThatAreRefused: what can't be read is named, and nothing is
// passed over without a word.
func TestCertificatesThatAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorkshop(t)
	chain := w.file("chain.pem")
	w.sh(`openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:secp256k1 -noenc -keyout k1.key -out k1.pem -subj /CN=k1 2>/dev/null
		openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -pkeyopt ec_param_enc:explicit -noenc -keyout explicit.key -out explicit.pem -subj /CN=explicit 2>/dev/null`)
	for name, tt := range map[string]struct {
		b    []byte
		want string
	}{
		"nothing":                    {nil, "is empty: a certificate"},
		"blank lines":                {[]byte("\n\r\n"), "is empty: a certificate"},
		"a web page":                 {[]byte("<html>404</html>"), "holds no PEM block"},
		"a key beside":               {w.made("cat chain.pem ec.key"), "holds a private key: keep keys in a file of their own"},
		"a key":                      {w.file("ec.key"), "holds a private key"},
		"a request":                  {w.file("csr.pem"), `holds a "CERTIFICATE REQUEST": only certificates belong here`},
		"OpenSSL's own":              {w.made("openssl x509 -in root.pem -trustout"), "openssl x509 -in FILE -out NEW.pem"},
		"a damaged first block":      {bytes.Replace(chain, []byte("\n"), []byte("\n!"), 1), "isn't whole PEM at block 1"},
		"a damaged second block":     {append(bytes.Clone(chain), "-----BEGIN CERTIFICATE-----\nMIIB\n"...), "isn't whole PEM at block 3"},
		"no beginning":               {append(bytes.Clone(chain), "MIIB\n-----END CERTIFICATE-----\n"...), "end of a PEM block without its beginning after block 2"},
		"no beginning, first":        {append([]byte("MIIB\n-----END CERTIFICATE-----\n"), chain...), "end of a PEM block without its beginning after block 0"},
		"new lines of a variable":    {bytes.ReplaceAll(chain, []byte("\n"), []byte(`\n`)), "printf '%b'"},
		"base64 without its lines":   {w.made("openssl x509 -in root.pem -outform DER | base64"), "base64 -d FILE > NEW.der"},
		"DER of a key":               {w.made("openssl pkey -in ec.key -outform DER"), "is DER, and not of a certificate"},
		"PKCS #12":                   {w.made("openssl pkcs12 -export -inkey ec.key -in issuing.pem -passout pass:x"), "openssl pkcs12 -in FILE -nokeys"},
		"a Java keystore":            {[]byte("\xfe\xed\xfe\xed\x00\x00\x00\x02"), "keytool -importkeystore"},
		"PKCS #7 of no length":       {[]byte{0x30, 0x80, 0x06, 0x09, 0x2a}, "openssl pkcs7 -in FILE -print_certs"},
		"an unknown curve":           {w.file("k1.pem"), "certificate 1 holds a key on the curve secp256k1, which isn't supported: use ECDSA P-256"},
		"an unknown curve, second":   {w.made("cat root.pem k1.pem"), "certificate 2 holds a key on the curve secp256k1"},
		"parameters of a curve":      {w.file("explicit.pem"), "certificate 1 spells out the parameters of the curve P-256"},
		"an unknown curve in DER":    {w.made("openssl x509 -in k1.pem -outform DER"), "the curve secp256k1"},
		"a certificate that is none": {[]byte("-----BEGIN CERTIFICATE-----\nMAAA\n-----END CERTIFICATE-----\n"), "certificate 1 can't be read"},
	} {
		_, err := pemfile.Certificates(tt.b)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", name, err, tt.want)
		}
		if _, err := pemfile.Pool(tt.b); err == nil && name != "an unknown curve, second" {
			t.Errorf("a pool of %s", name)
		}
	}
}

// TestPrivateKeysOfOtherTools: keys in every form that tools write.
func TestPrivateKeysOfOtherTools(t *testing.T) {
	t.Parallel()
	w := newWorkshop(t)
	w.sh(`openssl rsa -in rsa.key -traditional -out pkcs1.key 2>/dev/null
		openssl genpkey -algorithm ed25519 -out ed.key`)
	encrypted := func(how string) []byte {
		return w.made("openssl pkcs8 -topk8 -in ec.key -passout pass:horse " + how)
	}
	for name, tt := range map[string]struct {
		b      []byte
		secret string
		same   string // the key that it is
	}{
		"PKCS #8":                {w.file("ec.key"), "", "ec.key"},
		"SEC 1":                  {w.file("sec1.key"), "", "ec.key"},
		"SEC 1 after parameters": {w.made("openssl ecparam -name prime256v1; cat sec1.key"), "", "ec.key"},
		"PKCS #1":                {w.file("pkcs1.key"), "", "rsa.key"},
		"Ed25519":                {w.file("ed.key"), "", "ed.key"},
		"PKCS #8 in DER":         {w.made("openssl pkcs8 -topk8 -nocrypt -in ec.key -outform DER"), "", "ec.key"},
		"SEC 1 in DER":           {w.made("openssl ec -in ec.key -outform DER 2>/dev/null"), "", "ec.key"},
		"PKCS #1 in DER":         {w.made("openssl rsa -in rsa.key -traditional -outform DER 2>/dev/null"), "", "rsa.key"},
		"beside its certificate": {w.made("cat chain.pem ec.key"), "", "ec.key"},
		"twice":                  {w.made("cat ec.key ec.key"), "", "ec.key"},
		"text around it":         {w.made("openssl pkey -in ec.key -text; echo the end"), "", "ec.key"},
		"bag attributes":         {w.made("openssl pkcs12 -export -inkey ec.key -in issuing.pem -passout pass:x -out f.p12; openssl pkcs12 -in f.p12 -passin pass:x -noenc"), "", "ec.key"},
		"UTF-16":                 {utf16Of(w.file("ec.key"), true, false), "", "ec.key"},
		"AES-256, PBKDF2":        {encrypted("-v2 aes-256-cbc"), "horse", "ec.key"},
		"AES-128, SHA-1":         {encrypted("-v2 aes-128-cbc -v2prf hmacWithSHA1"), "horse", "ec.key"},
		"3DES":                   {encrypted("-v2 des3"), "horse", "ec.key"},
		"scrypt":                 {encrypted("-scrypt -scrypt_N 1024"), "horse", "ec.key"},
		"encrypted in DER":       {encrypted("-v2 aes-256-cbc -outform DER"), "horse", "ec.key"},
	} {
		var passphrase []byte
		if tt.secret != "" {
			passphrase = []byte(tt.secret)
		}
		got, err := pemfile.PrivateKey(tt.b, passphrase)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		spki, _, err := pemfile.PublicKey(w.made("openssl pkey -pubout -in " + tt.same))
		if err != nil {
			t.Fatal(err)
		}
		if own, err := x509.MarshalPKIXPublicKey(got.Public()); err != nil || !bytes.Equal(own, spki) {
			t.Errorf("%s: another key, %v", name, err)
		}
	}
}

func TestPrivateKeysThatAreRefused(t *testing.T) {
	t.Parallel()
	w := newWorkshop(t)
	w.sh(`ssh-keygen -q -t ecdsa -N "" -f ssh.key 2>/dev/null || printf -- '-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n' > ssh.key
		openssl genpkey -algorithm ed448 -out ed448.key
		openssl genpkey -algorithm RSA-PSS -pkeyopt rsa_keygen_bits:2048 -out pss.key 2>/dev/null`)
	curve := func(name, how string) []byte {
		return w.made("openssl ecparam -name " + name + " -genkey -noout " + how)
	}
	encrypted := w.made("openssl pkcs8 -topk8 -in ec.key -passout pass:horse -v2 aes-256-cbc")
	block, _ := pem.Decode(encrypted)
	for name, tt := range map[string]struct {
		b      []byte
		secret string
		want   string
	}{
		"nothing":                    {nil, "", "is empty: a private key"},
		"a certificate":              {w.file("root.pem"), "", `holds a "CERTIFICATE": a private key`},
		"parameters alone":           {w.made("openssl ecparam -name prime256v1"), "", "holds EC parameters and no key"},
		"two keys":                   {w.made("cat ec.key rsa.key"), "", "holds more than one private key: keep one"},
		"no passphrase":              {encrypted, "", "is encrypted: set the passphrase"},
		"another passphrase":         {encrypted, "cow", "can't be decrypted: check the passphrase"},
		"a needless passphrase":      {w.file("ec.key"), "horse", "isn't encrypted, but a passphrase is set"},
		"the old encryption":         {w.made("openssl ec -in ec.key -aes256 -passout pass:horse 2>/dev/null"), "horse", "old encryption of PEM: `openssl pkcs8 -topk8"},
		"an unknown scheme":          {w.made("openssl pkcs8 -topk8 -in ec.key -passout pass:horse -v1 PBE-SHA1-3DES"), "horse", "is encrypted with the scheme 1.2.840.113549.1.12.1.3, which isn't supported: `openssl pkcs8 -topk8 -v2 aes-256-cbc"},
		"an unknown cipher":          {w.made("openssl pkcs8 -topk8 -in ec.key -passout pass:horse -v2 camellia256"), "horse", "is encrypted with the cipher 1.2.392."},
		"OpenSSH":                    {w.file("ssh.key"), "", "ssh-keygen -p -m PKCS8 -f FILE"},
		"PKCS #12":                   {w.made("openssl pkcs12 -export -inkey ec.key -in issuing.pem -passout pass:x"), "", "openssl pkcs12 -in FILE -nocerts"},
		"secp256k1 in SEC 1":         {curve("secp256k1", ""), "", "holds a key on the curve secp256k1, which isn't supported: use ECDSA P-256"},
		"secp256k1 in PKCS #8":       {curve("secp256k1", "| openssl pkcs8 -topk8 -nocrypt"), "", "the curve secp256k1"},
		"brainpool":                  {curve("brainpoolP256r1", ""), "", "the curve brainpoolP256r1"},
		"an unnamed unknown curve":   {curve("sect233k1", ""), "", "the curve 1.3.132.0.26"},
		"parameters of a curve":      {curve("secp384r1", "-param_enc explicit"), "", "spells out the parameters of the curve P-384, where RFC 5480 §2.1.1 wants its name: `openssl pkey -in FILE -ec_param_enc named_curve"},
		"parameters in PKCS #8":      {curve("prime256v1", "-param_enc explicit | openssl pkcs8 -topk8 -nocrypt"), "", "the parameters of the curve P-256"},
		"parameters of another":      {curve("secp256k1", "-param_enc explicit"), "", "parameters of a curve that isn't supported"},
		"Ed448":                      {w.file("ed448.key"), "", "holds a key of the algorithm Ed448, which isn't supported"},
		"RSA for PSS alone":          {w.file("pss.key"), "", "holds a key of the algorithm RSASSA-PSS"},
		"damaged":                    {[]byte("-----BEGIN PRIVATE KEY-----\nenp6eg==\n-----END PRIVATE KEY-----\n"), "", "is damaged"},
		"damaged encryption":         {[]byte("-----BEGIN ENCRYPTED PRIVATE KEY-----\nenp6eg==\n-----END ENCRYPTED PRIVATE KEY-----\n"), "horse", "is damaged"},
		"an encrypted key cut short": {shortened(t, block.Bytes), "horse", "is damaged"},
	} {
		var passphrase []byte
		if tt.secret != "" {
			passphrase = []byte(tt.secret)
		}
		if _, err := pemfile.PrivateKey(tt.b, passphrase); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", name, err, tt.want)
		}
	}
	// What the messages say to run mends the file.
	w.sh(`openssl ecparam -name prime256v1 -genkey -noout -param_enc explicit -out explicit.key
		openssl pkey -in explicit.key -ec_param_enc named_curve -out mended.key`)
	if _, err := pemfile.PrivateKey(w.file("mended.key"), nil); err != nil {
		t.Errorf("mended parameters: %v", err)
	}
}

// shortened is an encrypted key whose last field lacks an octet, in DER that is whole.
func shortened(t *testing.T, der []byte) []byte {
	t.Helper()
	out := bytes.Clone(der[:len(der)-1])
	at := bytes.LastIndex(out[:len(out)-100], []byte{0x04, 0x81}) // the OCTET STRING of what is encrypted
	if at < 0 || out[0] != 0x30 || out[1] != 0x81 {
		t.Fatalf("it looks otherwise: %s", base64.StdEncoding.EncodeToString(der))
	}
	out[2]--
	out[at+2]--
	return out
}

func TestPublicKeysAndRequests(t *testing.T) {
	t.Parallel()
	w := newWorkshop(t)
	public := w.made("openssl pkey -in ec.key -pubout")
	want, _, err := pemfile.PublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"DER": w.made("openssl pkey -in ec.key -pubout -outform DER"), "text around": w.made("echo before; openssl pkey -in ec.key -pubout; echo after"),
		"CRLF with a mark": append([]byte("\xef\xbb\xbf"), bytes.ReplaceAll(public, []byte("\n"), []byte("\r\n"))...), "twice": append(bytes.Clone(public), public...),
	} {
		if got, _, err := pemfile.PublicKey(b); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, tt := range map[string]struct {
		b    []byte
		want string
	}{
		"a private key":         {w.file("ec.key"), "holds a private key"},
		"a certificate":         {w.file("root.pem"), "openssl x509 -in FILE -noout -pubkey"},
		"PKCS #1":               {w.made("openssl rsa -in rsa.key -RSAPublicKey_out 2>/dev/null"), "openssl rsa -RSAPublicKey_in"},
		"two":                   {append(bytes.Clone(public), w.made("openssl pkey -in rsa.key -pubout")...), "more than one PEM block"},
		"OpenSSH":               {[]byte("ecdsa-sha2-nistp256 AAAA me@here\n"), "ssh-keygen -e -m PKCS8"},
		"an unknown curve":      {w.made("openssl ecparam -name secp256k1 -genkey -noout | openssl pkey -pubout"), "the curve secp256k1"},
		"parameters of a curve": {w.made("openssl ecparam -name prime256v1 -genkey -noout -param_enc explicit | openssl pkey -pubout"), "openssl pkey -pubin -in FILE -ec_param_enc named_curve"},
	} {
		if _, _, err := pemfile.PublicKey(tt.b); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v; want %q", name, err, tt.want)
		}
	}
	csr := w.file("csr.pem")
	whole, _ := pem.Decode(csr)
	for name, b := range map[string][]byte{
		"PEM": csr, "DER": whole.Bytes, "text before": w.made("openssl req -in csr.pem -text"),
		"the old name": bytes.ReplaceAll(csr, []byte("CERTIFICATE REQUEST"), []byte("NEW CERTIFICATE REQUEST")), "UTF-16": utf16Of(csr, true, false),
	} {
		if got, err := pemfile.Request(b); err != nil || !bytes.Equal(got, whole.Bytes) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !pemfile.IsRequest(utf16Of(csr, true, false)) || pemfile.IsRequest(public) {
		t.Error("IsRequest")
	}
}
