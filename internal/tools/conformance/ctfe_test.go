package conformance

import (
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/certificate-transparency-go/client"
	"github.com/google/certificate-transparency-go/jsonclient"
	"github.com/sigstore/sigstore-go/pkg/verify"
)

// TestCTFE has a whole Mayfly issue through a log of certificate-transparency-go
// on a Trillian with a real database; foreign clients sign with it and verify.
// internal/tools/conformance/logs.sh runs it, beside a Trillian.
func TestCTFE(t *testing.T) {
	program := setting(t, "CTFE")
	issuer, port, log := startDev(t), freePort(t), t.TempDir()
	m := startServe(t, issuer.asIssuer(), func(t *testing.T, dir, config string) string {
		address := "127.0.0.1:" + port
		p := start(t, program, log, filepath.Join(dir, "authority", "root.pem"), address)
		p.until(t, "it has a tree head", func() bool { return answers(t, "http://"+address+"/log/ct/v1/get-sth") })
		before, rest, _ := strings.Cut(config, "\nctlog:\n")
		_, after, found := strings.Cut(rest, "\naudit:\n")
		if !found {
			t.Fatalf("the configuration has another form: %s", config)
		}
		return before + "\nctlog:\n  mode: external\n  logs:\n    - url: http://" + address + "/log\n      key_file: " +
			filepath.Join(log, "log.pub.pem") + "\naudit:\n" + after
	})
	m.Issuer, m.CTLog = issuer.Issuer, "http://127.0.0.1:"+port+"/log"
	m.signingConfig = m.download(t, t.TempDir(), "/signing_config.json")

	t.Run("cosign-v3-through-ctfe", func(t *testing.T) { testCosign3(t, m, nil) })
	t.Run("sigstore-go-through-ctfe", func(t *testing.T) { signAndVerify(t, m, m.trustedRoot, nil, verify.WithCurrentTime()) })
	t.Run("ct-go-reads-ctfe", func(t *testing.T) {
		reader, err := client.New(m.CTLog, http.DefaultClient, jsonclient.Options{PublicKeyDER: m.logKey(t)})
		if err != nil {
			t.Fatal(err)
		}
		headWith(t, reader, 1) // cosign's and sigstore-go's
		readAll(t, m, 1)
	})
}

var (
	shellBlock = regexp.MustCompile("(?s)```sh\n(.*?)```")
	longFlag   = regexp.MustCompile(` --([a-z_]+)`)
	configKey  = regexp.MustCompile(`(?m)^ +([a-z_]+): `)
)

// TestCTFEFlags compares what docs/ctlog.md tells to run and to configure with the
// programs themselves and with the configuration that runs here.
func TestCTFEFlags(t *testing.T) {
	t.Run("ctfe-documented-flags", func(t *testing.T) {
		content, err := os.ReadFile("../../../docs/ctlog.md")
		if err != nil {
			t.Fatal(err)
		}
		_, section, found := strings.Cut(string(content), "\n### CTFE\n")
		if !found {
			t.Fatal("docs/ctlog.md has no section on CTFE")
		}
		programs := map[string]string{
			"ct_server": "v1.4.0", "createtree": "v1.7.2", "trillian_log_server": "v1.7.2", "trillian_log_signer": "v1.7.2",
		}
		flags := 0
		for line := range strings.Lines(shellBlock.FindStringSubmatch(section)[1]) {
			name, _, _ := strings.Cut(line, " ")
			version, ours := programs[name]
			if !ours {
				continue
			}
			delete(programs, name)
			help, _ := attempt(t, nil, filepath.Join(setting(t, "CONFORMANCE_BIN"), name+"-"+version), "-help")
			for _, flag := range longFlag.FindAllStringSubmatch(line, -1) {
				if flags++; !regexp.MustCompile(`(?m)^ +-` + flag[1] + `\b`).MatchString(help) {
					t.Errorf("%s %s has no flag --%s", name, version, flag[1])
				}
			}
		}
		if len(programs) > 0 || flags < 10 {
			t.Errorf("%d flags were looked at; not documented: %v", flags, programs)
		}
		runs, err := os.ReadFile("ctfe.sh")
		if err != nil {
			t.Fatal(err)
		}
		_, config, _ := strings.Cut(section, "\nconfig {\n")
		config, _, _ = strings.Cut(config, "```")
		for _, key := range configKey.FindAllStringSubmatch(config, -1) {
			if !strings.Contains(string(runs), " "+key[1]+": ") {
				t.Errorf("%s is documented, and not what runs here", key[1])
			}
		}
	})
}
