package deploy

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const (
	rulesFile     = "../../../deploy/prometheus/mayfly.rules.yaml"
	dashboardFile = "../../../deploy/grafana/mayfly.dashboard.json"
	metricsPage   = "../../../docs/metrics.md"
	watchingPage  = "../../../docs/watching.md"
)

// alertCase is an alert's two days: series (promtool's notation, a sample each minute) with
// which it fires after two hours, with labels beside severity, and with which it doesn't.
type alertCase struct {
	fires, silent []string
	labels        string
}

const (
	day = 86400
	m   = `{job="mayfly",instance="a"` // begins every series
)

// gauge is a case of a gauge that has one value all the time.
func gauge(name, labels string, fires, silent any) alertCase {
	return alertCase{
		[]string{fmt.Sprintf("%s%s%s} %vx180", name, m, labels, fires)},
		[]string{fmt.Sprintf("%s%s%s} %vx180", name, m, labels, silent)}, labels,
	}
}

// counter is a case of a counter that grows by one a minute, or not at all.
func counter(name, labels string) alertCase {
	return alertCase{
		[]string{fmt.Sprintf("%s%s%s} 0+1x180", name, m, labels)},
		[]string{fmt.Sprintf("%s%s%s} 7x180", name, m, labels)}, labels,
	}
}

// of is a counter case beside another counter that always grows by ten.
func (c alertCase) of(name, labels, kept string) alertCase {
	beside := fmt.Sprintf("%s%s%s} 0+10x180", name, m, labels)
	return alertCase{append(c.fires, beside), append(c.silent, beside), kept}
}

