package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// lostHost loses a CA twice: with its marks on another disk, and with all. The first goes on
// with its log; an older backup is refused beside the mark; the second goes on with another
// log, while the old one is served, with all that its certificates need.
func lostHost(t *testing.T, lost string) {
	o, page := operate(t), blocks(t, "docs/backup.md")
	run := func(script string) string {
		t.Helper()
		return shell(t, o.dir, strings.ReplaceAll(script, "/backup/", filepath.Join(o.dir, "backup")+"/"))
	}
	says := func(script string, want ...string) {
		t.Helper()
		said := run(script)
		for _, w := range want {
			if !strings.Contains(said, w) {
				t.Errorf("%s says\n%s\nwant %q", script, said, w)
			}
		}
	}
	covered := func(entries string) {
		t.Helper()
		if err := o.ca.until("the checkpoint covers "+entries, func() (bool, error) {
			return strings.Contains(shell(t, o.dir, "mayfly log list --config my-ca/mayfly.yaml --json"), `"entries": `+entries), nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	o.serve()
	o.token()
	o.request()
	says("cp mayfly.crt.pem old.pem; mayfly revoke --ca " + o.url + " --certificate old.pem --self --token-file token.jwt")
	covered("1")
	says(page["run: backup"], "1 entries", "left out", "ctlog.mark")
	says(page["run: look"], "my-ca/ctlog/tile/0/000.p/1", "index.db: made again")
	says("tar -xzOf /backup/mayfly.tar.gz | grep -c 'PRIVATE KEY' || true", "0\n")
	at, err := o.ca.serving()
	if err != nil {
		t.Fatal(err)
	}
	says("curl -sf "+at.Metrics+"/metrics", "\nmayfly_backup_last_success_timestamp_seconds 1.")
	o.end()

	says("set +e; mayfly restore /backup/mayfly.tar.gz; test $? = 1", "something is there already", "my-ca/mayfly.yaml", "fix: ")
	says("mv my-ca lost; mkdir my-ca; set +e; mayfly restore /backup/mayfly.tar.gz; test $? = 1; ls my-ca", "without its mark", "my-ca/revocations.mark", "--marks-lost")
	says("cp lost/ctlog.mark lost/revocations.mark my-ca/\n"+page["run: restore"], " goes on", "no faults", "part of this log")
	const proven = "mayfly log proof $(openssl x509 -in old.pem -noout -serial | cut -d = -f 2) --dir "
	o.serve()
	if said := o.request(); !strings.Contains(said, "leaf 1") {
		t.Errorf("the restored log goes on with\n%s", said)
	}
	covered("2")
	says(proven+"my-ca/ctlog", "index 0")
	o.end()
	says("mayfly log verify --dir my-ca/ctlog --mark my-ca/ctlog.mark", "The log is whole", "2 (2 precertificates")
	says("mayfly audit verify --trail my-ca/audit/audit.jsonl")

	restore := "mayfly restore /backup/mayfly.tar.gz --passphrase-file passphrase"
	says("mv my-ca gone; mkdir my-ca; cp gone/*.mark my-ca/; set +e; "+restore+"; test $? = 5; find my-ca -type f", "the backup is older than the log was: it can be served", "fix: restore a newer backup")
	says("test $(find my-ca -type f | wc -l) = 3; rm -r my-ca")
	says(lost, "is a copy that takes nothing", "revocations.key.pem is new")
	o.followedLog()
	o.block("log-create")
	o.serve()
	if said := o.request(); !strings.Contains(said, "leaf 0") {
		t.Errorf("the new log begins with\n%s", said)
	}
	says(proven+"my-ca/ctlog-2026-frozen", "index 0")
	says("curl -sf "+o.url+"/revocations/feed.json", `"size":1`)
	says("mayfly log verify --backup --dir my-ca/ctlog-2026-frozen", "The log is whole")
	o.end()
}
