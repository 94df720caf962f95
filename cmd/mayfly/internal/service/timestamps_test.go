package service

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mayfly-ca/mayfly/ca/ceremony"
	"github.com/mayfly-ca/mayfly/ca/timestamp"
	"github.com/mayfly-ca/mayfly/ca/trustroot"
	"github.com/mayfly-ca/mayfly/config"
	"github.com/mayfly-ca/mayfly/internal/catest"
	"github.com/mayfly-ca/mayfly/internal/setting"
)

// stamps names the timestamp authority in a folder, as `mayfly init` does.
func stamps(c *config.Config, folder string) {
	c.Timestamp.Chain = setting.Path(filepath.Join(folder, "timestamp.pem"))
	c.Timestamp.Key = setting.KeyRef("file:" + filepath.Join(folder, "timestamp.key.pem"))
}

// stamp asks for a timestamp, and gives the status of HTTP and the PKIStatus.
func (r *rig) stamp(t *testing.T) (code, pkiStatus int) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+timestamp.Path, bytes.NewReader(catest.TimestampQuery("a signature")))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/timestamp-query")
	response, err := r.http.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var reply struct {
		Status struct {
			Status int
			Text   []string       `asn1:"optional"`
			Fail   asn1.BitString `asn1:"optional"`
		}
		Token asn1.RawValue `asn1:"optional"`
	}
	if response.Header.Get("Content-Type") != "application/timestamp-reply" {
		return response.StatusCode, -1
	}
	if _, err := asn1.Unmarshal(body, &reply); err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, reply.Status.Status
}

// stamping are the timestamp authorities that the
// trusted root in force has, and whether signing clients are sent to ours.
func (r *rig) stamping(t *testing.T) (authorities []trustroot.Authority, sent bool) {
	t.Helper()
	_, root, err := get(t.Context(), r.url+"/trusted_root.json")
	if err != nil {
		t.Fatal(err)
	}
	h, err := trustroot.Parse(root)
	if err != nil {
		t.Fatal(err)
	}
	_, signing, err := get(t.Context(), r.url+"/signing_config.json")
	if err != nil {
		t.Fatal(err)
	}
	return h.TimestampAuthorities, strings.Contains(string(signing), `"url":"http://127.0.0.1:5555/api/v1/timestamp"`)
}