func alertCases() map[string]alertCase {
	const log = `,log="https://ca.example.com/ctlog/2026"`
	const target = `,target="owners"`
	issuer, role := `,issuer="https://idp.example.com"`, func(r string) string { return `,role="` + r + `"` }
	active := "mayfly_ca_authority_active" + m + `,authority="2026"} 1x180`
	ends := gauge("mayfly_ca_authority_expiry_timestamp_seconds", `,authority="2026"`, 80*day, 100*day)
	ends.fires, ends.silent = append(ends.fires, active), append(ends.silent, active,
		"mayfly_ca_authority_expiry_timestamp_seconds"+m+`,authority="retired"} 100x180`, "mayfly_ca_authority_active"+m+`,authority="retired"} 0x180`)
	renewal := counter("mayfly_ca_ephemeral_renewals_total", `,outcome="failed"`)
	renewal.fires = append(renewal.fires, "mayfly_ca_ephemeral_issues_until_timestamp_seconds"+m+"} 9000x180")
	renewal.silent = append(renewal.fires[:1:1], "mayfly_ca_ephemeral_issues_until_timestamp_seconds"+m+"} 90000x180")
	behind := gauge("mayfly_follow_entries", log, 90, 100)
	growing := "mayfly_follow_log_entries" + m + log + "} 100x180"
	behind.fires, behind.silent = append(behind.fires, growing), append(behind.silent, growing)
	slow := alertCase{labels: "-instance", fires: buckets(0), silent: buckets(10)}
	return map[string]alertCase{
		"MayflyDown": gauge("up", "", 0, 1), "MayflyNotReady": gauge("mayfly_dependency_working", `,dependency="log"`, 0, 1),
		"MayflyIssuerNotReady": gauge("mayfly_identity_issuer_ready", issuer, 0, 1),
		"MayflyErrors": counter("mayfly_requests_total", `,code="500",reason="INTERNAL"`).
			of("mayfly_requests_total", `,code="200",reason="OK"`, "-instance"),
		"MayflySlow": slow, "MayflyOverloaded": relabel(counter("mayfly_requests_evicted_total", ""), "-job"),
		"MayflyKMSFails": counter("mayfly_kms_calls_total", `,backend="aws",outcome="throttled"`).
			of("mayfly_kms_calls_total", `,backend="aws",outcome="ok"`, `-instance,backend="aws"`),
		"MayflyExternalLogDown": gauge("mayfly_ctlog_breaker_open", log, 1, 0), "MayflyRootsRefused": gauge("mayfly_ctlog_roots_refused", log, 1, 0),
		"MayflyAuthorityEnds": ends, "MayflyEphemeralRenewalFails": renewal,
		"MayflyPrecertificateSignerEnds": gauge("mayfly_ca_precertificate_signer_expiry_timestamp_seconds", "", 12*3600, 0),
		"MayflyTimestampAuthorityEnds":   gauge("mayfly_timestamp_authority_expiry_timestamp_seconds", "", 80*day, 0),
		"MayflyTLSEnds":                  gauge("mayfly_tls_expiry_timestamp_seconds", "", 6*day, 8*day),
		"MayflyTUFTimestampEnds":         gauge("mayfly_tuf_expiry_timestamp_seconds", role("timestamp"), 3*day, 4*day),
		"MayflyTUFRootEnds":              gauge("mayfly_tuf_expiry_timestamp_seconds", role("root"), 50*day, 70*day),
		"MayflyLogsEnd":                  gauge("mayfly_ctlog_covered_until_timestamp_seconds", "", 20*day, 40*day),
		"MayflyLogLied":                  counter("mayfly_ctlog_bad_sct_total", log+`,flaw="signature"`), "MayflyPromiseOverdue": gauge("mayfly_ctlog_promises_overdue", log, 3, 0),
		"MayflyPromisesUnread": counter("mayfly_ctlog_promises_unread_total", ""), "MayflyLogDamaged": gauge("mayfly_ctlog_verify_success", log, 0, 1),
		"MayflyLogUnverified": gauge("mayfly_ctlog_verify_timestamp_seconds", log, -3*day, -2*day), "MayflyLogWritesFail": counter("mayfly_ctlog_batch_failures_total", log),
		"MayflyLogMergesLate": gauge("mayfly_ctlog_merge_delay_seconds", log, 20, 2), "MayflyCosignaturesMissing": gauge("mayfly_ctlog_checkpoint_cosignatures", log, 0, 1),
		"MayflyAuditRecordsLost": counter("mayfly_audit_records_total", `,type="issuance",outcome="failed"`), "MayflyClockUntrusted": gauge("mayfly_timestamp_clock_trusted", "", 0, 1),
		"MayflyFollowedLogContradicts": counter("mayfly_follow_contradictions_total", log+`,kind="fork"`), "MayflyRevocationListsBehind": gauge("mayfly_revocation_lists_behind", "", 1, 0),
		"MayflyIndexBehind": behind, "MayflyAlertsWait": gauge("mayfly_alerts_oldest_timestamp_seconds", target, 60, 0),
		"MayflyAlertsLost":      relabel(counter("mayfly_alerts_total", target+`,outcome="lost"`), ""),
		"MayflyAuditSinkBehind": gauge("mayfly_audit_sink_behind_seconds", `,sink="siem"`, 2000, 20),
		"MayflyDiskFull":        gauge("mayfly_ctlog_free_bytes", log, "5e8", "5e10"),
		"MayflyDiskFills": {
			[]string{"mayfly_ctlog_free_bytes" + m + log + "} 5e10-2e7x180"},
			[]string{"mayfly_ctlog_free_bytes" + m + log + "} 5e10-2e6x180"}, log,
		},
		"MayflyConfigurationRefused": gauge("mayfly_config_last_reload_success", "", 0, 1), "MayflyIssuerUnreachable": gauge("mayfly_identity_issuer_fetch_failing", issuer, 1, 0),
		"MayflyBackupOld": gauge("mayfly_backup_last_success_timestamp_seconds", "", -3*day, 0),
		"MayflyWarns":     gauge("mayfly_dependency_warning", `,dependency="log"`, 1, 0),
		"MayflyPanic":     counter("mayfly_panics_total", ""), "MayflyLogLinesDropped": counter("mayfly_log_lines_dropped_total", ""),
	}
}

// relabel says which labels the alert of c has.
func relabel(c alertCase, labels string) alertCase { c.labels = labels; return c }

// buckets are issuances of which so many a minute take less than 0.1 s, and ten less than 10.
func buckets(quick int) []string {
	series := func(le string, each int) string {
		return fmt.Sprintf(`mayfly_request_seconds_bucket%s,stage="issue",le="%s"} 0+%dx180`, m, le, each)
	}
	return []string{series("0.1", quick), series("10", 10), series("+Inf", 10)}
}

// labelsOf are an alert's: of what a case says "-name" takes one of job and instance out.
func labelsOf(text, severity string) map[string]string {
	all := map[string]string{"job": "mayfly", "instance": "a", "severity": severity}
	for part := range strings.SplitSeq(text, ",") {
		if name, is := strings.CutPrefix(part, "-"); is {
			delete(all, name)
		} else if name, value, is := strings.Cut(part, "="); is {
			all[name] = strings.Trim(value, `"`)
		}
	}
	return all
}