func leafOf(t *testing.T, file setting.Path) *x509.Certificate {
	t.Helper()
	b, err := os.ReadFile(string(file))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestTimestampAuthoritiesFollow: a timestamp authority is listed before it stamps and
// after it did, and nothing else is taken while the service runs; then off, and on again.
func TestTimestampAuthoritiesFollow(t *testing.T) {
	t.Parallel()
	var first, second timestamp.Config
	r := newReloading(t, func(r *rig, c *config.Config) {
		stamps(c, filepath.Join(r.dir, authorityName))
		first = c.Timestamp
	})
	next := filepath.Join(t.TempDir(), "next")
	if _, err := ceremony.CreateFiles(ceremony.CreateOptions{Dir: next, Organization: "Example", Now: time.Now()}); err != nil {
		t.Fatal(err)
	}
	var other config.Config
	other.Timestamp = first
	stamps(&other, next)
	second = other.Timestamp
	old, fresh := trustroot.TimestampAuthorityConfig{Chain: first.Chain}, trustroot.TimestampAuthorityConfig{Chain: second.Chain}

	expect := func(step string, want ...setting.Path) {
		t.Helper()
		all, sent := r.stamping(t)
		if len(all) != len(want) {
			t.Fatalf("%s: %d timestamp authorities are listed, want %d", step, len(all), len(want))
		}
		for _, file := range want {
			found := false
			for _, a := range all {
				found = found || a.Chain[0].Equal(leafOf(t, file))
			}
			if !found {
				t.Errorf("%s: %s isn't listed", step, file)
			}
		}
		code, status := r.stamp(t)
		_, page := r.readiness(t)
		if on := r.state().timestamps != nil; on != (code == http.StatusOK && status == 0) || on != sent || on == strings.Contains(page, "none are given here") {
			t.Errorf("%s: on is %v, the answer %d with status %d, clients are sent here: %v, readiness:\n%s", step, on, code, status, sent, page)
		}
	}
	expect("at the start", first.Chain)
	applied, refused := 0.0, 0.0
	step := func(what string, edit func(*config.Config), fault string, want ...setting.Path) {
		t.Helper()
		r.offer(edit)
		r.hup()
		if fault == "" {
			applied++
		} else {
			refused++
			if !strings.Contains(r.lines.String(), fault) {
				t.Errorf("%s: the log lacks %q", what, fault)
			}
		}
		r.expect(t, what, applied, refused)
		expect(what, want...)
	}
	beside := func(c *config.Config, all ...trustroot.TimestampAuthorityConfig) { c.Trust.TimestampAuthorities = all }
	step("at once", func(c *config.Config) { c.Timestamp = second }, "clients don't know", first.Chain)
	step("listed", func(c *config.Config) { beside(c, fresh) }, "", first.Chain, second.Chain)
	step("forgetting the first", func(c *config.Config) { c.Timestamp = second; beside(c, fresh) }, "would verify nowhere any more", first.Chain, second.Chain)
	step("with a key that isn't its own", func(c *config.Config) { c.Timestamp.Chain = second.Chain; beside(c, old, fresh) },
		"timestamp.key: isn't the key of the first certificate", first.Chain, second.Chain)
	step("in its turn", func(c *config.Config) { c.Timestamp = second; beside(c, old, fresh) }, "", first.Chain, second.Chain)
	step("off", func(c *config.Config) { c.Timestamp = timestamp.DefaultConfig(); beside(c, old, fresh) }, "", first.Chain, second.Chain)
	if code, _ := r.stamp(t); code != http.StatusNotFound {
		t.Errorf("off: %d", code)
	}
	step("on again", func(c *config.Config) { c.Timestamp = first; beside(c, fresh) }, "", first.Chain, second.Chain)
	step("other time sources", func(c *config.Config) { c.Timestamp.TimeSources = []string{"192.0.2.1"}; beside(c, fresh) },
		"timestamp.time_sources: can't change while the service runs", first.Chain, second.Chain)
	if end := r.sum(t, "mayfly_timestamp_authority_expiry_timestamp_seconds", nil); end != float64(leafOf(t, first.Chain).NotAfter.Unix()) {
		t.Errorf("the metric says that it ends at %v", end)
	}
	if n := r.sum(t, "mayfly_timestamps_total", map[string]string{"status": "granted"}); n != 8 {
		t.Errorf("%v timestamps are counted", n)
	}
}

// TestCheckTimestamps: check finds what a start would, lists the authority in the
// documents, and remarks on one that ends soon.
func TestCheckTimestamps(t *testing.T) {
	t.Parallel()
	r := &rig{dir: filepath.Join(t.TempDir(), "ca")}
	r.issuer = startIssuer(t)
	c := r.configuration(t)
	stamps(c, filepath.Join(r.dir, authorityName))
	check := func(at time.Time) (*Components, error) {
		return Check(t.Context(), c, Dependencies{Now: func() time.Time { return at }, Logger: (&rig{lines: &catest.Lines{}}).logger()})
	}
	found, err := check(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if n := len(found.History.TimestampAuthorities); n != 1 {
		t.Errorf("%d timestamp authorities are listed", n)
	}
	if all := strings.Join(found.Remarks, "\n"); strings.Contains(all, "timestamp.chain") {
		t.Errorf("remarks: %s", all)
	}
	c.Timestamp.Chain = "missing.pem"
	if _, err := check(time.Now()); err == nil || !strings.Contains(err.Error(), "timestamp.chain: open missing.pem") {
		t.Errorf("the error is %v", err)
	}
}