type rules struct {
	Groups []struct {
		Name  string `yaml:"name"`
		Rules []rule `yaml:"rules"`
	} `yaml:"groups"`
}

type rule struct {
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for,omitempty"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations,omitempty"`
}

func readRules(t *testing.T) (all rules) {
	t.Helper()
	decode(t, rulesFile, &all)
	return all
}

func decode(t *testing.T, file string, into any) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		t.Fatal(file, err)
	}
}

// Every alert fires with series that call for it, and stays silent with others.
func TestAlerts(t *testing.T) {
	t.Parallel()
	if said, err := run(t, "", program(t, "PROMTOOL"), "check", "rules", "--lint=all", "--lint-fatal", rulesFile); err != nil {
		t.Fatal(said)
	}
	all, left := readRules(t), alertCases()
	var tests []any
	for g := range all.Groups {
		for i := range all.Groups[g].Rules {
			r := &all.Groups[g].Rules[i]
			c, known := left[r.Alert]
			delete(left, r.Alert)
			if !known {
				t.Errorf("no case for %s", r.Alert)
				continue
			}
			labels := labelsOf(c.labels, r.Labels["severity"])
			checkText(t, r, labels)
			r.Annotations = nil // promtool would want them in each case
			tests = append(tests, promtoolCase(r.Alert, c.fires, []any{map[string]any{"exp_labels": labels}}), promtoolCase(r.Alert, c.silent, []any{}))
		}
	}
	for name := range left {
		t.Errorf("there is no alert %s", name)
	}
	dir := t.TempDir()
	for name, content := range map[string]any{
		"rules.yaml": all,
		"tests.yaml": map[string]any{"rule_files": []string{"rules.yaml"}, "evaluation_interval": "1m", "tests": tests},
	} {
		text, err := yaml.Marshal(content)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if said, err := run(t, "", program(t, "PROMTOOL"), "test", "rules", filepath.Join(dir, "tests.yaml")); err != nil {
		t.Error(said)
	}
}

func promtoolCase(alert string, series []string, expected []any) any {
	var input []any
	for _, s := range series {
		name, samples, _ := strings.Cut(s, "} ")
		input = append(input, map[string]any{"series": name + "}", "values": samples})
	}
	return map[string]any{
		"name": alert, "interval": "1m", "input_series": input,
		"alert_rule_test": []any{map[string]any{"eval_time": "2h", "alertname": alert, "exp_alerts": expected}},
	}
}

var labelInText = regexp.MustCompile(`\$labels\.(\w+)`)

// checkText: an alert says what is wrong and what to do, and names only labels that it has.
func checkText(t *testing.T, r *rule, labels map[string]string) {
	t.Helper()
	if s := r.Labels["severity"]; s != "critical" && s != "warning" {
		t.Errorf("%s: severity %q", r.Alert, s)
	}
	for _, name := range []string{"summary", "action"} {
		if r.Annotations[name] == "" {
			t.Errorf("%s has no %s", r.Alert, name)
		}
		for _, found := range labelInText.FindAllStringSubmatch(r.Annotations[name], -1) {
			if _, has := labels[found[1]]; !has {
				t.Errorf("%s: its %s names the label %s, which the alert hasn't", r.Alert, name, found[1])
			}
		}
	}
}

// The page of alerts has them all, as they are.
func TestAlertsPage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(watchingPage)
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for _, g := range readRules(t).Groups {
		for _, r := range g.Rules {
			if !strings.Contains(string(page), "\n| `"+r.Alert+"` | "+r.Labels["severity"]+" | ") || !strings.Contains(string(page), r.Annotations["action"]) {
				t.Errorf("docs/watching.md doesn't say of %s: %s, %s", r.Alert, r.Labels["severity"], r.Annotations["action"])
			}
			rows++
		}
	}
	if found := strings.Count(string(page), "\n| `Mayfly"); found != rows {
		t.Errorf("docs/watching.md has %d alerts, and there are %d", found, rows)
	}
}

// documented are the labels of each metric of docs/metrics.md, which a test holds to a scrape.
func documented(t *testing.T) map[string][]string {
	t.Helper()
	page, err := os.ReadFile(metricsPage)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{"up": nil, "process_resident_memory_bytes": nil, "process_cpu_seconds_total": nil}
	quoted := regexp.MustCompile("`([^`]+)`")
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 4 || !strings.HasPrefix(cells[0], " `mayfly_") {
			continue
		}
		var labels []string
		for _, found := range quoted.FindAllStringSubmatch(cells[2], -1) {
			labels = append(labels, found[1])
		}
		name, kind := quoted.FindStringSubmatch(cells[0])[1], strings.TrimSpace(cells[1])
		all[name] = labels
		if kind == "histogram" {
			for _, suffix := range []string{"_bucket", "_count", "_sum"} {
				all[name+suffix] = append(slices.Clone(labels), "le")
			}
		}
	}
	if len(all) < 50 {
		t.Fatalf("%d metrics", len(all))
	}
	return all
}

var (
	selector = regexp.MustCompile(`\b((?:mayfly|process|go)_\w+|up)\b(?:\{([^}]*)\})?`)
	matcher  = regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)`)
	grouping = regexp.MustCompile(`\b(?:by|on)\s*\(([^)]*)\)`)
)

// checkQuery: every metric and label of a query is one that a scrape has.
func checkQuery(t *testing.T, where, query string, known map[string][]string) {
	t.Helper()
	labels := []string{"job", "instance"}
	found := selector.FindAllStringSubmatch(query, -1)
	if len(found) == 0 {
		t.Errorf("%s asks for no metric: %s", where, query)
	}
	for _, s := range found {
		has, is := known[s[1]]
		if !is {
			t.Errorf("%s asks for %s, which no scrape has", where, s[1])
		}
		labels = append(labels, has...)
		for _, l := range matcher.FindAllStringSubmatch(s[2], -1) {
			if !slices.Contains(append(has, "job", "instance"), l[1]) {
				t.Errorf("%s: %s has no label %s", where, s[1], l[1])
			}
		}
	}
	for _, g := range grouping.FindAllStringSubmatch(query, -1) {
		for name := range strings.SplitSeq(g[1], ",") {
			if !slices.Contains(labels, strings.TrimSpace(name)) {
				t.Errorf("%s groups by %s, which its metrics haven't", where, name)
			}
		}
	}
}

type dashboard struct {
	UID        string `yaml:"uid"`
	Templating struct {
		List []struct {
			Name  string `yaml:"name"`
			Type  string `yaml:"type"`
			Query string `yaml:"query"`
		} `yaml:"list"`
	} `yaml:"templating"`
	Panels []struct {
		ID          int                               `yaml:"id"`
		Type        string                            `yaml:"type"`
		Title       string                            `yaml:"title"`
		Grid        struct{ X, Y, W, H int }          `yaml:"gridPos"`
		FieldConfig struct{ Defaults map[string]any } `yaml:"fieldConfig"`
		Targets     []struct {
			Expr   string `yaml:"expr"`
			Legend string `yaml:"legendFormat"`
		} `yaml:"targets"`
	} `yaml:"panels"`
}

// Every query of the dashboard is one that Prometheus reads, and asks for metrics and
// labels that a scrape has; so does every alert.
func TestQueries(t *testing.T) {
	t.Parallel()
	known := documented(t)
	for _, g := range readRules(t).Groups {
		for _, r := range g.Rules {
			checkQuery(t, r.Alert, r.Expr, known)
		}
	}
	var d dashboard
	decode(t, dashboardFile, &d)
	variables := strings.NewReplacer("$__rate_interval", "5m", "$job", ".*", "$instance", ".*")
	var recorded []any
	for _, v := range d.Templating.List {
		if v.Type == "query" {
			checkQuery(t, "variable "+v.Name, strings.TrimPrefix(v.Query, "label_values("), known)
		}
	}
	for _, p := range d.Panels {
		if p.Type != "row" && (len(p.Targets) == 0 || p.FieldConfig.Defaults["unit"] == "" || p.Grid.W == 0) {
			t.Errorf("panel %q: no queries, unit or place", p.Title)
		}
		for _, target := range p.Targets {
			checkQuery(t, "panel "+p.Title, target.Expr, known)
			if strings.Contains(variables.Replace(target.Expr), "$") || target.Legend == "" {
				t.Errorf("panel %q: %s has a variable that isn't defined, or no legend", p.Title, target.Expr)
			}
			recorded = append(recorded, map[string]string{"record": fmt.Sprintf("panel:q%d", len(recorded)), "expr": variables.Replace(target.Expr)})
		}
	}
	text, err := json.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": recorded}}})
	if err != nil {
		t.Fatal(err)
	}
	if said, err := run(t, string(text), program(t, "PROMTOOL"), "check", "rules"); err != nil || len(recorded) < 20 {
		t.Errorf("%d queries: %v\n%s", len(recorded), err, said)
	}
}
